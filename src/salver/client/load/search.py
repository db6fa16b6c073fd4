"""The highest rate at which a server keeps its latency objective, found by bisection over open-loop runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from salver.client.load import run
from salver.client.load.plan import LoadPlan, LoadResult
from salver.core.errors import InvalidArgument

_LOWEST: Final = 64
"""A server that does not keep its objective at this part of what it can do keeps it at no rate."""
_LEAST_PER_S: Final = 0.1
_LONGER: Final = 8


def find_capacity(
    plan: LoadPlan,
    *,
    share: float = 0.99,
    precision: float = 0.05,
    probe_s: float = 2.0,
    probe_concurrency: int = 64,
    min_requests: int = 0,
    bound_per_s: float = 0.0,
    attempts: int = 1,
    stop: Callable[[], bool] | None = None,
    on_result: Callable[[LoadResult], None] | None = None,
) -> tuple[LoadResult | None, list[LoadResult]]:
    """Look for the highest Poisson rate at which a share of requests is answered within the objective.

    A closed loop that keeps the server busy bounds the rate from above; then the gap between the highest rate that held
    and the lowest that did not is halved.

    Args:
        plan: with ``slo_s``; its arrivals are replaced, its duration is that of one run.
        share: of requests that must be answered within the objective.
        precision: the search ends when the gap is so small a part of the rate.
        probe_s, probe_concurrency: of the closed loop.
        min_requests: a run is up to 8 times longer than the plan says where it takes that for so many requests.
        bound_per_s: a rate that is known not to hold, instead of the closed loop.
        attempts: runs at one rate, until one of them holds: what else the machine does is not the server's fault.
        stop: asked whether to end early; the best so far is the answer.
        on_result: told of every run.

    Returns:
        The run at the highest rate that held, None where none did, and all open-loop runs in order.
    """
    if plan.slo_s is None:
        raise InvalidArgument("a search for the highest rate needs a latency objective (slo_s)")
    bound = bound_per_s or 1.1 * _saturate(plan, probe_s, probe_concurrency, stop)
    low, high = 0.0, bound
    best: LoadResult | None = None
    results: list[LoadResult] = []
    rate = high * 0.7
    while rate >= max(bound / _LOWEST, _LEAST_PER_S) and not (stop is not None and stop()):
        for _ in range(attempts):
            result = run(_at_rate(plan, rate, min_requests), stop=stop)
            results.append(result)
            if on_result is not None:
                on_result(result)
            if holds(result, share) or (stop is not None and stop()):
                break
        if holds(result, share):
            low, best = rate, result
        else:
            high = rate
        if high - low <= precision * high:
            break
        rate = (low + high) / 2 if low else high / 2
    return best, results


def _saturate(plan: LoadPlan, seconds: float, concurrency: int, stop: Callable[[], bool] | None) -> float:
    closed = msgspec.structs.replace(
        plan, rate_per_s=0.0, trace=(), concurrency=concurrency, duration_s=seconds, warmup_s=seconds / 4, connections=0
    )
    return run(closed, stop=stop).throughput_per_s


def _at_rate(plan: LoadPlan, rate_per_s: float, min_requests: int) -> LoadPlan:
    seconds = max(plan.duration_s, min(plan.warmup_s + min_requests / rate_per_s, _LONGER * plan.duration_s))
    return msgspec.structs.replace(plan, rate_per_s=rate_per_s, concurrency=0, trace=(), duration_s=seconds)


def holds(result: LoadResult, share: float) -> bool:
    """Whether so large a share of the requests was answered within the objective."""
    return (result.within_slo or 0.0) >= share
