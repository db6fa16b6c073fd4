"""`salver serve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from salver.core.settings import Settings
from salver.server.launch import launch, settings_of
from salver.server.settings import ServeSettings


def run(sources: tuple[str, ...], *, reread: Callable[[], Settings]) -> None:
    """Serve until told to stop.

    Args:
        reread: resolves the settings; again, where the server is told to read them again.
    """

    def resolve() -> ServeSettings:
        told = reread()
        values = {key: _plain(value) for key, value in told.values.items() if key != "debug"}
        models = {name: {key: _plain(value) for key, value in table.items()} for name, table in told.models.items()}
        return settings_of(sources, models, values, told.origins)

    launch(resolve(), resolve)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
