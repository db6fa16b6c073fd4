"""Simulated time: what is going to happen, in order."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush


class Clock:
    """The events to come, in order."""

    __slots__ = ("events", "sequence")

    def __init__(self) -> None:
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.sequence = 0

    def at(self, at_s: float, fire: Callable[[float], None]) -> None:
        """Call a function at a time."""
        self.sequence += 1
        heappush(self.events, (at_s, self.sequence, fire))
