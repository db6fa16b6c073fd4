"""What became of each simulated request, and what must never happen to one."""

from __future__ import annotations

from array import array
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from salver.core.errors import Code, SalverError

OPEN: Final = 0
ANSWERED: Final = 1
VANISHED: Final = 2
_CODES: Final = tuple(Code)
_NUMBER: Final = {code: number for number, code in enumerate(_CODES, 3)}
_SHOWN: Final = 20


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulation showed. Latencies are what clients see, network included, of requests that were answered.

    Args:
        name: of the scenario.
        seconds: simulated.
        offered, answered, vanished: requests; those whose client went away before the answer are ``vanished``.
        refused: code -> requests that ended in an error.
        good: answered within the scenario's SLO.
        stream_good: share of each stream's requests that were.
        mean_s, p50_s, p99_s: latencies; 0 where nothing was answered.
        mean_wait_s, longest_wait_s: of requests that were answered, from the server's taking them to their start.
        batches: runs that ended.
        batch_rows: mean rows of a batch.
        lanes_busy, loop_busy: share of the time in which a lane, or the busiest event loop, worked.
        cores_busy: share of all cores' time that was used.
        most_queued: requests that waited in one queue.
        violations: what must not happen and did, the first few in words.
    """

    name: str
    seconds: float
    offered: int
    answered: int
    vanished: int
    refused: dict[str, int]
    good: int
    stream_good: tuple[float, ...]
    mean_s: float
    p50_s: float
    p99_s: float
    mean_wait_s: float
    longest_wait_s: float
    batches: int
    batch_rows: float
    lanes_busy: float
    loop_busy: float
    cores_busy: float
    most_queued: int
    violations: tuple[str, ...]

    @property
    def goodput_per_s(self) -> float:
        """Answers within the SLO, per second."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def good_share(self) -> float:
        """Share of offered requests that were answered within the SLO."""
        return self.good / self.offered if self.offered else 1.0


class Ledger:
    """Keeps count, by request number.

    Args:
        count: requests that there may be.
    """

    def __init__(self, count: int) -> None:
        self.end = bytearray(count)
        """By number: `OPEN`, or how it ended."""
        self.took_s = array("d", bytes(8 * count))
        """By number: from sending to its end."""
        self.waited_s = array("d", bytes(8 * count))
        """By number: from the server's taking it to its start; of those answered."""
        self.violations: list[str] = []
        self.batches = 0
        self.rows = 0
        self.busy_s = 0.0  # of lanes
        self.work_s = 0.0  # of cores, for lanes
        self.most_queued = 0

    def violate(self, what: str) -> None:
        """Note what must not happen."""
        if len(self.violations) < _SHOWN:
            self.violations.append(what)

    def finish(self, number: int, how: int, took_s: float) -> None:
        """A request has ended."""
        if self.end[number] != OPEN:
            self.violate(f"request {number} ended twice: {_name(self.end[number])}, then {_name(how)}")
        self.end[number] = how
        self.took_s[number] = took_s

    def refuse(self, number: int, error: SalverError, took_s: float) -> None:
        """A request has ended in an error."""
        self.finish(number, _NUMBER[error.code], took_s)

    def latencies_s(self, network_s: float = 0.0) -> npt.NDArray[np.float64]:
        """Of the requests that were answered, by number."""
        ends = np.frombuffer(self.end, np.uint8)
        taken: npt.NDArray[np.float64] = np.frombuffer(self.took_s, np.float64)[ends == ANSWERED] + network_s
        return taken

    def good_shares(self, stream: list[int], streams: int, within_s: float) -> tuple[float, ...]:
        """Share of each stream's requests that were sent and are answered within a time; 1 where none were sent."""
        ends, of = np.frombuffer(self.end, np.uint8), np.array(stream, np.int64)
        good = (ends == ANSWERED) & (np.frombuffer(self.took_s, np.float64) <= within_s)
        sent = np.bincount(of[ends != OPEN], minlength=streams)
        return tuple(
            float(share)
            for share in np.where(sent, np.bincount(of[good], minlength=streams) / np.maximum(sent, 1), 1.0)
        )

    def waits_s(self) -> npt.NDArray[np.float64]:
        """Of the requests that were answered, by number."""
        ends = np.frombuffer(self.end, np.uint8)
        waited: npt.NDArray[np.float64] = np.frombuffer(self.waited_s, np.float64)[ends == ANSWERED]
        return waited

    def refused(self) -> dict[str, int]:
        """Code -> how many ended so."""
        counts = np.bincount(np.frombuffer(self.end, np.uint8), minlength=3 + len(_CODES))
        return {str(code): int(counts[number]) for code, number in _NUMBER.items() if counts[number]}

    def count(self, how: int) -> int:
        """Requests that ended so, or are open."""
        return self.end.count(how)


def code_of(how: int) -> Code | None:
    """The error in which a request ended; None where it did not."""
    return _CODES[how - 3] if how >= 3 else None


def _name(how: int) -> str:
    return ("open", "answered", "vanished")[how] if how < 3 else str(_CODES[how - 3])
