"""When requests are due."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from salver.client.load.arrivals import due_times


def test_constant_gaps() -> None:
    assert list(itertools.islice(due_times(4.0, False, 0), 4)) == [0.25, 0.5, 0.75, 1.0]


def test_poisson_gaps_are_exponential_and_the_seed_fixes_them() -> None:
    times = np.array(list(itertools.islice(due_times(200.0, True, 7), 20_000)))
    gaps = np.diff(times)
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.05)
    assert np.mean(gaps > 3 / 200) == pytest.approx(np.exp(-3), rel=0.1)
    assert list(itertools.islice(due_times(200.0, True, 7), 100)) == times[:100].tolist()
    assert list(itertools.islice(due_times(200.0, True, 8), 100)) != times[:100].tolist()
