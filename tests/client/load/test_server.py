"""Every wire against a real server of ours, with inputs made from its metadata."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.client.load import LoadPlan, measure, run
from salver.client.load.plan import WRONG
from salver.client.load.search import find_capacity
from salver.core.errors import InvalidArgument, NotFound, SalverError
from salver.core.tensors import NUMPY_DTYPES
from salver.core.traces import Arrival
from salver.server.app import Server
from salver.server.settings import ServeSettings

BATCH: dict[str, Any] = {"concurrency": 4, "max_requests": 24, "duration_s": 0.0, "warmup_s": 0.0, "check": True}


def url_of(server: Server, wire: str) -> str:
    return f"grpc://{server.grpc_address}" if wire.endswith("grpc") else server.url


@pytest.mark.parametrize("datatype", NUMPY_DTYPES)
@pytest.mark.parametrize("wire", ["rest", "json", "grpc", "tfserving-rest", "tfserving-grpc"])
def test_every_wire_carries_every_datatype(server: Server, wire: Any, datatype: str) -> None:
    model = f"identity_{datatype.lower()}"
    plan = LoadPlan(url=url_of(server, wire), model=model, wire=wire, rows=3, int_range=(0, 100), **BATCH)
    if datatype == "BF16" and wire == "tfserving-rest":
        with pytest.raises(InvalidArgument, match="BF16"):
            run(plan)
        return
    result = run(plan)
    assert result.outcomes == {"OK": 24}
    assert (result.model, result.wire) == (model, wire)
    assert result.rows_per_s == pytest.approx(3 * result.throughput_per_s)


@pytest.mark.parametrize("wire", ["rest", "json", "grpc", "tfserving-rest", "tfserving-grpc"])
def test_answers_are_compared_with_those_expected(server: Server, wire: Any) -> None:
    rows = np.random.default_rng(0).random((5, 3)).astype(np.float32)
    given: dict[str, Any] = {"url": url_of(server, wire), "model": "identity_fp32", "wire": wire, "inputs": {"x": rows}}
    assert run(LoadPlan(**given, rows=2, expected={"y": rows}, **BATCH)).outcomes == {"OK": 24}
    other = np.roll(rows, 1, axis=0)
    assert run(LoadPlan(**given, rows=2, expected={"y": other}, **BATCH)).outcomes == {WRONG: 24}


def test_a_trace_is_sent_as_recorded(server: Server) -> None:
    trace = tuple(Arrival(at_s / 100, at_s % 3 + 1, "identity_fp32", at_s % 2, 5.0) for at_s in range(30))
    result, samples = measure(LoadPlan(url=server.url, trace=trace))
    assert result.outcomes == {"OK": 30}
    assert sorted(samples.due_s) == pytest.approx([arrival.at_s for arrival in trace], abs=1e-6)
    assert result.rows_per_s / result.throughput_per_s == pytest.approx(2)


def test_an_open_loop_sends_what_is_due_and_leaves_the_warm_up_out(server: Server) -> None:
    plan = LoadPlan(url=server.url, model="identity_fp32", rate_per_s=200, duration_s=1.0, warmup_s=0.5, slo_s=60)
    result, samples = measure(plan)
    assert result.requests == int(np.sum(samples.due_s >= 0.5)) < len(samples.due_s)
    assert result.failed == 0
    assert result.within_slo == 1.0
    assert result.offered_per_s == pytest.approx(result.requests / result.window_s)
    assert result.window_s == pytest.approx(0.5, abs=0.3)


def test_the_cpu_time_of_the_server_is_per_request(server: Server) -> None:
    plan = LoadPlan(url=server.url, model="identity_fp32", concurrency=8, duration_s=0.6, warmup_s=0.1, pid=os.getpid())
    result = run(plan)
    assert result.server_cpu_us is not None  # this process is server and generator in one
    assert result.server_cpu_us * 1.5 + 1e4 / result.requests * 2 >= result.generator.cpu_us > 0


def test_a_run_that_is_stopped_says_what_it_saw(server: Server) -> None:
    looks = []
    plan = LoadPlan(url=server.url, model="identity_fp32", concurrency=2, duration_s=60)
    result = run(plan, stop=lambda: len(looks) > 3, on_progress=looks.append)
    assert result.wall_s < 30
    assert looks[-1].under_way == 0


def test_a_model_that_is_not_there_is_an_error(server: Server) -> None:
    with pytest.raises(SalverError):
        run(LoadPlan(url=server.url, model="nobody", **BATCH))
    with pytest.raises(NotFound, match="name the one to ask"):
        run(LoadPlan(url=server.url, **BATCH))
    with pytest.raises(InvalidArgument, match="needs a URL that begins with grpc://"):
        run(LoadPlan(url=server.url, model="m", wire="grpc", **BATCH))


def test_unix_sockets(identities: Path, tmp_path: Path) -> None:
    http, grpc = tmp_path / "http", tmp_path / "grpc"
    with Server(ServeSettings(sources=(str(identities),), http=f"unix:{http}", grpc=f"unix:{grpc}")):
        for url in (f"http+unix://{http}", f"grpc+unix://{grpc}"):
            assert run(LoadPlan(url=url, model="identity_fp32", **BATCH)).outcomes == {"OK": 24}


def test_the_highest_rate_is_looked_for(server: Server) -> None:
    plan = LoadPlan(
        url=server.url, model="identity_fp32", rate_per_s=1, duration_s=0.3, warmup_s=0.05, slo_s=60.0, patience_s=5.0
    )
    told: list[Any] = []
    best, results = find_capacity(plan, probe_s=0.3, precision=0.3, on_result=told.append)
    assert best is not None
    assert told == results
    assert best.offered_per_s == max(result.offered_per_s for result in results)
    none, _ = find_capacity(
        LoadPlan(url=server.url, model="identity_fp32", rate_per_s=1, duration_s=0.2, warmup_s=0.0, slo_s=1e-9),
        probe_s=0.2,
        stop=lambda: len(told) > len(results) + 2,
        on_result=told.append,
    )
    assert none is None
