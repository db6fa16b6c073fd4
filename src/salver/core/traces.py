"""Arrival traces: when which requests came, as JSON Lines, to replay against a server or a simulated one.

{"t": 0.0131, "rows": 1, "model": "digits", "priority": 0, "timeout_s": null}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from salver.core.errors import InvalidArgument, NotFound, SalverError

_MAX_LINE: Final = 1 << 16


class Arrival(msgspec.Struct, frozen=True, rename={"at_s": "t"}, forbid_unknown_fields=True):
    """One request of a trace; ``at_s`` is written as ``t``.

    Args:
        at_s: seconds since the trace began; no smaller than that of the request before.
        rows: rows in it.
        model: whom it asks; empty for the only model there is.
        priority: smaller is sooner.
        timeout_s: how long its client waits; None for ever.
    """

    at_s: float
    rows: int = 1
    model: str = ""
    priority: int = 0
    timeout_s: float | None = None


def read_trace(path: Path) -> Iterator[Arrival]:
    """The requests of a trace, one after another: a trace may be longer than memory.

    Raises:
        NotFound: there is no such file.
        InvalidArgument: a line that is no request, by its number; or a trace without any.
    """
    before_s, number, found = 0.0, 0, False
    try:
        with path.open("rb") as lines:
            while line := lines.readline(_MAX_LINE + 1):
                number += 1
                if not line.isspace():
                    arrival = _decode(line, path, number)
                    _check(arrival, before_s, path, number)
                    before_s, found = arrival.at_s, True
                    yield arrival
    except OSError as error:
        raise _unreadable(path, error) from error
    if not found:
        raise InvalidArgument(f"{path}: the trace is empty; expected one JSON object a line, such as {_EXAMPLE}")


def write_trace(path: Path, arrivals: Iterable[Arrival]) -> int:
    """Write a trace; the number of requests in it.

    Raises:
        SalverError: the folder does not exist, the disk is full, access is denied.
    """
    count = 0
    try:
        with path.open("wb") as file:
            for arrival in arrivals:
                file.write(_ENCODER.encode(arrival) + b"\n")
                count += 1
    except OSError as error:
        raise _unreadable(path, error) from error
    return count


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Arrival)
_EXAMPLE: Final = _ENCODER.encode(Arrival(0.0131, model="digits")).decode()


def _decode(line: bytes, path: Path, number: int) -> Arrival:
    if len(line) > _MAX_LINE:
        raise InvalidArgument(f"{path}:{number}: the line is longer than {_MAX_LINE} bytes; expected {_EXAMPLE}")
    try:
        return _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}:{number}: {error}; expected a line such as {_EXAMPLE}") from None


def _check(arrival: Arrival, before_s: float, path: Path, number: int) -> None:
    if not (math.isfinite(arrival.at_s) and arrival.at_s >= before_s):
        raise InvalidArgument(
            f"{path}:{number}: got t {arrival.at_s:g} after {before_s:g}; expected seconds since the start, in order"
        )
    if arrival.rows < 1:
        raise InvalidArgument(f"{path}:{number}: got rows {arrival.rows}, expected 1 or more")
    if arrival.timeout_s is not None and not arrival.timeout_s > 0:
        raise InvalidArgument(f"{path}:{number}: got timeout_s {arrival.timeout_s:g}, expected more than 0, or null")


def _unreadable(path: Path, error: OSError) -> SalverError:
    if isinstance(error, FileNotFoundError):
        return NotFound(f"no such file or folder: '{path}'")
    return InvalidArgument(f"{path}: {error.strerror}")
