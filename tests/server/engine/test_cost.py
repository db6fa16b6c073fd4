"""The cost model against known sequences."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.server.engine.cost import CostModel


def learned(rows: int, seconds: float, count: int = 100) -> CostModel:
    cost = CostModel()
    for _ in range(count):
        cost.learn(rows, seconds, seconds)
    return cost


class TestSizes:
    def test_unknown_is_free_to_wait_for_and_too_dear_for_the_event_loop(self) -> None:
        cost = CostModel()
        assert cost.mean_s(4) == cost.high_s(4) == 0.0
        assert cost.cpu_s(4) == math.inf
        assert not cost.is_short(4, 1.0)

    def test_of_one_size_others_are_never_too_optimistic(self) -> None:
        cost = CostModel()
        cost.learn(4, 1.0, 0.5)
        assert cost.mean_s(3) == 1.0
        assert cost.mean_s(16) == 4.0
        assert cost.cpu_s(1) == 0.5

    def test_sizes_that_were_not_seen_lie_on_a_line(self) -> None:
        cost = CostModel()
        for _ in range(20):
            cost.learn(4, 2.0 + 4, 1.0)
            cost.learn(16, 2.0 + 16, 1.0)
        assert [cost.mean_s(rows) for rows in (1, 8, 12, 32, 100)] == pytest.approx(
            [3.0, 10.0, 14.0, 34.0, 102.0], rel=0.02
        )

    def test_each_size_has_its_own_time(self) -> None:
        """A model compiled for sizes of 8: 5 rows take as long as 8."""
        cost = CostModel()
        for _ in range(50):
            for rows in (4, 5, 8, 9):
                cost.learn(rows, -(-rows // 8) * 1.0, 1.0)
        assert [cost.mean_s(rows) for rows in (4, 5, 8, 9)] == pytest.approx([1.0, 1.0, 1.0, 2.0], rel=0.02)

    def test_memory_is_bounded_whatever_the_sizes(self) -> None:
        cost = CostModel()
        pick = random.Random(4)
        for _ in range(20_000):
            rows = int(2 ** pick.uniform(0, 16.6))
            cost.learn(rows, 1e-3 + 1e-5 * rows, 1e-3)
        assert len(cost._sizes) == len(cost._curve) < 64 + 8 * 12
        assert cost.mean_s(50_000) == pytest.approx(0.501, rel=0.1)

    def test_most_rows_is_the_inverse_of_the_high_quantile(self) -> None:
        cost = CostModel()
        for _ in range(20):
            cost.learn(1, 3.0, 1.0)
            cost.learn(32, 34.0, 1.0)
        assert [cost.most_rows(limit_s, 32) for limit_s in (2.0, 3.1, 10.9, 100.0)] == [0, 1, 8, 32]


class TestChange:
    def test_one_stall_changes_little(self) -> None:
        cost = learned(1, 1e-3)
        cost.learn(1, 10.0, 1e-3)
        assert cost.mean_s(1) < 1.3e-3
        assert cost.high_s(1) < 1.3e-3

    def test_a_lasting_change_is_followed_at_all_sizes_within_some_tens_of_batches(self) -> None:
        cost = CostModel()
        pick = random.Random(1)
        for slowdown in (1.0, 3.0, 1.0):
            for _ in range(64 if slowdown != 1.0 or cost.mean_s(1) else 500):
                rows = pick.choice((1, 2, 4, 8))
                cost.learn(rows, slowdown * (1.0 + rows) * pick.uniform(0.98, 1.02), 1.0)
            for rows in (1, 2, 4, 8, 16):
                assert cost.mean_s(rows) == pytest.approx(slowdown * (1.0 + rows), rel=0.2)
            assert cost.high_s(8) == pytest.approx(slowdown * 9.0, rel=0.3)

    def test_the_high_quantile_covers_the_noise_and_not_much_more(self) -> None:
        cost = CostModel()
        pick = random.Random(2)
        runs = [8e-3 * pick.lognormvariate(0.0, 0.1) for _ in range(4000)]
        above = 0
        for seconds in runs:
            above += 0.0 < cost.high_s(8) < seconds
            cost.learn(8, seconds, seconds)
        assert 0.01 < above / len(runs) < 0.07

    @pytest.mark.parametrize("elapsed_s", [0.0, -1.0, -1e300, 1e6, math.inf, -math.inf, math.nan])
    def test_what_a_clock_that_jumps_says_is_ignored(self, elapsed_s: float) -> None:
        cost = learned(4, 0.5)
        before = [cost.mean_s(4), cost.high_s(4), cost.cpu_s(4)]
        for _ in range(100):
            cost.learn(4, elapsed_s, elapsed_s)
            cost.learn(7, elapsed_s, elapsed_s)
        assert [cost.mean_s(4), cost.high_s(4), cost.cpu_s(4)] == before

    @given(st.lists(st.tuples(st.integers(1, 1 << 40), st.floats(), st.floats(0, 1e6)), min_size=1, max_size=200))
    def test_estimates_are_always_finite_and_grow_with_doubt(self, seen: list[tuple[int, float, float]]) -> None:
        cost = CostModel()
        for rows, seconds, cpu_s in seen:
            cost.learn(rows, seconds, cpu_s)
            assert 0 <= cost.mean_s(rows) < math.inf
            assert 0 <= cost.high_s(rows + 1) < math.inf
            assert cost.cpu_s(rows) > 0
            assert 0 <= cost.most_rows(1.0, 64) <= 64


class TestEventLoop:
    """What may run on it: by CPU time, without what the host does."""

    @pytest.mark.parametrize("every", [150, 500, 5000])
    def test_a_hypervisor_that_takes_the_cpu_away_does_not(self, every: int) -> None:
        cost = CostModel()
        for run in range(1, 40_000):
            cost.learn(1, 1e-4, 9e-3 if run % every == 0 else 2e-5)
            assert cost.is_short(1, 200e-6)

    def test_a_model_of_which_some_requests_are_slow_does(self) -> None:
        cost = CostModel()
        pick = random.Random(5)
        for _ in range(20_000):
            cost.learn(1, 1e-4, 9e-3 if pick.random() < 0.08 else 2e-5)
        assert not cost.is_short(1, 200e-6)

    def test_a_model_that_became_slow_leaves_at_once_and_one_that_became_fast_comes_back(self) -> None:
        cost = learned(1, 5e-5, 2000)
        assert cost.is_short(1, 200e-6)
        for _ in range(3):
            cost.learn(1, 0.1, 0.1)
        assert not cost.is_short(1, 200e-6)
        runs = 0
        while not cost.is_short(1, 200e-6):
            cost.learn(1, 5e-5, 5e-5)
            runs += 1
        assert 32 < runs <= 64

    def test_at_the_limit_it_does_not_go_to_and_fro(self) -> None:
        cost = learned(1, 190e-6)
        pick = random.Random(3)
        changes, was = 0, True
        for _ in range(10_000):
            cost.learn(1, 2e-4, pick.uniform(185e-6, 205e-6))
            changes += cost.is_short(1, 200e-6) != was
            was = cost.is_short(1, 200e-6)
        assert changes <= 1
