"""When which request is due: Poisson, constant, or as a trace recorded it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

import numpy as np

from salver.client.load.plan import LoadPlan
from salver.client.load.requests import Request, Requests

_CHUNK: Final = 4096

Arrivals = Iterator[tuple[float, Request]]
"""Seconds since the run began, never falling, and what is to be sent then."""


def arrivals_of(plan: LoadPlan, requests: Requests) -> Arrivals:
    """The arrivals of an open loop; they end where the plan's bounds do."""
    found = _recorded(plan, requests) if plan.trace else _spaced(plan, requests.usual())
    if plan.duration_s:
        found = itertools.takewhile(lambda arrival: arrival[0] < plan.duration_s, found)
    return itertools.islice(found, plan.max_requests) if plan.max_requests else found


def _spaced(plan: LoadPlan, usual: tuple[Request, ...]) -> Arrivals:
    turn = itertools.cycle(usual)
    return zip(due_times(plan.rate_per_s, plan.spacing == "poisson", plan.seed), turn, strict=False)


def due_times(rate_per_s: float, poisson: bool, seed: int) -> Iterator[float]:
    """Times of arrivals without end: independent exponential gaps, or equal ones."""
    rng = np.random.default_rng((seed, 1))
    if not poisson:
        yield from (number / rate_per_s for number in itertools.count(1))
    last = 0.0
    while True:
        times = last + np.cumsum(rng.exponential(1 / rate_per_s, _CHUNK))
        last = float(times[-1])
        yield from times.tolist()


def _recorded(plan: LoadPlan, requests: Requests) -> Arrivals:
    kinds = [(arrival.model, arrival.rows, arrival.priority, arrival.timeout_s) for arrival in plan.trace]
    for kind in dict.fromkeys(kinds):
        requests.of(*kind)  # before the clock runs: making requests takes time
    for number, (arrival, kind) in enumerate(zip(plan.trace, kinds, strict=True)):
        known = requests.of(*kind)
        yield arrival.at_s, known[number % len(known)]
