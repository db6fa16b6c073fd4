"""What was counted lately: two copies of the counters, taken some time apart."""

from __future__ import annotations

from array import array
from typing import Final

from salver.server.monitoring.memory import Key, Memory

INTERVAL_S: Final = 30.0
"""Between two copies. What is recent lies between one and two of these back."""


class _Copy:
    """Counters at a moment, at 8 bytes a number."""

    def __init__(self, memory: Memory | None, at_s: float) -> None:
        self.at_s = at_s
        self.cells: dict[Key, array[float]] = {key: array("d", cells) for key, cells in memory or ()}


class History:
    """Copies of counters that somebody else adds to.

    Args:
        started_s: when they were all zero.
    """

    def __init__(self, started_s: float) -> None:
        self._older = self._newer = _Copy(None, started_s)

    def mark(self, memory: Memory, now_s: float) -> None:
        """Take a copy, if the last one is old enough. A clock that was set back counts as one that is."""
        age_s = now_s - self._newer.at_s
        if 0 <= age_s < INTERVAL_S:
            return
        copy = _Copy(memory, now_s)
        # After a pause nothing but the pause lies between the copies, and rates would be taken over it.
        self._older = self._newer if 0 <= age_s < 2 * INTERVAL_S else copy
        self._newer = copy

    def recent(self, memory: Memory, now_s: float) -> tuple[Memory, float]:
        """What was counted since the older copy, and over how many seconds."""
        older = self._older
        earlier = Memory()
        earlier.add((key, list(cells)) for key, cells in older.cells.items())
        return memory.since(earlier), max(now_s - older.at_s, 1e-3)
