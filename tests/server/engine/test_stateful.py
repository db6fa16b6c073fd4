"""Models with state on the real-time engine: states hidden and kept, control inputs, rows; a real voice detector."""

from __future__ import annotations

import asyncio
import importlib.metadata
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from salver.backends import find_backend, open_session
from salver.backends.base import Session
from salver.bundle import Bundle, Contents, make_golden, seal
from salver.core.arrays import Array
from salver.core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    SalverError,
    Unavailable,
    UnknownName,
)
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec
from salver.server._loop import new_event_loop
from salver.server.engine.base import InferRequest, SequenceStep, ServedModel
from salver.server.engine.config import ControlConfig, ModelConfig, SequenceConfig, StateConfig
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.lanes import execute_slots
from salver.server.engine.loading import load
from salver.server.engine.scheduler import Batch
from salver.server.engine.served import LoadedModel
from salver.server.engine.stateful import Stateful
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import RunSettings
from salver.testing.engine import FunctionSession, add_model
from tests.server.engine.speech import make_speech

Strategy = Literal["direct", "oldest"]
BOTH: tuple[Strategy, ...] = ("oldest", "direct")


def tensor(name: str, datatype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def signature(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Signature:
    return Signature(inputs=tuple(inputs), outputs=tuple(outputs))


LSTM = Signature(
    inputs=(tensor("x", "FP32", "batch", "width"), tensor("h", "FP32", 2, "batch", 3)),
    outputs=(tensor("y", "FP32", "batch", 1), tensor("h2", "FP32", "layers", "batch", "cells")),
)
STATES = (StateConfig(input="h", output="h2", initial=0.5),)


def accumulate(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Adds the sum of x to every cell; answers the first. The batch stands second in the state."""
    h2 = inputs["h"] + inputs["x"].sum(axis=1)[None, :, None].astype(np.float32)
    return {"y": h2[0, :, :1], "h2": h2}


class Asked:
    """One step of a sequence, and what became of it."""

    def __init__(self, name: int | str | None, inputs: Any, start: bool = False, end: bool = False) -> None:
        self.result: Any = None
        self.answered = asyncio.get_running_loop().create_future()
        sequence = None if name is None else SequenceStep(name, start, end)
        if not isinstance(inputs, dict):
            inputs = {"x": np.full((1, 2), inputs, np.float32)}
        self.request = InferRequest(inputs, 1, self._done, sequence=sequence)

    def _done(self, result: Any, _timing: Any) -> None:
        self.result = result
        if not self.answered.done():
            self.answered.set_result(None)


@pytest.fixture(params=["uvloop", "asyncio"])
def play(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], None]]:
    loop = new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()

    async def run(scenario: Any) -> None:
        engine = RealTimeEngine(Metrics())
        try:
            await asyncio.wait_for(scenario(engine), 60)
        finally:
            engine.close()

    yield lambda scenario: loop.run_until_complete(run(scenario))
    loop.close()


async def stream(engine: RealTimeEngine, model: ServedModel, asked: list[Asked]) -> None:
    for one in asked:
        engine.submit(model, one.request)
    await asyncio.gather(*(one.answered for one in asked))


def sequence_config(strategy: Strategy = "oldest", **more: Any) -> ModelConfig:
    return ModelConfig(sequence=SequenceConfig(strategy=strategy, **{"states": STATES, **more}))


class TestSignature:
    def test_clients_do_not_see_states_and_controls(self) -> None:
        signature = Signature(inputs=(*LSTM.inputs, tensor("START", "BOOL", "batch")), outputs=LSTM.outputs)
        controls = (ControlConfig(input="START", kind="start"),)
        stateful = Stateful(signature, SequenceConfig(states=STATES, controls=controls))
        assert [spec.name for spec in stateful.served.inputs] == ["x"]
        assert stateful.served.output_names == ("y",)
        assert stateful.batched

    def test_its_view_has_the_batch_in_front(self) -> None:
        stateful = Stateful(LSTM, SequenceConfig(states=STATES))
        view = stateful.view(FunctionSession(LSTM, accumulate))
        assert view.signature.input("h").shape == ("batch", 2, 3)
        assert view.signature.batch_dim == "batch"
        rng = np.random.default_rng(0)
        x, h = rng.random((4, 2), np.float32), rng.random((4, 2, 3), np.float32)
        together = view.run({"x": x, "h": h})
        for i in range(4):
            alone = view.run({"x": x[i : i + 1], "h": h[i : i + 1]}, ["h2", "y"])
            assert list(alone) == ["h2", "y"]
            np.testing.assert_array_equal(alone["h2"], together["h2"][i : i + 1])

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (SequenceConfig(states=(StateConfig(input="g", output="h2"),)), "Did you mean|unknown input 'g'"),
            (SequenceConfig(states=(StateConfig(input="h", output="g"),)), "unknown output 'g'"),
            (SequenceConfig(states=(StateConfig(input="x", output="i"),)), "'x' is FP32, but its output 'i' is INT8"),
            (SequenceConfig(states=STATES * 2), "named twice"),
            (SequenceConfig(max_sequences=0), "sequence.max_sequences: got 0"),
            (SequenceConfig(idle_timeout_s=float("nan")), "sequence.idle_timeout_s: got nan"),
            (SequenceConfig(controls=(ControlConfig(input="x", kind="corrid"),)), "a whole number or BYTES"),
            (SequenceConfig(controls=(ControlConfig(input="t", kind="ready"),)), "is BYTES; expected numbers"),
            (SequenceConfig(controls=(ControlConfig(input="n", kind="start", on=0.5),)), "no value 0.5"),
            (SequenceConfig(controls=(ControlConfig(input="n", kind="start", on=300),)), "no value 300"),
        ],
    )
    def test_what_does_not_fit_is_named(self, config: SequenceConfig, message: str) -> None:
        more = (tensor("t", "BYTES", "batch"), tensor("n", "INT8", "batch"))
        signature = Signature(inputs=(*LSTM.inputs, *more), outputs=(*LSTM.outputs, tensor("i", "INT8", "batch")))
        with pytest.raises(InvalidArgument, match=message):
            Stateful(signature, config)

    def test_something_is_left_for_clients(self) -> None:
        signature = Signature(inputs=LSTM.inputs[1:], outputs=LSTM.outputs)
        with pytest.raises(InvalidArgument, match="leave no input"):
            Stateful(signature, SequenceConfig(states=STATES))

    def test_an_initial_state_takes_open_sizes_from_the_inputs_else_one(self) -> None:
        signature = Signature(
            inputs=(tensor("x", "FP32", "time", 2), tensor("h", "FP32", "time", "cells"), tensor("b", "BF16", 2)),
            outputs=(tensor("y", "FP32", 1), tensor("h2", "FP32", "time", "cells"), tensor("b2", "BF16", 2)),
        )
        states = (StateConfig(input="h", output="h2", initial=-1), StateConfig(input="b", output="b2", initial=1))
        stateful = Stateful(signature, SequenceConfig(states=states))
        made = stateful.initial({"x": np.zeros((5, 2), np.float32)})
        np.testing.assert_array_equal(made["h"], np.full((5, 1), -1, np.float32))
        np.testing.assert_array_equal(made["b"], np.full(2, 0x3F80, np.uint16))
        assert not stateful.batched


class TestEngine:
    @pytest.mark.parametrize("inline", [True, False])
    @pytest.mark.parametrize("strategy", BOTH)
    def test_interleaved_sequences_keep_their_own_state(self, play: Any, strategy: Strategy, inline: bool) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            session = FunctionSession(LSTM, accumulate)
            model = add_model(engine, session, inline=inline, config=sequence_config(strategy))
            assert model.signature.output_names == ("y",)
            rng = np.random.default_rng(1)
            values = rng.integers(0, 100, (6, 10))
            asked = [
                Asked(name, float(values[name - 1, i]), start=i == 0, end=i == 9)
                for i in range(10)
                for name in range(1, 7)
            ]
            await stream(engine, model, asked)
            for k, one in enumerate(asked):
                i, name = divmod(k, 6)
                assert list(one.result) == ["y"]
                np.testing.assert_array_equal(one.result["y"], [[0.5 + 2 * values[name, : i + 1].sum()]])
            assert session.batches == [6] * 10
            assert model.gauges()["sequences"] == 0
            assert model.idle

        play(scenario)

    def test_the_rows_of_a_batch_do_not_live_as_long_as_a_sequence(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            model = add_model(engine, FunctionSession(LSTM, accumulate), config=sequence_config())
            await stream(engine, model, [Asked(name, 1.0, start=True) for name in (1, 2)])
            scheduler: Any = model._scheduler
            states = [sequence.state["h"] for sequence in scheduler._live.values()]
            assert len(states) == 2
            assert all(state.base is None for state in states)

        play(scenario)

    def test_a_failure_keeps_the_state_and_says_so(self, play: Any) -> None:
        def picky(inputs: Mapping[str, Array]) -> dict[str, Array]:
            if (inputs["x"] == 13).any():
                raise InvalidArgument("thirteen")
            return accumulate(inputs)

        async def scenario(engine: RealTimeEngine) -> None:
            session = FunctionSession(LSTM, picky)
            model = add_model(engine, session, config=sequence_config())
            asked = [Asked(1, 1.0, start=True), Asked(1, 13.0), Asked(1, 2.0)]
            await stream(engine, model, asked)
            assert isinstance(asked[1].result, InvalidArgument)
            assert "thirteen (the sequence keeps the state it had before" in asked[1].result.message
            np.testing.assert_array_equal(asked[2].result["y"], [[0.5 + 2 + 4]])
            assert session.batches == [1, 1, 1]

        play(scenario)

    def test_requests_without_a_sequence_are_refused(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            model = add_model(engine, FunctionSession(LSTM, accumulate), config=sequence_config())
            with pytest.raises(InvalidArgument, match="'sequence_id'"):
                engine.submit(model, Asked(None, 1.0).request)
            assert engine.metrics.of(model).refused == {"INVALID_ARGUMENT": 1}

        play(scenario)

    @pytest.mark.parametrize("inline", [True, False])
    def test_an_idle_sequence_is_freed_though_nothing_else_happens(self, play: Any, inline: bool) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            config = sequence_config(idle_timeout_s=0.05)
            model = add_model(engine, FunctionSession(LSTM, accumulate), inline=inline, config=config)
            await stream(engine, model, [Asked(1, 1.0, start=True)])
            assert model.gauges()["sequences"] == 1
            until = asyncio.get_running_loop().time() + 10
            while model.gauges()["sequences"] and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.01)
            assert model.gauges()["sequences"] == 0

        play(scenario)

    def test_a_cancelled_step_lets_the_next_one_run(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            model = add_model(engine, FunctionSession(LSTM, accumulate), config=sequence_config())
            await stream(engine, model, [Asked(1, 1.0, start=True)])
            gone, kept = Asked(1, 2.0), Asked(1, 3.0)
            for one in (gone, kept):
                engine.submit(model, one.request)
            engine.cancel(model, gone.request)
            await kept.answered
            np.testing.assert_array_equal(kept.result["y"], [[0.5 + 2 + 6]])
            assert gone.result is None

        play(scenario)

    def test_a_drain_answers_what_waits_in_sequences(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            settings = RunSettings(max_batch=1)
            config = sequence_config("direct")
            model = add_model(engine, FunctionSession(LSTM, accumulate), settings=settings, config=config)
            asked = [Asked(name, 1.0, start=i == 0) for name in (1, 2, 3) for i in range(3)]
            for one in asked:
                engine.submit(model, one.request)
            assert await engine.drain(30)
            assert [one.result["y"][0, 0] for one in asked] == [2.5, 4.5, 6.5] * 3
            with pytest.raises(Unavailable):
                engine.submit(model, Asked(4, 1.0, start=True).request)

        play(scenario)

    def test_unloading_refuses_what_waits(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            model = add_model(engine, FunctionSession(LSTM, accumulate), config=sequence_config())
            asked = [Asked(1, 1.0, start=i == 0) for i in range(3)]
            for one in asked:
                engine.submit(model, one.request)
            model.close()
            assert all(isinstance(one.result, Unavailable) for one in asked)

        play(scenario)

    def test_states_that_change_their_shape_are_not_merged_with_others(self, play: Any) -> None:
        """A cache of past steps grows by one with each."""
        signature = Signature(
            inputs=(tensor("x", "FP32", "batch", 2), tensor("past", "FP32", "batch", "steps", 2)),
            outputs=(tensor("y", "FP32", "batch", 2), tensor("present", "FP32", "batch", "more", 2)),
        )

        def remember(inputs: Mapping[str, Array]) -> dict[str, Array]:
            present = np.concatenate([inputs["past"], inputs["x"][:, None]], axis=1)
            return {"y": present.sum(axis=1), "present": present}

        async def scenario(engine: RealTimeEngine) -> None:
            config = sequence_config(states=(StateConfig(input="past", output="present"),))
            session = FunctionSession(signature, remember)
            model = add_model(engine, session, config=config)
            await stream(engine, model, [Asked(1, 1.0, start=True)])
            asked = [Asked(1, 2.0), Asked(2, 5.0, start=True)]
            await stream(engine, model, asked)
            assert [one.result["y"][0, 0] for one in asked] == [3.0, 5.0]
            assert session.batches == [1, 1, 1]

        play(scenario)

    def test_an_output_lost_by_the_model_is_its_failure(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            session = FunctionSession(LSTM, lambda i: {**accumulate(i), "h2": i["h"][:, :0]})
            model = add_model(engine, session, config=sequence_config())
            asked = [Asked(1, 1.0, start=True)]
            await stream(engine, model, asked)
            assert isinstance(asked[0].result, Internal)
            assert "0 rows in output 'h2'" in asked[0].result.message
            assert model.gauges()["sequences"] == 0

        play(scenario)


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("strategy", BOTH)
def test_nothing_is_left_waiting_whatever_clients_do(play: Any, strategy: Strategy, inline: bool) -> None:
    """Streams of many clients, pipelined and not, that go away, set deadlines, and meet failures."""
    pick = random.Random(5)

    def moody(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if pick.random() < 0.02:
            raise Internal("a bad day")
        return accumulate(inputs)

    async def client(engine: RealTimeEngine, model: ServedModel, name: int) -> int:
        answered = 0
        for _ in range(3):
            length, start = pick.randrange(1, 12), True
            open_: list[Asked] = []
            for i in range(length):
                one = Asked(name, 1.0, start=start, end=i == length - 1)
                if pick.random() < 0.2:
                    one.request.deadline_s = monotonic() + pick.choice([0.0001, 0.01, 10.0])
                try:
                    engine.submit(model, one.request)
                except (DeadlineExceeded, ResourceExhausted, InvalidArgument):  # the last, when it idled too long
                    break
                start = False
                if pick.random() < 0.1:
                    engine.cancel(model, one.request)
                    continue
                open_.append(one)
                if pick.random() < 0.4:
                    await one.answered
                    if isinstance(one.result, SalverError):
                        break
            await asyncio.gather(*(one.answered for one in open_))
            good = [float(one.result["y"][0, 0]) for one in open_ if not isinstance(one.result, SalverError)]
            assert good == sorted(set(good)), "each step adds two to what the steps before it left"
            answered += len(open_)
        return answered

    async def scenario(engine: RealTimeEngine) -> None:
        settings = RunSettings(max_batch=8, lanes=2)
        config = sequence_config(strategy, idle_timeout_s=0.02)
        model = add_model(engine, FunctionSession(LSTM, moody), inline=inline, settings=settings, config=config)
        counts = await asyncio.gather(*(client(engine, model, name) for name in range(1, 41)))
        assert sum(counts) > 200
        assert await engine.drain(10)
        assert not any(model.gauges().values())

    play(scenario)


CONTROLS = (
    ControlConfig(input="START", kind="start"),
    ControlConfig(input="END", kind="end", off=-1.0, on=1.0),
    ControlConfig(input="READY", kind="ready"),
    ControlConfig(input="CORRID", kind="corrid"),
)


class OwnState:
    """A model that keeps its state itself, by row or by the sequence's id, as its control inputs tell it."""

    def __init__(self, by_row: bool) -> None:
        self.by_row = by_row
        self.sums: dict[Any, float] = {}
        self.seen: list[dict[str, Any]] = []

    @property
    def signature(self) -> Signature:
        datatype = "UINT64" if self.by_row else "BYTES"
        return Signature(
            inputs=(
                tensor("x", "FP32", "batch", 2),
                tensor("START", "BOOL", "batch"),
                tensor("END", "FP32", "batch", 1),
                tensor("READY", "INT32", "batch"),
                tensor("CORRID", datatype, "batch"),
            ),
            outputs=(tensor("y", "FP32", "batch", 1),),
        )

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.seen.append({name: array.ravel().tolist() for name, array in inputs.items() if name != "x"})
        out = np.zeros((len(inputs["x"]), 1), np.float32)
        for row, x in enumerate(inputs["x"]):
            if inputs["READY"][row]:
                key = row if self.by_row else inputs["CORRID"][row]
                before = 0.0 if inputs["START"][row] else self.sums[key]
                self.sums[key] = out[row, 0] = before + x.sum()
        return {"y": out}


class TestControls:
    def test_a_row_without_a_request_is_not_ready(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            own = OwnState(by_row=True)
            config = sequence_config("direct", states=(), controls=CONTROLS)
            model = add_model(engine, FunctionSession(own.signature, own), settings=RunSettings(lanes=4), config=config)
            assert len(model._lanes) == 1
            await stream(engine, model, [Asked(name, 1.0, start=True) for name in (11, 12, 13)])
            asked = [Asked(13, 2.0), Asked(11, 3.0, end=True)]
            await stream(engine, model, asked)
            assert [one.result["y"][0, 0] for one in asked] == [6.0, 8.0]
            assert own.seen[-1] == {
                "START": [False, False, False],
                "END": [1.0, -1.0, -1.0],
                "READY": [1, 0, 1],
                "CORRID": [11, 0, 13],
            }

        play(scenario)

    def test_a_model_that_goes_by_the_sequences_id_gets_the_oldest_requests(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            own = OwnState(by_row=False)
            config = sequence_config(states=(), controls=CONTROLS)
            model = add_model(engine, FunctionSession(own.signature, own), config=config)
            await stream(engine, model, [Asked(name, 1.0, start=True) for name in ("a", "b", 7)])
            asked = [Asked(7, 2.0), Asked("a", 3.0)]
            await stream(engine, model, asked)
            assert [one.result["y"][0, 0] for one in asked] == [6.0, 8.0]
            assert own.seen[-1]["CORRID"] == ["7", "a"]

        play(scenario)

    def test_a_row_that_nobody_has_is_empty_text(self) -> None:
        seen: list[list[str]] = []

        def shout(inputs: Mapping[str, Array]) -> dict[str, Array]:
            seen.append(inputs["t"].tolist())
            return {"u": np.char.upper(inputs["t"].astype(str)).astype(object)}

        texts = signature([tensor("t", "BYTES", "batch")], [tensor("u", "BYTES", "batch")])
        requests = [InferRequest({"t": np.array([text], object)}, 1, lambda *_: None) for text in ("b", "a")]
        batch = Batch(requests, 2, 0, 0.0)
        batch.slots = [3, 1]
        answers = execute_slots(FunctionSession(texts, shout), {}, batch)
        assert seen == [["", "a", "", "b"]]
        assert [answer["u"].tolist() for answer in answers] == [["B"], ["A"]]

    def test_a_model_without_a_batch_dimension_has_one_sequence_at_a_time(self, play: Any) -> None:
        sums = [0.0]

        def add(inputs: Mapping[str, Array]) -> dict[str, Array]:
            sums.append(float(inputs["x"][0]) + (0.0 if inputs["START"] else sums[-1]))
            return {"y": np.asarray(sums[-1], np.float32)}

        async def scenario(engine: RealTimeEngine) -> None:
            own = signature([tensor("x", "FP32", 1), tensor("START", "BOOL")], [tensor("y", "FP32")])
            config = sequence_config("direct", states=(), controls=CONTROLS[:1])
            model = add_model(engine, FunctionSession(own, add), config=config, inline=True)
            asked = [
                Asked(name, {"x": np.ones(1, np.float32)}, start=i == 0, end=i == 2)
                for i in range(3)
                for name in (1, 2)
            ]
            await stream(engine, model, asked)
            assert [float(one.result["y"]) for one in asked] == [1, 1, 2, 2, 3, 3]
            assert model.idle

        play(scenario)

    def test_an_id_that_the_model_cannot_take_is_refused(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            own = OwnState(by_row=True)
            config = sequence_config("direct", states=(), controls=CONTROLS)
            model = add_model(engine, FunctionSession(own.signature, own), config=config)
            with pytest.raises(InvalidArgument, match="takes it as UINT64: expected a whole number"):
                engine.submit(model, Asked("text", 1.0, start=True).request)

        play(scenario)


def open_silero(name: str) -> tuple[Model, Session]:
    """A network of the `silero-vad` package, whose Python code (which needs PyTorch) is not imported."""
    path = Path(str(importlib.metadata.distribution("silero-vad").locate_file(f"silero_vad/data/{name}.onnx")))
    blob = Blob.of(path)
    model = Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob,))
    return model, open_session(model)


VAD = (StateConfig(input="state", output="stateN"),)
CHUNK, CONTEXT = 512, 64


def chunks(audio: Array) -> list[dict[str, Array]]:
    """Requests of one stream: 512 samples, with the 64 before them, as the package's own wrapper makes them."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), audio])
    return [
        {"input": padded[None, i : i + CONTEXT + CHUNK], "sr": np.asarray(16_000, np.int64)}
        for i in range(0, len(audio) - CHUNK + 1, CHUNK)
    ]


def detect(session: Session, audio: Array) -> Array:
    """The loop that a program would run itself."""
    state = np.zeros((2, 1, 128), np.float32)
    found = []
    names = {spec.name for spec in session.signature.inputs}
    for chunk in chunks(audio):
        inputs = {name: array for name, array in {**chunk, "state": state}.items() if name in names}
        outputs = session.run(inputs)
        state = outputs["stateN"]
        found.append(outputs["output"])
    return np.concatenate(found)


class TestSileroVad:
    @pytest.mark.parametrize("name", ["silero_vad", "silero_vad_half"])
    @pytest.mark.parametrize("strategy", BOTH)
    def test_streams_give_what_a_loop_gives_bit_for_bit(self, play: Any, strategy: Strategy, name: str) -> None:
        """The first takes the rate as a scalar, so that it runs one request at a time; the second is batched."""
        model, session = open_silero(name)
        config = sequence_config(strategy, states=VAD)
        loaded = load(Bundle.wrap(model, "vad", "raw"), RunSettings(), config)
        assert loaded.merge == (name == "silero_vad_half"), loaded.merge_reason
        audio = [make_speech(seed, 1.5) for seed in range(5)]
        expected = [detect(session, one) for one in audio]
        assert all(one.max() > 0.8 > 0.2 > one.min() for one in expected), "it must have something to tell apart"

        async def scenario(engine: RealTimeEngine) -> None:
            served = engine.add("vad", "1")
            served.open(loaded.session, RunSettings(), merge=loaded.merge, cost=loaded.cost, config=config)
            names = {spec.name for spec in served.signature.inputs}
            assert "state" not in names
            streams = [chunks(one) for one in audio]
            last = len(streams[0]) - 1
            asked: list[list[Asked]] = [[] for _ in audio]
            for i in range(last + 1):
                for k, one in enumerate(streams):
                    inputs = {key: array for key, array in one[i].items() if key in names}
                    served.signature.check(inputs)
                    asked[k].append(Asked(k + 1, inputs, start=i == 0, end=i == last))
                    engine.submit(served, asked[k][-1].request)
                if i % 3 == 0:  # some wait for their answers, some do not
                    await asyncio.gather(*(one[-1].answered for one in asked))
            await asyncio.gather(*(one[-1].answered for one in asked))
            for got, wanted in zip(asked, expected, strict=True):
                np.testing.assert_array_equal(np.concatenate([one.result["output"] for one in got]), wanted)
            rows = engine.metrics.of(served).batch_rows
            assert (rows.count < len(audio) * (last + 1)) == loaded.merge
            assert served.gauges()["sequences"] == 0

        play(scenario)
        session.close()

    def test_streamed_equals_one_call_over_the_whole_recording(self, play: Any) -> None:
        """The package has the same network with the loop inside the graph, too."""
        audio = make_speech(3, 3.0)
        _, whole = open_silero("silero_vad_16k_sequence")
        frames = np.concatenate([chunk["input"] for chunk in chunks(audio)])
        start = np.zeros((1, 1, 128), np.float32)
        in_one_go = whole.run({whole.signature.inputs[0].name: frames, "h": start, "c": start})["speech_probs"]
        _, session = open_silero("silero_vad")

        async def scenario(engine: RealTimeEngine) -> None:
            served = add_model(engine, session, config=sequence_config(states=VAD))
            asked = [Asked("a", chunk, start=i == 0) for i, chunk in enumerate(chunks(audio))]
            await stream(engine, served, asked)
            np.testing.assert_allclose(np.concatenate([one.result["output"][0] for one in asked]), in_one_go, atol=1e-5)

        play(scenario)
        whole.close()


def make_accumulator(path: Path) -> Model:
    """``y = s2 = s + x``, batch first."""
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "s", "y", "s2")]
    nodes = [helper.make_node("Add", ["x", "s"], ["y"]), helper.make_node("Identity", ["y"], ["s2"])]
    graph = helper.make_graph(nodes, "g", rows[:2], rows[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    blob = Blob.of(path)
    return Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob,))


class TestLoading:
    CONFIG = ModelConfig(sequence=SequenceConfig(states=(StateConfig(input="s", output="s2"),)))

    def test_golden_requests_hold_states_and_are_replayed_with_them(self, tmp_path: Path) -> None:
        model = make_accumulator(tmp_path / "sum.onnx")
        seal(tmp_path / "sum.salver", Contents(name="sum", model=model, golden=make_golden(model, count=3)))
        loaded = load(Bundle.open(tmp_path / "sum.salver"), RunSettings(), self.CONFIG)
        assert loaded.golden == 3
        assert loaded.merge
        loaded.session.close()

    def test_golden_requests_of_a_state_with_the_batch_elsewhere_warm_it_up(self, tmp_path: Path) -> None:
        model, session = open_silero("silero_vad_half")
        session.close()
        seal(tmp_path / "vad.salver", Contents(name="vad", model=model, golden=make_golden(model, count=2)))
        config = ModelConfig(sequence=SequenceConfig(states=VAD))
        loaded = load(Bundle.open(tmp_path / "vad.salver"), RunSettings(max_batch=4), config)
        assert loaded.cost.mean_s(1) > 0
        assert loaded.merge, loaded.merge_reason
        loaded.session.close()

    def test_a_configuration_that_does_not_fit_is_refused(self, tmp_path: Path) -> None:
        model = make_accumulator(tmp_path / "sum.onnx")
        config = ModelConfig(sequence=SequenceConfig(states=(StateConfig(input="s", output="z"),)))
        with pytest.raises(UnknownName, match="unknown output 'z'"):
            load(Bundle.wrap(model, "sum", "raw"), RunSettings(), config)
        with pytest.raises(SalverError):
            LoadedModel("m", "1", Metrics()).open(
                open_session(model),
                RunSettings(),
                merge=False,
                cost=load(Bundle.wrap(model, "s", "r"), RunSettings()).cost,
                config=config,
            )
