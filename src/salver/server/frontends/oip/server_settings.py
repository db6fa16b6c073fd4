"""What a client may see and change of the server's log and traces: Triton's ``logging`` and ``trace`` extensions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from salver.core.errors import InvalidArgument, Unimplemented, UnknownName

_LOGGER: Final = logging.getLogger("salver")
_LEVELS: Final = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
_SILENT: Final = logging.CRITICAL + 1
_FIXED: Final = {"log_file": "", "log_format": "default"}
_MAX_VERBOSE: Final = (1 << 32) - 1
_TRACE: Final[dict[str, str | list[str]]] = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}


def log_settings() -> dict[str, bool | int | str]:
    """The settings of the log, by Triton's names. A level includes those above it; verbose is Python's DEBUG."""
    level = _LOGGER.getEffectiveLevel()
    return {
        "log_file": "",
        **{name: level <= own for name, own in _LEVELS.items()},
        "log_verbose_level": int(level <= logging.DEBUG),
        "log_format": "default",
    }


def change_log_settings(changes: Mapping[str, Any]) -> dict[str, bool | int | str]:
    """Change the level of the log.

    Returns:
        All settings after the change.

    Raises:
        UnknownName: a setting that does not exist.
        InvalidArgument: a value of the wrong type, or info without warnings, or warnings without errors.
        Unimplemented: another file or format.
    """
    settings = log_settings()
    for name, value in changes.items():
        if name not in settings:
            raise UnknownName("log setting", name, settings)
        if type(value) is not type(settings[name]) or (type(value) is int and not 0 <= value <= _MAX_VERBOSE):
            raise InvalidArgument(f"log setting '{name}' is {value!r}, expected something like {settings[name]!r}")
        if name in _FIXED and value != _FIXED[name]:
            raise Unimplemented(f"log setting '{name}' cannot be changed: the log goes to stderr in one format")
    wanted = {**settings, **changes}
    shown = [bool(wanted["log_verbose_level"]), *(bool(wanted[name]) for name in _LEVELS)]
    if "log_verbose_level" in changes and wanted["log_verbose_level"]:
        shown = [True] * len(shown)
    if sorted(shown) != shown:
        raise InvalidArgument(
            "a level of the log includes those above it: log_info needs log_warning, and that log_error"
        )
    levels = (logging.DEBUG, *_LEVELS.values())
    _LOGGER.setLevel(next((level for level, is_shown in zip(levels, shown, strict=True) if is_shown), _SILENT))
    return log_settings()


def trace_settings() -> dict[str, str | list[str]]:
    """The settings of tracing, by Triton's names: it is off."""
    return dict(_TRACE)


def change_trace_settings(changes: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Take settings of tracing that change nothing; None, which resets one, never does.

    Raises:
        UnknownName: a setting that does not exist.
        Unimplemented: a change.
    """
    for name, value in changes.items():
        if name not in _TRACE:
            raise UnknownName("trace setting", name, _TRACE)
        if value is not None and value != _TRACE[name]:
            raise Unimplemented(f"trace setting '{name}' cannot be changed: this server has no Triton traces")
    return trace_settings()
