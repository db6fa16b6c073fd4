"""Which worker has more than its share of the traffic, and who takes connections from it. No process, clock or event
loop inside.

The kernel spreads connections over workers, not load, and a connection stays where it was accepted: after a crash all
that the dead worker had lie with the others. So connections in use are moved, by asking their clients to connect again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

BUSY: Final = 0.25
"""CPU seconds per second: a worker with less to do than that is not relieved."""

GAP: Final = 0.25
"""By which share of its own load a worker must have more to do than another."""

RELIEF_S: Final = 2.0
"""For so long the other accepts where the busy one does, too, so that clients find it: whoever has time is sooner
there. A busy worker goes on accepting, or clients that connect anew for every request would all be the other's."""

PAUSE_S: Final = 4.0
"""From one shift to the next: what it did must show first."""

MAX_PAUSE_S: Final = 600.0
"""The same where shifts do not help, as with one connection that has most of the traffic: twice as long after each."""

HELPED: Final = 0.75
"""A shift has helped where the work is no more than that part as uneven at the next."""


class Load(msgspec.Struct, frozen=True):
    """What a worker had to do in the last second.

    Args:
        cpu: CPU seconds per second that went to requests. With several threads to a run, those of one: only proportions
            count.
        connections: on which requests came.
    """

    cpu: float
    connections: int


IDLE: Final = Load(0.0, 0)
"""Nothing."""


class Shift(msgspec.Struct, frozen=True):
    """A share of a worker's connections in use is to go to another; by slot."""

    giver: int
    taker: int
    share: float


def find_shift(loads: Mapping[int, Load]) -> Shift | None:
    """From the busiest to the one with the least to do, half of what they differ by, in whole connections; None where
    that is not worth it."""
    if len(loads) < 2:
        return None
    giver = max(loads, key=lambda slot: loads[slot].cpu)
    taker = min(loads, key=lambda slot: loads[slot].cpu)
    load = loads[giver]
    gap = load.cpu - loads[taker].cpu
    if load.cpu < BUSY or gap < GAP * load.cpu:
        return None
    share = gap / (2.0 * load.cpu)
    return Shift(giver, taker, share) if share * load.connections >= 1.0 else None


def _unevenness(loads: Mapping[int, Load]) -> float:
    """Which part of all work lies with workers beyond what each had to have: 0 where it is even."""
    total = sum(load.cpu for load in loads.values())
    return sum(max(load.cpu - total / len(loads), 0.0) for load in loads.values()) / total


class Balance:
    """Looks at all workers about once a second, and believes what shows twice in a row."""

    def __init__(self) -> None:
        self._shift: Shift | None = None
        self._shifted_s = float("-inf")
        self._unevenness = float("inf")  # at the last shift
        self._pause_s = PAUSE_S
        self._seen: tuple[int, int] | None = None

    def look(self, loads: Mapping[int, Load], now_s: float, *, sure: bool = False) -> Shift | None:
        """The shift that is to be made now.

        Args:
            loads: by slot.
            sure: whether to believe what shows for the first time, and whatever was done before.
        """
        if now_s < self._shifted_s + self._pause_s and not sure:
            return None
        found = find_shift(loads)
        pair = None if found is None else (found.giver, found.taker)
        if found is None or not (sure or pair == self._seen):
            self._seen = pair
            if found is None and now_s >= self._shifted_s + 2.0 * self._pause_s:  # the work is even, and stays so
                self._pause_s, self._unevenness = PAUSE_S, float("inf")
            return None
        unevenness = _unevenness(loads)
        has_helped = sure or unevenness < HELPED * self._unevenness
        self._pause_s = max(self._pause_s / 2.0, PAUSE_S) if has_helped else min(2.0 * self._pause_s, MAX_PAUSE_S)
        self._shift, self._shifted_s, self._unevenness, self._seen = found, now_s, unevenness, None
        return found

    def relieved(self, now_s: float) -> dict[int, tuple[int, ...]]:
        """On whose sockets a worker accepts besides for now; by its slot."""
        if self._shift is None or now_s >= self._shifted_s + RELIEF_S:
            return {}
        return {self._shift.taker: (self._shift.giver,)}
