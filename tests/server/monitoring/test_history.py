"""What is recent is what was counted in the last interval or two."""

from __future__ import annotations

from salver.server.monitoring.history import INTERVAL_S, History
from salver.server.monitoring.memory import Memory

START_S = 1e9
OWNER = ("m", "1")


class Counter:
    def __init__(self) -> None:
        self.memory = Memory()
        self.history = History(START_S)

    def count(self, number: int, at_s: float) -> None:
        self.memory.block("failed", OWNER)[0] += number
        self.history.mark(self.memory, START_S + at_s)

    def recent(self, at_s: float) -> tuple[float, float]:
        memory, over_s = self.history.recent(self.memory, START_S + at_s)
        return memory.block("failed", OWNER)[0], over_s


def test_all_since_the_start_at_first() -> None:
    counter = Counter()
    counter.count(3, 1.0)
    counter.count(4, 2.0)
    assert counter.recent(5.0) == (7, 5.0)


def test_old_counts_go() -> None:
    counter = Counter()
    for second in range(200):
        counter.count(1, float(second))
        number, over_s = counter.recent(float(second))
        assert abs(number - over_s) <= 1
        assert over_s <= 2 * INTERVAL_S


def test_a_pause_is_not_part_of_what_is_recent() -> None:
    counter = Counter()
    counter.count(1000, 10.0)
    counter.count(1, 500.0)
    counter.count(10, 505.0)
    assert counter.recent(510.0) == (10, 10.0)


def test_a_clock_that_is_set_back_starts_anew() -> None:
    counter = Counter()
    counter.count(5, 100.0)
    counter.count(1, -3600.0)
    counter.count(2, -3590.0)
    assert counter.recent(-3580.0) == (2, 20.0)
