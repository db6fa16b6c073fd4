"""Plans, from latencies that are made up, so that the right answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from salver.core.errors import FailedPrecondition, InvalidArgument
from salver.core.traces import Arrival, write_trace
from salver.server.planning.measure import Measured
from salver.server.planning.plan import Demand, Plan, make_plan, thread_counts
from salver.server.planning.scenario import Latency, Overheads, Poisson, Trace

SLO_S = 0.05
LINE = Latency(base_s=0.002, per_row_s=0.001)  # 1, 333, 970 rows per second in batches of 1, 2, 32
LOW = Overheads(turn_s=1e-6, decode_s=1e-6, encode_s=1e-6, handoff_s=1e-6, merge_s=0, merge_row_s=0, network_s=0)
MODEL = Measured(latencies={1: LINE}, overheads=LOW, memory_bytes=100 << 20)


def demand(rate: float, **more: Any) -> Demand:
    return Demand(**{"arrivals": Poisson(rate_per_s=rate), "rate_per_s": rate, "slo_s": SLO_S, "cores": 1} | more)


def plan_for(asked: Demand, measured: Measured) -> Plan:
    return make_plan(asked, measured, requests=6000)


def test_nodes_follow_the_load() -> None:
    small, large = plan_for(demand(500), MODEL), plan_for(demand(5000), MODEL)
    # In half of the objective 23 rows are run: 920 rows a second and core.
    assert small.nodes == 1
    assert 6 <= large.nodes <= 9
    for plan, rate in ((small, 500), (large, 5000)):
        assert plan.expected.good_share >= 0.99
        assert plan.expected.p99_s <= SLO_S
        assert plan.goodput_per_s >= 0.99 * rate
        assert plan.degraded is None
        assert plan.cores == plan.nodes
        assert plan.binds == "compute"
    assert plan_for(demand(5000), MODEL) == large


def test_a_single_node_uses_no_more_cores_than_it_needs() -> None:
    plan = plan_for(demand(300, cores=8), MODEL)
    assert (plan.nodes, plan.layout.cores) == (1, 1)
    more = plan_for(demand(1200, cores=8), MODEL)
    assert more.nodes == 1
    assert 2 <= more.layout.cores <= 3
    assert more.layout.workers * more.layout.lanes >= 2


def test_a_spare_node_keeps_the_objective() -> None:
    plan = plan_for(demand(1500, spare_nodes=1, price=0.04), MODEL)
    alone = plan_for(demand(1500), MODEL)
    assert plan.nodes == alone.nodes + 1
    assert plan.degraded is not None
    assert plan.degraded.good_share >= 0.99
    assert plan.expected.p99_s < plan.degraded.p99_s
    assert plan.cost_per_million == pytest.approx(plan.cores * 0.04 / (1500 * 3600) * 1e6)


def test_an_objective_that_one_request_misses_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match=r"objective of 2 ms is too tight: .* takes 3"):
        plan_for(demand(10, slo_s=0.002), MODEL)
    faster = Measured(latencies={1: LINE, 4: Latency(base_s=0.0005, per_row_s=0.0003)}, overheads=LOW)
    assert plan_for(demand(10, slo_s=0.002, cores=4), faster).layout.threads == 4
    with pytest.raises(FailedPrecondition, match="too tight"):
        plan_for(demand(10, slo_s=0.002, cores=2), faster)


def test_memory_binds() -> None:
    with pytest.raises(FailedPrecondition, match="one worker needs about 100 MiB, a node has 50 MiB"):
        plan_for(demand(10, memory_bytes=50 << 20), MODEL)
    loops = Measured(
        latencies={1: Latency(base_s=20e-6, per_row_s=1e-6)},
        memory_bytes=100 << 20,
        overheads=Overheads(turn_s=20e-6, decode_s=20e-6, encode_s=20e-6, network_s=0),
    )
    few = plan_for(demand(60_000, cores=4, memory_bytes=100 << 20), loops)
    assert few.layout.workers == 1
    assert few.binds == "memory"
    assert plan_for(demand(60_000, cores=4), loops).nodes < few.nodes


def test_the_event_loop_binds() -> None:
    slow = Overheads(turn_s=50e-6, decode_s=1e-3, encode_s=1e-3, network_s=0)
    plan = plan_for(demand(600, cores=1), Measured(latencies={1: LINE}, overheads=slow))
    assert plan.binds == "event loop"
    assert plan.nodes >= 2


def test_a_tight_objective_binds() -> None:
    plan = plan_for(demand(100, slo_s=0.008), MODEL)
    assert plan.binds == "latency objective"
    assert "batches of at most 2 rows" in plan.why


def test_a_model_that_is_not_merged_needs_more() -> None:
    alone = Measured(latencies={1: LINE}, merge=False, max_batch=1, overheads=LOW)
    assert plan_for(demand(1500), alone).nodes > plan_for(demand(1500), MODEL).nodes


def test_bursts_of_a_trace_need_more_than_its_mean(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    # 100 requests within a tenth of a second, every second.
    write_trace(path, (Arrival(second + i / 1000, model="model") for second in range(60) for i in range(100)))
    steady = plan_for(demand(100), MODEL)
    bursty = plan_for(demand(100, arrivals=Trace(path=str(path)), slo_s=0.02), MODEL)
    assert steady.nodes == 1
    assert bursty.nodes > 1
    assert bursty.expected.offered == pytest.approx(6000 / bursty.nodes, abs=1)
    other = tmp_path / "other.jsonl"
    write_trace(other, [Arrival(0.0, model="elsewhere")])
    with pytest.raises(InvalidArgument, match="no request of the trace asks model 'model'"):
        plan_for(demand(100, arrivals=Trace(path=str(other))), MODEL)


def test_thread_counts() -> None:
    assert list(thread_counts(1)) == [1]
    assert list(thread_counts(12)) == [1, 2, 4, 8]
