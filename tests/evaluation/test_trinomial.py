"""The exact test against brute force, tables, and its own guarantees."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multinomial

from salver.evaluation.trinomial import exact_p_value, exact_upper_bound, score_bound, tango_z


def outcomes(n: int) -> np.ndarray:
    return np.array([(b, c) for b in range(n + 1) for c in range(n + 1 - b)])


def brute_force(b: int, c: int, n: int, margin: float) -> float:
    """The largest probability of a score at most the observed, over a fine grid of the nuisance, by scipy."""
    table = outcomes(n)
    region = table[tango_z(table[:, 0], table[:, 1], n, margin) <= float(tango_z(b, c, n, margin)) + 1e-9]
    counts = np.column_stack([region, n - region.sum(axis=1)])
    grid = np.linspace(max(0.0, -margin), (1.0 - margin) / 2.0 - 1e-9, 401)
    return max(multinomial.pmf(counts, n, [q + margin, q, 1.0 - 2.0 * q - margin]).sum() for q in grid)


@pytest.mark.parametrize(
    ("b", "c", "n", "margin"),
    [
        (0, 0, 20, 0.1),
        (1, 2, 20, 0.1),
        (2, 2, 40, 0.2),
        (0, 5, 40, 0.02),
        (7, 2, 15, 0.1),
        (1, 9, 25, -0.1),
        (0, 0, 1, 0.5),
    ],
)
def test_the_p_value_is_the_supremum_of_exact_probabilities(b, c, n, margin):
    # A grid lies below the supremum; the bound lies above it by 1 % at most.
    expected = brute_force(b, c, n, margin)
    assert expected * (1 - 1e-9) <= exact_p_value(b, c, n, margin) <= expected * 1.02 + 2e-6


@pytest.mark.parametrize(("n", "margin"), [(30, 0.1), (60, 0.05), (45, 0.2)])
def test_the_error_is_at_most_what_was_allowed_at_every_nuisance(n, margin):
    table = outcomes(n)
    p_values = np.array([exact_p_value(int(b), int(c), n, margin) for b, c in table])
    counts = np.column_stack([table, n - table.sum(axis=1)])
    for alpha in (0.01, 0.05):
        accepted = counts[p_values <= alpha]
        for q in np.linspace(0.0, (1.0 - margin) / 2.0 - 1e-9, 60):
            assert multinomial.pmf(accepted, n, [q + margin, q, 1.0 - 2.0 * q - margin]).sum() <= alpha


def test_without_a_disagreement_half_a_point_needs_598_examples():
    assert exact_p_value(0, 0, 597, 0.005) > 0.05
    assert exact_p_value(0, 0, 598, 0.005) <= 0.05
    assert exact_p_value(0, 0, 598, 0.005) == pytest.approx(0.995**598, rel=0.001)


@pytest.mark.parametrize(("b", "c", "n"), [(20, 12, 250), (0, 0, 40), (53, 16, 400), (5, 9, 60)])
def test_the_score_interval_solves_the_score_equation_with_the_restricted_likelihood(b, c, n):
    for upper in (False, True):
        bound = score_bound(b, c, n, 0.025, upper=upper)
        assert float(tango_z(b, c, n, bound)) == pytest.approx(-1.959964 if upper else 1.959964, abs=1e-4)
        grid = np.linspace(max(0.0, -bound) + 1e-9, (1.0 - bound) / 2.0 - 1e-9, 200_001)
        likelihood = b * np.log(grid + bound) + c * np.log(grid) + (n - b - c) * np.log(1.0 - 2.0 * grid - bound)
        q = grid[np.argmax(likelihood)]
        z = (b - c - n * bound) / math.sqrt(n * (2.0 * q + bound * (1.0 - bound)))
        assert z == pytest.approx(float(tango_z(b, c, n, bound)), abs=2e-3)


@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 50), (0, 0, 598), (3, 1, 200), (40, 35, 5000), (1, 12, 90)])
def test_the_upper_bound_agrees_with_the_test(b, c, n):
    bound = exact_upper_bound(b, c, n, 0.05)
    assert exact_p_value(b, c, n, bound) <= 0.05
    closer = bound - 0.01 * max(bound - (b - c) / n, 1e-9)
    assert exact_p_value(b, c, n, closer) > 0.05


counts = st.tuples(st.integers(1, 150), st.floats(0, 1), st.floats(0, 1)).map(
    lambda t: (round(t[1] * t[0]), round(t[2] * (t[0] - round(t[1] * t[0]))), t[0])
)
margins = st.sampled_from([0.002, 0.005, 0.01, 0.05, 0.2])


@given(counts, margins)
def test_more_losses_or_fewer_wins_never_help(point, margin):
    b, c, n = point
    p = exact_p_value(b, c, n, margin)
    assert 0.0 <= p <= 1.0
    if b + c < n:
        assert exact_p_value(b + 1, c, n, margin) >= p * 0.98 - 2e-6
    if c > 0:
        assert exact_p_value(b, c - 1, n, margin) >= p * 0.98 - 2e-6


@given(counts)
def test_a_wider_margin_never_hurts_where_it_decides(point):
    # Far from significance the order of outcomes, which depends on the margin, may raise the supremum a little.
    b, c, n = point
    p_values = [exact_p_value(b, c, n, margin) for margin in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)]
    pairs = itertools.pairwise(p_values)
    assert all(later <= earlier * 1.05 + 1e-5 for earlier, later in pairs if earlier <= 0.1)


def test_large_counts_are_feasible_and_close_to_normal():
    b, c, n, margin = 500, 480, 100_000, 0.001
    z = float(tango_z(b, c, n, margin))
    assert exact_p_value(b, c, n, margin) == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2.0)), rel=0.05)
