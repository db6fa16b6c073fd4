"""What a file is by its first bytes, where its suffix says little: ``.json``, ``.txt`` or ``.bin`` may be anything."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_HEAD_BYTES: Final = 4096
_STARTS: Final = {b"CBM1": "catboost", b"tree\nversion=": "lightgbm"}


def name_by_content(path: Path) -> str | None:
    """The importer of a model file that says in its first bytes what it is; None for others."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    # XGBoost writes one object in JSON, or in UBJSON, where a length stands between the brace and the name.
    if head.lstrip()[:1] == b"{" and (b'"learner"' in head or b"\x07learner{" in head):
        return "xgboost"
    return next((name for start, name in _STARTS.items() if head.startswith(start)), None)
