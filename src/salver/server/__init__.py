"""The serve wing: bundle in, answers out.

The names below resolve on first use: a supervisor must not load what only its workers need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from salver.core.registry import load

if TYPE_CHECKING:
    from salver.server.app import Server as Server
    from salver.server.launch import serve as serve
    from salver.server.settings import ModelSettings as ModelSettings
    from salver.server.settings import ServeSettings as ServeSettings

__all__ = ["ModelSettings", "ServeSettings", "Server", "serve"]

_TARGETS: Final = {
    "ModelSettings": "salver.server.settings:ModelSettings",
    "ServeSettings": "salver.server.settings:ServeSettings",
    "Server": "salver.server.app:Server",
    "serve": "salver.server.launch:serve",
}


def __getattr__(name: str) -> Any:
    if name not in _TARGETS:
        raise AttributeError(f"module 'salver.server' has no attribute '{name}'")
    value = load(_TARGETS[name])
    globals()[name] = value
    return value
