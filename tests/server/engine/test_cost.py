"""The cost model against known sequences."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.server.engine.cost import CostModel


def test_unknown_is_free_to_wait_for_and_too_dear_for_the_event_loop() -> None:
    cost = CostModel()
    assert cost.mean_s(4) == 0.0
    assert cost.cpu_s(4) == math.inf


def test_other_sizes_are_estimated_from_the_nearest() -> None:
    cost = CostModel()
    cost.learn(4, 1.0, 0.5)
    assert cost.mean_s(3) == 1.0
    assert cost.mean_s(16) == 4.0
    assert cost.cpu_s(1) == 0.5


def test_one_stall_changes_little_and_a_lasting_change_is_followed() -> None:
    cost = CostModel()
    for _ in range(100):
        cost.learn(1, 1e-3, 1e-3)
    cost.learn(1, 10.0, 10.0)
    assert cost.mean_s(1) < 1.2e-3
    assert cost.cpu_s(1) < 1.2e-3
    for _ in range(100):
        cost.learn(1, 4e-3, 4e-3)
    assert cost.mean_s(1) == pytest.approx(4e-3, rel=0.1)
    assert cost.cpu_s(1) == pytest.approx(4e-3, rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 1 << 40), st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=50))
def test_estimates_are_always_positive_and_finite(seen: list[tuple[int, float, float]]) -> None:
    cost = CostModel()
    for rows, seconds, cpu_s in seen:
        cost.learn(rows, seconds, cpu_s)
        assert 0 < cost.mean_s(rows) < math.inf
        assert 0 < cost.cpu_s(rows) < math.inf
