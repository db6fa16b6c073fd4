"""`salver serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import salver


def run(sources: tuple[str, ...], *, models: dict[str, dict[str, Any]], **settings: Any) -> None:
    """Serve until told to stop."""
    tables = {name: {k: str(v) if k == "source" else v for k, v in table.items()} for name, table in models.items()}
    texts = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    salver.serve(*sources, models=tables, **texts)
