"""``grpc-timeout``: how long the client waits."""

from __future__ import annotations

from typing import Final

from salver.core.errors import InvalidArgument

_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def parse_timeout(value: bytes) -> float:
    """Seconds.

    Raises:
        InvalidArgument: it is not at most eight digits and a unit.
    """
    unit = _UNITS.get(value[-1:])
    digits = value[:-1]
    if unit is None or not digits.isdigit() or len(digits) > 8:
        raise InvalidArgument(
            f"grpc-timeout is '{value[:50].decode('latin-1')}', expected up to 8 digits and a unit: H M S m u n"
        )
    return int(digits) * unit
