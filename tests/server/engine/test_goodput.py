"""Goodput in virtual time: at load and overload, on hosts that slow down and clocks that jump."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.server.engine.virtual_time import Model, serve

ENCODER = Model(fixed_s=2.6e-3, row_s=7.35e-3, overhead_s=0.6e-3)
"""As MiniLM on one core: a batch gains little."""
ACCELERATOR = Model(fixed_s=10e-3, row_s=1e-3)
LINEAR = Model(fixed_s=0.0, row_s=10e-3)
"""A batch gains nothing: a queue with one server, of which each customer waits for at most eight services."""


@pytest.mark.parametrize(
    ("model", "load", "least"),
    [
        (ACCELERATOR, 0.85, 0.99),
        (ENCODER, 0.75, 0.99),
        (ENCODER, 0.85, 0.97),  # of Poisson arrivals at this load no server could keep 99 %: see LINEAR
        (LINEAR, 0.75, 0.99),
        (LINEAR, 0.85, 0.97),
        (ENCODER, 0.5, 0.999),
    ],
)
def test_below_capacity_nearly_all_are_answered_in_time(model: Model, load: float, least: float) -> None:
    out = serve(model, load)
    assert out.share >= least
    assert out.late / out.asked <= 0.005
    assert set(out.refused) <= {"slo"}


@pytest.mark.parametrize("model", [ENCODER, ACCELERATOR, LINEAR])
def test_overload_costs_nothing(model: Model) -> None:
    rates = {load: serve(model, load, count=10_000).rate for load in (1.0, 1.5, 2.0, 4.0)}
    best = max(rates.values())
    assert best >= 0.9 * model.capacity
    assert rates[2.0] >= 0.95 * best
    assert rates[4.0] >= 0.9 * best


def test_without_an_objective_overload_ruins_everything() -> None:
    """What the objective is for."""
    assert serve(ENCODER, 2.0, slo=False).rate < 0.1 * ENCODER.capacity


def test_what_is_run_is_in_time_even_at_overload() -> None:
    out = serve(ENCODER, 2.0)
    assert out.late <= 0.01 * out.good


def test_of_several_clients_the_one_that_floods_pays() -> None:
    """One client in twenty requests is another; at twice the capacity it is served nearly as if it were alone."""
    from_other = serve(ENCODER, 2.0, request=lambda pick: {"client": "b" if pick.random() < 0.05 else "a"})
    assert from_other.of["b"].share >= 0.97
    assert from_other.rate >= 0.9 * ENCODER.capacity


def test_the_higher_of_two_priorities_is_served_as_if_alone() -> None:
    def ask(pick: random.Random) -> dict[str, Any]:
        priority = int(pick.random() < 0.8)
        return {"priority": priority, "client": priority}

    out = serve(ENCODER, 2.0, request=ask)
    assert out.of[0].share >= 0.97
    assert out.of[1].good > 0
    assert out.rate >= 0.85 * ENCODER.capacity


def test_requests_of_many_rows_count_as_many() -> None:
    """At three times the capacity in rows: what is admitted is what can be done."""
    out = serve(ACCELERATOR, 1.0, request=lambda pick: {"rows": pick.choice((1, 1, 2, 8))})
    assert out.late <= 0.01 * out.good
    assert out.rows_rate >= 0.8 * ACCELERATOR.capacity


def test_a_host_that_is_three_times_slower_for_a_minute() -> None:
    rate = 0.5 * ENCODER.capacity
    out = serve(ENCODER, 0.5, count=int(rate * 180), slowdown=lambda now: 3.0 if 60 <= now < 120 else 1.0)

    def kept(from_s: float, to_s: float) -> float:
        return sum(from_s <= at < to_s for at in out.goods) / (to_s - from_s) / rate

    slowed = 1 / (3 * ENCODER.run_s(1)) / rate  # all run alone
    assert kept(25, 60) >= 0.99
    assert kept(61, 120) >= 0.9 * slowed
    assert kept(122, 178) >= 0.97
    assert out.late <= 0.01 * out.asked


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, 1e9, -1e9])
def test_a_clock_that_jumps_costs_what_waits_at_most(jump_s: float) -> None:
    out = serve(ENCODER, 0.6, count=8000, jump=lambda now: now + (jump_s if now > 30 else 0.0))
    assert out.share >= 0.99
    assert out.late <= 10


def test_an_estimate_that_is_wrong_is_found_out() -> None:
    """Ten runs in a row took longer than the objective; nothing is refused for ever."""
    out = serve(ENCODER, 0.3, count=4000, slowdown=lambda now: 20.0 if 20 <= now < 25 else 1.0)
    assert sum(at > 30 for at in out.goods) >= 0.9 * sum(at < 20 for at in out.goods)
