"""The simulator against queueing theory, and against schedulers that are broken on purpose."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from salver.core.errors import Internal, SalverError
from salver.core.traces import Arrival, write_trace
from salver.server.engine.base import InferRequest
from salver.server.engine.scheduler import Batch, Limits, Scheduler, WaitUntil
from salver.server.engine.served import GATHER_S, INLINE_S
from salver.server.planning import model as simulated
from salver.server.planning.ledger import Outcome
from salver.server.planning.scenario import (
    Closed,
    Fault,
    Fleet,
    Latency,
    Overheads,
    Poisson,
    Process,
    Scenario,
    SimulatedModel,
    Stream,
    Trace,
    Wake,
)
from salver.server.planning.simulator import simulate

NOTHING = Overheads(turn_s=0, decode_s=0, encode_s=0, handoff_s=0, merge_s=0, merge_row_s=0, network_s=0, inline_s=0)
RUN_S = 0.001
EXPONENTIAL = tuple(-math.log(1 - (i + 0.5) / 2000) for i in range(2000))


def queue(
    arrivals: Process, *, ratios: tuple[float, ...] = (), requests: int = 40_000, cores: int = 0, **model: Any
) -> Outcome:
    """A model that takes a millisecond a run, one row at a time unless told otherwise."""
    served = SimulatedModel(
        latency=Latency(base_s=RUN_S, ratios=ratios), **({"max_batch": 1, "max_queue": 1_000_000} | model)
    )
    return simulate(
        Scenario(
            name="queue",
            requests=requests,
            seed=3,
            models={"m": served},
            streams=(Stream(model="m", arrivals=arrivals),),
            fleet=Fleet(cores=cores or served.lanes),
            overheads=NOTHING,
        )
    )


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_lane_waits_as_pollaczek_and_khinchin_say(load: float) -> None:
    fixed = queue(Poisson(rate_per_s=load / RUN_S))
    assert fixed.mean_wait_s == pytest.approx(load * RUN_S / (2 * (1 - load)), rel=0.1)
    assert fixed.lanes_busy == pytest.approx(load, rel=0.03)
    random = queue(Poisson(rate_per_s=load / RUN_S), ratios=EXPONENTIAL)
    assert random.mean_wait_s == pytest.approx(load * RUN_S / (1 - load), rel=0.12)
    assert random.answered == random.offered
    # An M/M/1 queue's time in the system is exponential.
    assert random.p99_s == pytest.approx(-math.log(0.01) * RUN_S / (1 - load), rel=0.15)


def test_several_lanes_wait_as_erlang_says() -> None:
    lanes, load = 3, 0.8
    offered = lanes * load
    queued = offered**lanes / math.factorial(lanes) / (1 - load)
    waits = queued / (sum(offered**k / math.factorial(k) for k in range(lanes)) + queued)
    found = queue(Poisson(rate_per_s=offered / RUN_S), ratios=EXPONENTIAL, lanes=lanes, requests=80_000)
    assert found.mean_wait_s == pytest.approx(waits * RUN_S / (lanes - offered), rel=0.12)


def test_a_full_queue_refuses_as_a_finite_queue_does() -> None:
    load, places = 0.9, 4  # the one that runs, and three that wait
    found = queue(Poisson(rate_per_s=load / RUN_S), ratios=EXPONENTIAL, max_queue=places - 1, requests=60_000)
    refused = (1 - load) * load**places / (1 - load ** (places + 1))
    assert found.refused["RESOURCE_EXHAUSTED"] / found.offered == pytest.approx(refused, rel=0.05)


def test_lanes_share_too_few_cores() -> None:
    alone = queue(Closed(clients=1), requests=1000)
    assert alone.p50_s == pytest.approx(RUN_S)
    together = queue(Closed(clients=4), lanes=4, cores=2, requests=1000)
    assert together.p50_s == pytest.approx(2 * RUN_S, rel=0.01)
    assert together.offered / together.seconds == pytest.approx(2 / RUN_S, rel=0.02)


def test_waiting_requests_are_merged() -> None:
    found = queue(Closed(clients=64), max_batch=16, requests=20_000)
    assert found.batch_rows == pytest.approx(16, rel=0.01)
    assert found.offered / found.seconds == pytest.approx(16 / RUN_S, rel=0.01)


def test_what_the_event_loop_does_takes_time() -> None:
    scenario = Scenario(
        name="loop",
        requests=2000,
        models={"m": SimulatedModel(latency=Latency(base_s=10e-6))},
        streams=(Stream(model="m", arrivals=Closed(clients=8)),),
        overheads=msgspec.structs.replace(NOTHING, decode_s=30e-6, encode_s=20e-6, network_s=1e-3, inline_s=1e-3),
    )
    found = simulate(scenario)
    assert found.p50_s > 1e-3 + 50e-6
    slow = simulate(msgspec.structs.replace(scenario, faults=(Fault(kind="slow", at_s=0.0, for_s=1e9, factor=20.0),)))
    assert slow.p50_s > found.p50_s + 15 * 50e-6
    # Eight workers on one core take turns.
    near = msgspec.structs.replace(scenario, overheads=msgspec.structs.replace(scenario.overheads, network_s=0.0))
    crowd = msgspec.structs.replace(near, fleet=Fleet(workers=8, cores=1, routing="turns"))
    busy = msgspec.structs.replace(near, fleet=Fleet(workers=8, cores=8, routing="turns"))
    assert simulate(crowd).p50_s > 4 * simulate(busy).p50_s


def test_a_batch_on_the_event_loop_waits_while_requests_come() -> None:
    overheads = msgspec.structs.replace(
        NOTHING, turn_s=5e-6, decode_s=10e-6, encode_s=10e-6, network_s=100e-6, inline_s=1e-3
    )
    scenario = Scenario(
        name="gather",
        requests=5000,
        models={"m": SimulatedModel(latency=Latency(base_s=50e-6), max_batch=16, inline=True)},
        streams=(Stream(model="m", arrivals=Poisson(rate_per_s=40_000)),),
    )
    at_once, gathered = (
        simulate(msgspec.structs.replace(scenario, overheads=msgspec.structs.replace(overheads, gather_s=gather_s)))
        for gather_s in (0.0, 1e-3)
    )
    assert gathered.batch_rows > 1.1 * at_once.batch_rows
    assert gathered.violations == at_once.violations == ()


def replay(folder: Path, *at_s: float, cores: int = 1, slo_s: float = 0.0, **overheads: Any) -> Outcome:
    """Requests at these times, of which each takes a lane for 10 ms, alone."""
    path = folder / "trace.jsonl"
    write_trace(path, (Arrival(at) for at in at_s))
    return simulate(
        Scenario(
            name="replay",
            models={"m": SimulatedModel(latency=Latency(base_s=0.01), max_batch=1, slo_s=slo_s)},
            streams=(Stream(model="m", arrivals=Trace(path=str(path))),),
            fleet=Fleet(cores=cores),
            overheads=msgspec.structs.replace(NOTHING, **overheads),
        )
    )


def test_a_run_does_not_pay_for_what_its_turn_did_before_it(tmp_path: Path) -> None:
    found = replay(tmp_path, 0.0, decode_s=0.002, encode_s=0.001, turn_s=0.003)
    assert found.p50_s == pytest.approx(0.002 + 0.01 + 0.001 + 2 * 0.003)


def test_a_request_that_comes_during_a_run_disturbs_it(tmp_path: Path) -> None:
    # The second comes in the middle of the first's run: 10 ms, and 5 ms more.
    assert replay(tmp_path, 0.0, 0.005).mean_s == pytest.approx(0.0125)
    for disturbance in ("refill_s", "interrupt_s"):
        assert replay(tmp_path, 0.0, 0.005, **{disturbance: 0.001}).mean_s == pytest.approx(0.0135)
    for disturbance in ("refill_s", "interrupt_s", "wait_s"):
        assert replay(tmp_path, 0.0, 0.005, cores=2, **{disturbance: 0.001}).mean_s == pytest.approx(0.0125)
    late = replay(tmp_path, 0.0, 0.005, wait_s=0.001)
    assert late.mean_s == pytest.approx(0.0125)
    assert late.mean_wait_s == pytest.approx(0.002)


def test_who_slept_takes_longer(tmp_path: Path) -> None:
    wake = (Wake(slept_s=0.1, loop_s=0.001, lane_s=0.002), Wake(slept_s=0.5, loop_s=0.003, lane_s=0.002))
    overheads = Overheads(wake=wake)
    assert [overheads.waking_s(slept_s) for slept_s in (0.0, 0.05, 0.1, 0.3, 0.5, 9.0)] == [
        pytest.approx(pair)
        for pair in ((0.0, 0.0), (0.0005, 0.001), (0.001, 0.002), (0.002, 0.002), (0.003, 0.002), (0.003, 0.002))
    ]
    found = replay(tmp_path, 0.0, 1.0, wake=wake)
    assert found.mean_s == pytest.approx(0.01 + 0.005 / 2)


def test_a_refusal_takes_time(tmp_path: Path) -> None:
    at_s = (0.0, *(0.001 for _ in range(30)))
    quick, slow = (replay(tmp_path, *at_s, slo_s=0.025, encode_s=seconds) for seconds in (0.0, 50e-6))
    assert slow.refused["RESOURCE_EXHAUSTED"] > 20
    assert slow.p50_s > quick.p50_s + 0.001


def test_the_same_scenario_gives_the_same_outcome() -> None:
    first, second = (queue(Poisson(rate_per_s=500), ratios=EXPONENTIAL, requests=3000) for _ in range(2))
    assert first == second


class Loses(Scheduler):
    """Forgets a request now and then."""

    def submit(self, request: InferRequest, now: float) -> None:
        if request.number % 100 == 7:  # type: ignore[attr-defined]
            return
        super().submit(request, now)


class AnswersTwice(Scheduler):
    """Refuses what it has answered."""

    def complete(self, batch: Batch, *args: Any, **kwargs: Any) -> None:
        super().complete(batch, *args, **kwargs)
        self.mine = batch.requests[0]

    def take_refused(self) -> list[tuple[InferRequest, SalverError]]:
        return [*super().take_refused(), *([(self.mine, Internal(""))] if hasattr(self, "mine") else ())]


class MixesUp(Scheduler):
    """Turns a batch round while it runs."""

    def complete(self, batch: Batch, *args: Any, **kwargs: Any) -> None:
        batch.requests.reverse()
        super().complete(batch, *args, **kwargs)


class StartsLate(Scheduler):
    """Its clock is slow."""

    def next_batch(self, lane: int, now: float) -> Batch | WaitUntil | None:
        found = super().next_batch(lane, now - 0.1)
        if isinstance(found, Batch):
            found.started_s = now
        return found


class Hoards(Scheduler):
    """Takes whatever comes."""

    def __init__(self, limits: Limits, **kwargs: Any) -> None:
        super().__init__(msgspec.structs.replace(limits, max_queue=10**6), **kwargs)


class Starves(Scheduler):
    """Lets some wait for no reason."""

    def submit(self, request: InferRequest, now: float) -> None:
        request.arrived_s = now
        if request.number % 100 == 7 and now < 0.5:  # type: ignore[attr-defined]
            self.later = [*getattr(self, "later", []), request]
        else:
            super().submit(request, now)
        if now > 0.5 and self.queued <= 20:  # where all find room
            for forgotten in self.__dict__.pop("later", []):
                arrived_s = forgotten.arrived_s
                super().submit(forgotten, now)
                forgotten.arrived_s = arrived_s


class MergesAll(Scheduler):
    """Merges what must not be."""

    def submit(self, request: InferRequest, now: float) -> None:
        key, request.key = request.key, None
        super().submit(request, now)
        request.key = key


class BadBooks(Scheduler):
    """Miscounts bytes."""

    def complete(self, batch: Batch, *args: Any, **kwargs: Any) -> None:
        super().complete(batch, *args, **kwargs)
        self.queued_bytes += batch.rows > 20


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (Loses, "never ended"),
        (AnswersTwice, "ended twice"),
        (MixesUp, "were changed while it ran"),
        (StartsLate, "s late"),
        (Hoards, "requests wait, at most"),
        (Starves, "waited"),
        (MergesAll, "another key or priority"),
        (BadBooks, "do not balance"),
    ],
)
def test_a_broken_scheduler_is_found_out(
    broken: Callable[..., Scheduler], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = Scenario(
        name="broken",
        requests=3000,
        max_wait_s=0.2,
        models={"m": SimulatedModel(latency=Latency(base_s=0.002, per_row_s=0.0003), max_queue=40)},
        streams=(
            Stream(model="m", arrivals=Poisson(rate_per_s=3000), keys=2),
            Stream(model="m", arrivals=Poisson(rate_per_s=700), timeout_s=0.02),
        ),
    )
    assert simulate(scenario).violations == ()
    monkeypatch.setattr(simulated, "Scheduler", broken)
    assert told in " ".join(simulate(scenario).violations)


def test_the_simulated_server_runs_inline_what_the_real_one_does() -> None:
    assert (Overheads().inline_s, Overheads().gather_s) == (INLINE_S, GATHER_S)
