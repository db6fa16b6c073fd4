"""The engine in real time: real ONNX Runtime sessions, and models that really fail."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from salver.backends import find_backend, open_session
from salver.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SalverError,
    Unavailable,
)
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec
from salver.server._loop import new_event_loop
from salver.server.engine.base import InferRequest, Packed, Timing
from salver.server.engine.config import ModelConfig
from salver.server.engine.cost import CostModel
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.served import LoadedModel
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import RunSettings
from salver.testing.engine import FunctionSession, add_model

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=("batch", 2)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch", 2)),),
)


def double(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": inputs["x"] * 2}


class Asked:
    """One request and what became of it."""

    def __init__(self, value: float, rows: int = 1, **more: Any) -> None:
        self.result: Any = None
        self.timing: Timing | None = None
        self.calls = 0
        self.answered = asyncio.get_running_loop().create_future()
        self.request = InferRequest({"x": np.full((rows, 2), value, np.float32)}, rows, self._done, **more)

    def _done(self, result: Any, timing: Timing | None) -> None:
        self.calls += 1
        self.result, self.timing = result, timing
        if not self.answered.done():
            self.answered.set_result(None)


Scenario = Callable[[RealTimeEngine], Awaitable[None]]


@pytest.fixture(params=["uvloop", "asyncio"])
def play(request: pytest.FixtureRequest) -> Iterator[Callable[[Scenario], None]]:
    """Run a scenario on an event loop with a fresh engine, which is closed afterwards."""
    loop = new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()

    async def run(scenario: Scenario) -> None:
        engine = RealTimeEngine(Metrics())
        try:
            await asyncio.wait_for(scenario(engine), 30)
        finally:
            engine.close()

    yield lambda scenario: loop.run_until_complete(run(scenario))
    loop.close()


@pytest.mark.parametrize("inline", [True, False])
def test_concurrent_requests_share_a_batch_and_get_their_own_rows(play: Any, inline: bool) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        session = FunctionSession(SIGNATURE, double)
        model = add_model(engine, session, inline=inline)
        asked = [Asked(float(i), rows=1 + i % 3) for i in range(10)]
        for one in asked:
            engine.submit(model, one.request)
        await asyncio.gather(*(one.answered for one in asked))
        assert session.batches == [19]
        for i, one in enumerate(asked):
            np.testing.assert_array_equal(one.result["y"], np.full((1 + i % 3, 2), 2.0 * i))
            assert one.timing is not None
            assert one.timing.batch_rows == 19
            assert one.calls == 1

    play(scenario)


@pytest.mark.parametrize("inline", [True, False])
def test_a_real_network_answers_as_it_does_in_process(play: Any, inline: bool) -> None:
    blob = Blob.of(DIGITS)
    signature = find_backend("onnx").describe(blob)
    session = open_session(Model(format="onnx", signature=signature, blobs=(blob,)))
    spec = signature.inputs[0]
    shape = tuple(d if isinstance(d, int) else 1 for d in spec.shape)
    images = np.random.default_rng(0).random((20, *shape[1:])).astype(spec.dtype)

    async def scenario(engine: RealTimeEngine) -> None:
        model = add_model(engine, session, inline=inline)
        asked = [Asked(0.0) for _ in images]
        for one, image in zip(asked, images, strict=True):
            one.request.inputs = {spec.name: image[None]}
            engine.submit(model, one.request)
        await asyncio.gather(*(one.answered for one in asked))
        expected = session.run({spec.name: images})
        for i, one in enumerate(asked):
            for name, array in expected.items():
                np.testing.assert_allclose(one.result[name], array[i : i + 1], rtol=1e-4, atol=1e-5)

    play(scenario)


def test_a_batch_waits_for_what_every_further_turn_of_the_loop_brings(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("salver.server.engine.served.GATHER_S", 60.0)
    monkeypatch.setattr("salver.server.engine.served.INLINE_S", 60.0)  # whatever a first run takes on a busy machine

    async def scenario(engine: RealTimeEngine) -> None:
        session = FunctionSession(SIGNATURE, double)
        model = add_model(engine, session, inline=True, settings=RunSettings(max_batch=4))

        async def turns(*counts: int) -> list[int]:
            """Submit so many in each turn; the batches that were run at the end of the last."""
            for count in counts:
                for _ in range(count):
                    engine.submit(model, Asked(0.0).request)
                await asyncio.sleep(0)
            batches, session.batches = session.batches, []
            return batches

        assert await turns(1) == [1]  # nothing says that others are coming
        assert await turns(4) == [4]
        assert await turns(2, 1) == []
        assert await turns(0) == [3]
        assert await turns(2, 1, 1) == [4]
        assert await turns(3, 3) == [4]
        assert await turns(0, 0) == [2]

    play(scenario)


@pytest.mark.parametrize(
    ("gather_s", "how", "batches"),
    [
        (60.0, {"merge": False}, [1]),
        (60.0, {"config": ModelConfig(batch_sizes=(1, 2))}, [2]),
        (60.0, {"settings": RunSettings(max_batch=2)}, [2]),
        (0.0, {}, [2]),
        (60.0, {}, []),
    ],
    ids=["alone", "largest declared size", "largest batch", "no time left", "others may come"],
)
def test_a_batch_that_is_full_waits_for_nothing(
    play: Any, monkeypatch: pytest.MonkeyPatch, gather_s: float, how: dict[str, Any], batches: list[int]
) -> None:
    monkeypatch.setattr("salver.server.engine.served.GATHER_S", gather_s)
    monkeypatch.setattr("salver.server.engine.served.INLINE_S", 60.0)

    async def scenario(engine: RealTimeEngine) -> None:
        session = FunctionSession(SIGNATURE, double)
        model = add_model(engine, session, inline=True, **how)
        asked = [Asked(float(i)) for i in range(2)]
        for one in asked:
            engine.submit(model, one.request)
        await asyncio.sleep(0)
        assert session.batches == batches
        await asyncio.gather(*(one.answered for one in asked))

    play(scenario)


@pytest.mark.parametrize("packed", [(True, True, True), (True, False, True), (False, True, True), (True,)])
@pytest.mark.parametrize("sizes", [(), (1, 8)])
def test_bytes_and_arrays_share_a_batch(play: Any, packed: tuple[bool, ...], sizes: tuple[int, ...]) -> None:
    """The first run fails, so that each goes through a batch, its halves and a run alone."""
    failed = []

    def fail_once(inputs: Mapping[str, Any]) -> dict[str, Any]:
        assert type(inputs["x"]) is np.ndarray
        if not failed:
            failed.append(True)
            raise ZeroDivisionError
        return double(inputs)

    async def scenario(engine: RealTimeEngine) -> None:
        config = ModelConfig(batch_sizes=sizes)
        model = add_model(engine, FunctionSession(SIGNATURE, fail_once if len(packed) > 1 else double), config=config)
        asked = [Asked(float(i), rows=1 + i) for i in range(len(packed))]
        for is_packed, one in zip(packed, asked, strict=True):
            if is_packed:
                array = one.request.arrays()["x"]
                one.request.inputs = {"x": Packed(array.dtype, array.shape, array.tobytes())}
            engine.submit(model, one.request)
        await asyncio.gather(*(one.answered for one in asked))
        for i, one in enumerate(asked):
            np.testing.assert_array_equal(one.result["y"], np.full((1 + i, 2), 2.0 * i))

    play(scenario)


@pytest.mark.parametrize("inline", [True, False])
def test_a_bad_request_fails_alone(play: Any, inline: bool, caplog: pytest.LogCaptureFixture) -> None:
    def picky(inputs: Mapping[str, Any]) -> dict[str, Any]:
        if (inputs["x"] == 13).any():
            raise ZeroDivisionError("thirteen")
        return double(inputs)

    async def scenario(engine: RealTimeEngine) -> None:
        model = add_model(engine, FunctionSession(SIGNATURE, picky), inline=inline)
        asked = [Asked(float(i)) for i in range(10, 20)]
        for one in asked:
            engine.submit(model, one.request)
        await asyncio.gather(*(one.answered for one in asked))
        for i, one in enumerate(asked, 10):
            if i == 13:
                assert isinstance(one.result, Internal)
                assert "ZeroDivisionError: thirteen" in one.result.message
            else:
                np.testing.assert_array_equal(one.result["y"], [[2.0 * i, 2.0 * i]])
        assert engine.metrics.of(model).split_batches > 0

    play(scenario)
    assert "a model raised ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("inline", [True, False])
def test_a_request_that_failed_is_freed_at_once(play: Any, inline: bool) -> None:
    """Not when Python next looks for reference cycles: inputs may be large, and that may be long after."""

    def refuse(inputs: Mapping[str, Any]) -> dict[str, Any]:
        raise InvalidArgument("refused")

    async def scenario(engine: RealTimeEngine) -> None:
        model = add_model(engine, FunctionSession(SIGNATURE, refuse), inline=inline)
        answered = asyncio.get_running_loop().create_future()
        inputs = {"x": np.ones((1, 2), np.float32)}
        data = weakref.ref(inputs["x"])
        gc.disable()
        try:
            engine.submit(model, InferRequest(inputs, 1, lambda result, _: answered.set_result(type(result))))
            del inputs
            assert await answered is InvalidArgument
            until = asyncio.get_running_loop().time() + 5
            while data() is not None and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.005)
            assert data() is None
        finally:
            gc.enable()

    play(scenario)


@pytest.mark.parametrize("exit_with", [SystemExit(3), MemoryError("no"), InvalidArgument("refused")])
def test_whatever_a_model_raises_is_answered_and_the_lane_lives(play: Any, exit_with: BaseException) -> None:
    fail = True

    def moody(inputs: Mapping[str, Any]) -> dict[str, Any]:
        if fail:
            raise exit_with
        return double(inputs)

    async def scenario(engine: RealTimeEngine) -> None:
        nonlocal fail
        fail = True
        model = add_model(engine, FunctionSession(SIGNATURE, moody))
        first = Asked(1.0)
        engine.submit(model, first.request)
        await first.answered
        assert isinstance(first.result, SalverError)
        fail = False
        second = Asked(1.0)
        engine.submit(model, second.request)
        await second.answered
        np.testing.assert_array_equal(second.result["y"], [[2.0, 2.0]])

    play(scenario)


def test_wrong_row_counts_are_never_split_among_callers(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        short = add_model(engine, FunctionSession(SIGNATURE, lambda i: {"y": i["x"][:-1]}), name="short")
        scalar = add_model(engine, FunctionSession(SIGNATURE, lambda i: {"y": i["x"].sum()}), name="scalar")
        asked = [Asked(float(i)) for i in range(4)] + [Asked(1.0)]
        for one in asked[:4]:
            engine.submit(short, one.request)
        engine.submit(scalar, asked[4].request)
        await asyncio.gather(*(one.answered for one in asked))
        assert all(isinstance(one.result, Internal) for one in asked)
        assert "0 rows in output 'y' for 1 input rows" in asked[0].result.message
        assert "a scalar" in asked[4].result.message

    play(scenario)


def test_not_a_number_passes_through(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        model = add_model(engine, FunctionSession(SIGNATURE, double), inline=True)
        asked = Asked(float("nan"))
        engine.submit(model, asked.request)
        await asked.answered
        assert np.isnan(asked.result["y"]).all()

    play(scenario)


def test_different_keys_and_unsafe_models_are_not_merged(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        session, unsafe = FunctionSession(SIGNATURE, double), FunctionSession(SIGNATURE, double)
        safe_model = add_model(engine, session, name="safe")
        unsafe_model = add_model(engine, unsafe, name="unsafe", merge=False)
        asked = [Asked(float(i), key=i % 2) for i in range(6)] + [Asked(float(i)) for i in range(6, 9)]
        for one in asked[:6]:
            engine.submit(safe_model, one.request)
        for one in asked[6:]:
            engine.submit(unsafe_model, one.request)
        await asyncio.gather(*(one.answered for one in asked))
        assert session.batches == [3, 3]
        assert unsafe.batches == [1, 1, 1]
        assert [one.result["y"][0, 0] for one in asked] == [2.0 * i for i in range(9)]

    play(scenario)


class Gate:
    """A model that waits to be let through."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.entered.set()
        assert self.open.wait(30)
        return double(inputs)


async def occupy(engine: RealTimeEngine, model: LoadedModel, gate: Gate) -> Asked:
    """Make a lane busy."""
    asked = Asked(1.0)
    engine.submit(model, asked.request)
    await asyncio.to_thread(gate.entered.wait, 30)
    return asked


def test_ten_thousand_requests_are_bounded_and_all_answered(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        gate = Gate()
        model = add_model(engine, FunctionSession(SIGNATURE, gate))
        asked = [await occupy(engine, model, gate)]
        refused = []
        for i in range(10_000):
            one = Asked(float(i))
            try:
                engine.submit(model, one.request)
            except ResourceExhausted as error:
                refused.append(error)
            else:
                asked.append(one)
        assert len(asked) == 1025
        assert len(refused) == 10_000 - 1024
        assert all(error.retry_after_s is not None and error.retry_after_s > 0 for error in refused)
        assert model.gauges() == {"queued": 1024, "queued_rows": 1024, "running": 1}
        gate.open.set()
        await asyncio.gather(*(one.answered for one in asked))
        assert [one.result["y"][0, 0] for one in asked[1:]] == [2.0 * i for i in range(1024)]
        assert all(one.calls == 1 for one in asked)
        assert engine.metrics.of(model).refused == {"RESOURCE_EXHAUSTED": 10_000 - 1024}

    play(scenario)


def test_a_deadline_passes_in_the_queue_while_the_lane_is_busy(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        gate = Gate()
        session = FunctionSession(SIGNATURE, gate)
        model = add_model(engine, session, settings=RunSettings(default_timeout_s=0.05))
        first = await occupy(engine, model, gate)
        late = Asked(2.0)
        engine.submit(model, late.request)
        await late.answered
        assert isinstance(late.result, DeadlineExceeded)
        gate.open.set()
        await first.answered
        assert session.batches == [1]

    play(scenario)


def test_what_misses_the_objective_in_the_queue_is_refused_and_told_when_to_come_back(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        gate = Gate()
        session = FunctionSession(SIGNATURE, gate)
        model = add_model(engine, session, settings=RunSettings(slo_s=0.05, default_timeout_s=5.0))
        first = await occupy(engine, model, gate)
        assert model.oldest_run_s(monotonic()) > 0.0
        late = Asked(2.0)
        engine.submit(model, late.request)
        await late.answered
        assert isinstance(late.result, ResourceExhausted)
        assert late.result.reason == "slo"
        assert late.result.retry_after_s is not None
        gate.open.set()
        await first.answered
        assert session.batches == [1]
        assert model.oldest_run_s(monotonic()) == 0.0
        assert model.scheduler is not None
        assert model.scheduler.overhead_s > 0.0

    play(scenario)


def test_a_batch_is_padded_to_a_declared_size_and_only_its_rows_are_answered(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        session = FunctionSession(SIGNATURE, double)
        model = add_model(engine, session, config=ModelConfig(batch_sizes=(4, 8)))
        asked = [Asked(float(number)) for number in range(9)]
        for one in asked:
            engine.submit(model, one.request)
        await asyncio.gather(*(one.answered for one in asked))
        assert [one.result["y"].tolist() for one in asked] == [[[2.0 * i] * 2] for i in range(9)]
        assert session.batches == [8, 4]

    play(scenario)


def test_clients_take_turns(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        gate = Gate()
        model = add_model(engine, FunctionSession(SIGNATURE, gate), settings=RunSettings(max_batch=2))
        first = await occupy(engine, model, gate)
        asked = [Asked(float(number)) for number in range(5)]
        for one, client in zip(asked, "aaaab", strict=True):
            one.request.client = client
            engine.submit(model, one.request)
        gate.open.set()
        await asyncio.gather(first.answered, *(one.answered for one in asked))
        waited_s = [one.timing.queue_s for one in asked]
        assert max(waited_s[0], waited_s[4]) < min(waited_s[1:4])

    play(scenario)


def test_cancelled_requests_are_not_answered(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        gate = Gate()
        session = FunctionSession(SIGNATURE, gate)
        model = add_model(engine, session)
        running = await occupy(engine, model, gate)
        queued, other = Asked(2.0), Asked(3.0)
        engine.submit(model, queued.request)
        engine.submit(model, other.request)
        engine.cancel(model, running.request)
        engine.cancel(model, queued.request)
        gate.open.set()
        await other.answered
        assert (running.calls, queued.calls, other.calls) == (0, 0, 1)
        assert session.batches == [1, 1]

    play(scenario)


def test_an_answer_that_cancels_its_batch_mate_is_obeyed(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        model = add_model(engine, FunctionSession(SIGNATURE, double), inline=True)
        second = Asked(2.0)
        first = Asked(1.0)
        first.answered.add_done_callback(lambda _: None)
        answer = first.request.done

        def cancel_other(result: Any, timing: Timing | None) -> None:
            engine.cancel(model, second.request)
            answer(result, timing)

        first.request.done = cancel_other
        engine.submit(model, first.request)
        engine.submit(model, second.request)
        await first.answered
        await asyncio.sleep(0.01)
        assert second.calls == 0

    play(scenario)


def test_a_frontend_that_raises_does_not_cost_others_their_answer(play: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        model = add_model(engine, FunctionSession(SIGNATURE, double), inline=True)
        bad, good = Asked(1.0), Asked(2.0)

        def explode(_result: Any, _timing: Any) -> None:
            raise ConnectionResetError

        bad.request.done = explode
        engine.submit(model, bad.request)
        engine.submit(model, good.request)
        await good.answered
        assert good.result["y"][0, 0] == 4.0

    play(scenario)
    assert "a frontend failed to answer" in caplog.text


def test_drain_answers_what_waits_and_refuses_what_comes(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        gate = Gate()
        model = add_model(engine, FunctionSession(SIGNATURE, gate))
        assert engine.ready
        asked = [await occupy(engine, model, gate), Asked(2.0)]
        engine.submit(model, asked[1].request)
        draining = asyncio.ensure_future(engine.drain(30))
        await asyncio.sleep(0)
        assert not engine.ready
        with pytest.raises(Unavailable):
            engine.submit(model, Asked(3.0).request)
        gate.open.set()
        assert await draining
        assert [one.calls for one in asked] == [1, 1]

    play(scenario)


def test_a_drain_that_takes_too_long_refuses_what_waits(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        gate = Gate()
        model = add_model(engine, FunctionSession(SIGNATURE, gate))
        await occupy(engine, model, gate)
        waiting = Asked(2.0)
        engine.submit(model, waiting.request)
        assert not await engine.drain(0.02)
        engine.close()
        assert isinstance(waiting.result, Unavailable)
        gate.open.set()

    play(scenario)


def test_find_names_what_is_there(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        for version in ("2", "10"):
            add_model(engine, FunctionSession(SIGNATURE, double), version=version)
        broken = engine.add("broken", "1")
        broken.refuse("the golden requests failed")
        assert engine.find("m").version == "10"
        assert engine.find("m", "2").version == "2"
        with pytest.raises(NotFound, match="no model 'nope'; served: 'broken', 'm'"):
            engine.find("nope")
        with pytest.raises(NotFound, match="no version '3'; served: 2, 10"):
            engine.find("m", "3")
        with pytest.raises(Unavailable, match="UNAVAILABLE: the golden requests failed"):
            engine.find("broken")
        with pytest.raises(AlreadyExists):
            engine.add("m", "2")
        assert not engine.ready
        assert [(m.name, m.version, m.state) for m in engine.models()] == [
            ("m", "2", "READY"),
            ("m", "10", "READY"),
            ("broken", "1", "UNAVAILABLE"),
        ]

    play(scenario)


def test_a_version_that_becomes_ready_later_takes_over(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        add_model(engine, FunctionSession(SIGNATURE, double), version="2")
        late = engine.add("m", "10")
        assert engine.find("m").version == "2"
        assert not engine.ready
        late.open(FunctionSession(SIGNATURE, double), RunSettings(), merge=True, cost=CostModel())
        assert engine.find("m").version == "10"
        assert engine.ready
        engine.loading = True
        assert not engine.ready
        late.close()
        assert engine.find("m").version == "2"

    play(scenario)


def test_two_lanes_run_at_the_same_time(play: Any) -> None:
    async def scenario(engine: RealTimeEngine) -> None:
        both = threading.Barrier(2, timeout=30)

        def meet(inputs: Mapping[str, Any]) -> dict[str, Any]:
            both.wait()
            return double(inputs)

        model = add_model(engine, FunctionSession(SIGNATURE, meet), settings=RunSettings(lanes=2, max_batch=1))
        asked = [Asked(1.0), Asked(2.0)]
        for one in asked:
            engine.submit(model, one.request)
        await asyncio.gather(*(one.answered for one in asked))
        assert [one.result["y"][0, 0] for one in asked] == [2.0, 4.0]

    play(scenario)
