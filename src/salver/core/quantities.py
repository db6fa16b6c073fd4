"""Quantities as people write them: `5m`, `64MiB`, `0.5pp`."""

from __future__ import annotations

import re
from typing import Final

from salver.core.errors import InvalidArgument

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_MARGIN: Final = re.compile(r"\d+(\.\d+)?\s*(pp|%)|\d+(\.\d+)?([eE][-+]?\d+)?")


def parse_duration(text: str) -> float:
    """Seconds of a duration: a number (seconds), or numbers with units, largest first: ``250ms``, ``5m``, ``1h30m``.

    Raises:
        InvalidArgument: anything else.
    """
    total, position = 0.0, 0
    while match := _QUANTITY.match(text, position):
        number, unit = match.groups()
        if unit not in _SECONDS and (unit or match.end() < len(text) or position):
            break
        total += float(number) * _SECONDS[unit or "s"]
        position = match.end()
    if position == 0 or position != len(text):
        raise InvalidArgument(f"got '{text}', expected a duration such as 250ms, 30s, 5m or 1h30m")
    return total


def parse_size(text: str) -> int:
    """Bytes of a size: a number (bytes), or a number with a unit: ``512KiB``, ``64MiB``, ``1.5GB``.

    Raises:
        InvalidArgument: anything else.
    """
    match = _QUANTITY.fullmatch(text)
    unit = _BYTES.get(match[2] or "B") if match else None
    if match is None or unit is None:
        raise InvalidArgument(f"got '{text}', expected a size such as 512KiB, 64MiB or 1.5GB")
    return round(float(match[1]) * unit)


def check_margin(text: str) -> str:
    """A margin, as it is written: percentage points (``0.5pp``), relative (``1%``), or in the metric's own unit.

    Raises:
        InvalidArgument: anything else.
    """
    if not _MARGIN.fullmatch(text):
        raise InvalidArgument(f"got '{text}', expected a margin such as 0.5pp (percentage points) or 1% (relative)")
    return text
