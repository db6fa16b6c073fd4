"""MLPerf's scenarios: what a run must be, and what it says."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from salver.client.load import Generator, Latencies, LoadPlan, LoadResult, Samples
from salver.client.load.scenarios import (
    early_stopping_estimate,
    judge,
    most_over,
    plan_of,
    run_scenario,
)
from salver.core.errors import InvalidArgument, UnknownName
from salver.server.app import Server


def exact_cdf(count: int, over: int, share: float) -> float:
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(over + 1))


@pytest.mark.parametrize(("count", "share"), [(64, 0.1), (200, 0.1), (662, 0.01), (1000, 0.01)])
def test_as_many_may_be_over_as_one_in_a_hundred_runs_would_show_by_chance(count: int, share: float) -> None:
    over = most_over(count, share)
    assert over >= 1
    assert exact_cdf(count, over, share) <= 0.01 < exact_cdf(count, over + 1, share)


def test_the_fewest_queries_are_those_of_the_rules() -> None:
    assert [most_over(count, 0.1) for count in (63, 64)] == [0, 1]
    assert [most_over(count, 0.01) for count in (661, 662)] == [0, 1]


def test_the_estimate_is_above_the_percentile_and_comes_near_it() -> None:
    latencies = np.random.default_rng(0).permutation(np.arange(1, 100_001)) / 1e5
    assert early_stopping_estimate(latencies[:63], 0.9) is None
    assert early_stopping_estimate(latencies[:64], 0.9) == latencies[:64].max()
    estimate = early_stopping_estimate(latencies, 0.9)
    assert estimate is not None
    assert 0.9 < estimate < 0.905


def result_of(latencies_s: Any, wall_s: float = 600.0, slo_s: float | None = None) -> tuple[LoadResult, Samples]:
    values = np.asarray(latencies_s)
    samples = Samples(np.zeros(len(values)), values, np.zeros(len(values), int), ("OK",), 0.0)
    result = LoadResult(
        url="http://localhost",
        model="m",
        wire="rest",
        offered_per_s=len(values) / wall_s,
        requests=len(values),
        ok=len(values),
        throughput_per_s=1.0,
        rows_per_s=41.5,
        goodput_per_s=None,
        within_slo=None,
        latency=Latencies.of(values),
        outcomes={"OK": len(values)},
        retry_after=0,
        retry_after_mean_s=None,
        server_cpu_us=None,
        generator=Generator(cpu_us=1.0, busy=0.1),
        window_s=wall_s,
        wall_s=wall_s,
        slo_s=slo_s,
    )
    return result, samples


def test_a_single_stream_is_judged_by_its_ninetieth_percentile() -> None:
    result = judge("single-stream", *result_of([0.001] * 900 + [0.009] * 100))
    assert (result.value, result.unit, result.is_valid, result.why) == (pytest.approx(9.0), "ms", True, ())
    few = judge("single-stream", *result_of([0.001] * 63))
    assert (few.value, few.is_valid) == (None, False)
    assert few.why == ("63 queries say nothing of the percentile, 64 would",)


def test_a_server_is_valid_where_no_more_than_may_are_over() -> None:
    allowed = most_over(10_000, 0.01)
    latencies = [0.001] * (10_000 - allowed) + [0.2] * allowed
    result = judge("server", *result_of(latencies, slo_s=0.1))
    assert (result.value, result.unit, result.is_valid) == (pytest.approx(10_000 / 600), "queries/s", True)
    result = judge("server", *result_of([*latencies[1:], 0.2], slo_s=0.1))
    assert result.why == (f"{allowed + 1} of 10000 queries took longer than 100 ms, {allowed} may",)


def test_what_a_run_lacks_is_said() -> None:
    load, samples = result_of([0.001] * 700, wall_s=12)
    load = msgspec.structs.replace(
        load, ok=699, generator=Generator(cpu_us=1.0, busy=0.99, is_bottleneck=True, why="it was busy")
    )
    assert judge("offline", load, samples).why == (
        "it ran for 12 s, the rules ask for 600 s",
        "1 of 700 queries were not answered well",
        "the load generator: it was busy",
    )
    assert judge("offline", load, samples).value == 41.5


def test_the_load_is_that_of_the_rules() -> None:
    plan = LoadPlan(url="http://localhost", model="m", concurrency=7, rows=3)
    single, multi, offline = (plan_of(name, plan) for name in ("single-stream", "multi-stream", "offline"))
    assert (single.concurrency, single.rows, multi.concurrency, multi.rows) == (1, 1, 1, 8)
    assert (offline.concurrency, offline.rows) == (7, 3)
    server = plan_of("server", LoadPlan(url="http://localhost", rate_per_s=5, slo_s=0.1, spacing="constant"))
    assert (server.spacing, server.rows, server.rate_per_s) == ("poisson", 1, 5)
    with pytest.raises(InvalidArgument, match="needs a rate and a latency limit"):
        plan_of("server", plan)
    with pytest.raises(UnknownName, match="Did you mean 'server'"):
        plan_of("servr", plan)


def test_a_run_is_as_long_and_has_as_many_queries_as_asked(server: Server) -> None:
    plan = LoadPlan(url=server.url, model="identity_fp32", concurrency=1)
    result = run_scenario("single-stream", plan, min_duration_s=0.1)
    assert result.load.requests >= 64
    assert result.load.wall_s >= 0.1
    assert result.value is not None
    assert result.why[0].startswith("it ran for 0 s")
    stopped = run_scenario("single-stream", plan, min_duration_s=60, stop=lambda: True)
    assert stopped.load.requests < 64
