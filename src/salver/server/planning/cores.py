"""The cores of a machine: runs share them where there are too few."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Final

Fire = Callable[[float], None]
At = Callable[[float, Fire], None]
Ended = Callable[[float, Any], None]

_EPSILON_S: Final = 1e-9


class Cores:
    """Runs on lanes, by processor sharing (Kleinrock, 1967): where the threads of all runs are more than the cores, all
    runs slow down alike. Event loops go first, since they sleep between short bursts of work, and take their time from
    the runs.

    Kept in virtual time, which passes at the rate at which a run proceeds; a run ends at a fixed virtual time.

    Args:
        count: cores.
        loops: event loops that share them.
        refill_s: which a run loses each time that an event loop takes its core.
        at: calls a function at a time.
        ended: told when a run has ended, and of what it was given with the run.
    """

    __slots__ = (
        "_at",
        "_at_s",
        "_count",
        "_demand",
        "_due_s",
        "_ended",
        "_heap",
        "_loops",
        "_loss",
        "_rate",
        "_refill_s",
        "_sequence",
        "_v",
    )

    def __init__(self, count: int, loops: int, refill_s: float, at: At, ended: Ended) -> None:
        self._count = count
        self._at = at
        self._ended = ended
        self._refill_s = refill_s
        self._loops = [0.0] * loops  # until when each is busy
        self._heap: list[tuple[float, int, int, Any]] = []
        self._demand = 0
        self._rate = 1.0
        self._loss = 0.0
        self._v = 0.0
        self._at_s = 0.0
        self._sequence = 0
        self._due_s = -1.0  # when `_fire` is called next, where something runs

    def start(self, now: float, work_s: float, threads: int, run: Any) -> None:
        """Begin a run that takes ``work_s`` when it has its cores to itself."""
        self._advance(now)
        self._sequence += 1
        heappush(self._heap, (self._v + work_s, self._sequence, threads, run))
        self._demand += threads
        self._share()
        self._arm()

    def drop(self, gone: Callable[[Any], bool]) -> None:
        """Forget runs whose process was killed."""
        self._heap = [entry for entry in self._heap if not gone(entry[3])]
        heapify(self._heap)
        self._demand = sum(threads for _, _, threads, _ in self._heap)
        self._share()
        if self._heap:
            self._arm()

    def loop(self, slot: int, began_s: float, until_s: float) -> None:
        """The event loop of a worker is busy for some time, in which no run begins."""
        self._v -= self._loss * (until_s - began_s)
        self._loops[slot] = until_s

    def interrupt(self, now: float) -> float:
        """An event loop begins a turn; for how long the run that it takes a core from would have gone on, 0 where it
        takes none."""
        if not self._demand or not self._loss:
            return 0.0
        v = self._v + max(0.0, now - self._at_s) * self._rate
        self._v -= self._loss * self._refill_s
        return max(0.0, self._heap[0][0] - v) / self._rate

    def crowding(self, slot: int, now: float) -> float:
        """How many times slower an event loop is because more of them are busy than there are cores."""
        loops = self._loops
        if len(loops) <= self._count:
            return 1.0
        busy = sum(until_s > now for until_s in loops) + (loops[slot] <= now)
        return max(1.0, busy / self._count)

    def _advance(self, now: float) -> None:
        if now > self._at_s:
            self._v += (now - self._at_s) * self._rate
            self._at_s = now

    def _share(self) -> None:
        threads = max(self._demand, 1)
        self._rate = min(1.0, self._count / threads)
        self._loss = self._rate - min(1.0, (self._count - 1) / threads)

    def _arm(self) -> None:
        due_s = self._at_s + max(0.0, self._heap[0][0] - self._v) / self._rate
        if due_s < self._due_s or self._due_s < self._at_s:
            self._due_s = due_s
            self._at(due_s, self._fire)

    def _fire(self, now: float) -> None:
        if now < self._due_s or not self._heap:  # an earlier end has made this call superfluous
            return
        self._advance(now)
        heap = self._heap
        while heap and heap[0][0] <= self._v + _EPSILON_S:
            _, _, threads, run = heappop(heap)
            self._demand -= threads
            self._ended(now, run)
        self._share()
        self._due_s = -1.0
        if heap:
            self._arm()
