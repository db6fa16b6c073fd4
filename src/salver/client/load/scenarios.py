"""MLPerf Inference's four scenarios by name, with its definitions of load, length and metric.

Source: MLPerf Inference Rules, "Scenarios" and "Early Stopping Criterion"
(https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc). A number measured here is not an
MLPerf result: those are reviewed, and come from their own load generator, data sets and reference models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal

import msgspec
import numpy as np

from salver.client.load import Progress, Samples, measure
from salver.client.load.plan import LoadPlan, LoadResult
from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, UnknownName

CONFIDENCE: Final = 0.99
_NO_END: Final = 1 << 62
_OFFLINE_CONCURRENCY: Final = 64


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario.

    Args:
        rows: samples in one query.
        share: the percentile that counts; 0 for none.
        min_duration_s, min_queries: a run is at least as long as both.
        metric: what is reported.
    """

    rows: int
    share: float
    min_duration_s: float
    min_queries: int
    metric: str


SCENARIOS: Final = {
    "single-stream": Scenario(
        rows=1, share=0.90, min_duration_s=600, min_queries=64, metric="90th percentile of latency"
    ),
    "multi-stream": Scenario(
        rows=8, share=0.99, min_duration_s=600, min_queries=662, metric="99th percentile of latency"
    ),
    "server": Scenario(
        rows=1, share=0.99, min_duration_s=600, min_queries=662, metric="queries per second, 99 % within the limit"
    ),
    "offline": Scenario(rows=1, share=0.0, min_duration_s=600, min_queries=24_576, metric="samples per second"),
}
"""Fewest queries: those with which the early-stopping criterion can be met at all, and offline's 24,576 samples."""


class ScenarioResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a scenario says.

    Args:
        value: of the metric, in ``unit``; None where the run does not allow one.
        is_valid: whether the run meets the rules of load, length and latency.
        why: sentences that say why it does not.
        load: the run.
    """

    scenario: str
    metric: str
    unit: Literal["ms", "queries/s", "samples/s"]
    value: float | None
    is_valid: bool
    why: tuple[str, ...]
    load: LoadResult


def plan_of(name: str, plan: LoadPlan) -> LoadPlan:
    """The load of a scenario.

    Args:
        plan: its ``rate_per_s`` and ``slo_s`` count for ``server``, its ``concurrency`` and ``rows`` for ``offline``.

    Raises:
        UnknownName: there is no such scenario.
        InvalidArgument: ``server`` without a rate or a limit.
    """
    if name not in SCENARIOS:
        raise UnknownName("scenario", name, SCENARIOS)
    scenario = SCENARIOS[name]
    replace = msgspec.structs.replace
    if name == "server":
        if not plan.rate_per_s or plan.slo_s is None:
            raise InvalidArgument("the scenario 'server' needs a rate and a latency limit (--rate 500/s --slo 50ms)")
        return replace(plan, rows=scenario.rows, spacing="poisson", max_requests=_NO_END, duration_s=0.0, warmup_s=0.0)
    closed = replace(plan, rate_per_s=0.0, trace=(), duration_s=0.0, warmup_s=0.0, max_requests=_NO_END, concurrency=1)
    if name == "offline":
        # All samples are there from the start; so many requests are kept before the server that it never waits.
        return replace(closed, concurrency=plan.concurrency or _OFFLINE_CONCURRENCY)
    return replace(closed, rows=scenario.rows)


def run_scenario(
    name: str,
    plan: LoadPlan,
    *,
    min_duration_s: float | None = None,
    stop: Callable[[], bool] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ScenarioResult:
    """Run a scenario until it is as long, and has as many queries, as the rules say.

    Args:
        plan: see `plan_of`.
        min_duration_s: instead of the rules' 600 s; the result says that it is shorter.
        stop, on_progress: see `salver.client.load.run`.

    Raises:
        SalverError: as `plan_of` and `salver.client.load.run`.
    """
    made = plan_of(name, plan)
    scenario = SCENARIOS[name]
    least_s = scenario.min_duration_s if min_duration_s is None else min_duration_s
    least = math.ceil(scenario.min_queries / max(made.rows, 1)) if name == "offline" else scenario.min_queries
    seen = Progress(0.0, 0, 0, 0)

    def look(progress: Progress) -> None:
        nonlocal seen
        seen = progress
        if on_progress is not None:
            on_progress(progress)

    def is_over() -> bool:
        return (seen.elapsed_s >= least_s and seen.ended >= least) or (stop is not None and stop())

    load, samples = measure(made, stop=is_over, on_progress=look)
    return judge(name, load, samples)


def judge(name: str, load: LoadResult, samples: Samples) -> ScenarioResult:
    """What a run says by the rules of a scenario."""
    scenario = SCENARIOS[name]
    why = []
    if load.wall_s < scenario.min_duration_s:
        why.append(f"it ran for {load.wall_s:.0f} s, the rules ask for {scenario.min_duration_s:.0f} s")
    if load.failed:
        why.append(f"{load.failed} of {load.requests} queries were not answered well")
    if load.generator.is_bottleneck:
        why.append(f"the load generator: {load.generator.why}")
    latencies = samples.latency_s[samples.is_ok]
    value: float | None
    unit: Literal["ms", "queries/s", "samples/s"]
    if name == "offline":
        value, unit = load.rows_per_s, "samples/s"
    elif name == "server":
        value, unit = load.offered_per_s, "queries/s"
        limit_s = load.slo_s or math.inf
        over = load.requests - int((latencies <= limit_s).sum())
        allowed = most_over(load.requests, 1 - scenario.share)
        if over > allowed:
            why.append(f"{over} of {load.requests} queries took longer than {limit_s * 1e3:g} ms, {allowed} may")
    else:
        estimate_s = early_stopping_estimate(latencies, scenario.share)
        value, unit = None if estimate_s is None else estimate_s * 1e3, "ms"
        if estimate_s is None:
            why.append(f"{len(latencies)} queries say nothing of the percentile, {scenario.min_queries} would")
    return ScenarioResult(
        scenario=name, metric=scenario.metric, unit=unit, value=value, is_valid=not why, why=tuple(why), load=load
    )


def early_stopping_estimate(latencies_s: Array, share: float) -> float | None:
    """The latency that, at 99 % confidence, no more than ``1 - share`` of queries exceed: MLPerf's early-stopping
    estimate, the t-th largest for the largest t that the criterion allows; None with too few queries."""
    over = most_over(len(latencies_s), 1 - share)
    if over < 1:
        return None
    return float(np.sort(latencies_s)[len(latencies_s) - over])


def most_over(count: int, share: float) -> int:
    """How many of so many queries may be over a limit: the largest t with P(Binomial(count, share) <= t) <= 1 %;
    0 where there is none but that."""
    total, over = 0.0, -1
    while over < count:
        log_p = (
            math.lgamma(count + 1)
            - math.lgamma(over + 2)
            - math.lgamma(count - over)
            + (over + 1) * math.log(share)
            + (count - over - 1) * math.log1p(-share)
        )
        total += math.exp(log_p)
        if total > 1 - CONFIDENCE:
            return max(over, 0)
        over += 1
    return count
