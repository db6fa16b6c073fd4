"""Plans that make no run are refused, and percentiles are values that were measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.client.load import Latencies, LoadPlan
from salver.client.load.plan import percentiles
from salver.core.errors import InvalidArgument


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no arrivals; expected one of"),
        ({"rate_per_s": 1.0, "concurrency": 1}, "rate_per_s and concurrency"),
        ({"rate_per_s": -1.0}, "rate_per_s: got -1"),
        ({"rate_per_s": float("inf")}, "rate_per_s: got inf"),
        ({"rate_per_s": 1.0, "duration_s": 0.0}, "would not end"),
        ({"rate_per_s": 1.0, "duration_s": 2.0, "warmup_s": 2.0}, "warmup_s: got 2, expected less than the 2 s"),
        ({"concurrency": 1, "variants": 0}, "variants"),
    ],
)
def test_what_makes_no_run_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        LoadPlan(url="http://localhost", **given)


def test_percentiles_of_a_hundred() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1, 101))
    assert percentiles(values, (0.5, 0.9, 0.99, 0.999, 1.0)).tolist() == [50, 90, 99, 100, 100]
    assert percentiles(np.array([7.0]), (0.5, 0.999)).tolist() == [7, 7]


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=200), st.floats(0.001, 1))
def test_so_large_a_share_is_no_larger_than_its_percentile(values: list[float], share: float) -> None:
    [found] = percentiles(np.array(values), (share,))
    assert found in values
    assert np.mean(np.array(values) <= found) >= share - 1e-9
    smaller = [value for value in values if value < found]
    assert not smaller or np.mean(np.array(values) <= max(smaller)) < share + 1e-9


def test_latencies_are_in_milliseconds_and_none_of_nothing() -> None:
    assert Latencies.of(np.array([])) is None
    found = Latencies.of(np.full(10, 0.002))
    assert found is not None
    assert (found.p50, found.p99_9, found.max) == (2.0, 2.0, 2.0)
