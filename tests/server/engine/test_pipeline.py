"""Pipelines: what a graph of steps takes and gives, and how requests go through it."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.arrays import Array
from salver.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    SalverError,
    Unavailable,
)
from salver.core.tensors import Signature, TensorSpec
from salver.server._loop import new_event_loop
from salver.server.engine.base import InferRequest, SequenceStep, Timing
from salver.server.engine.config import ModelConfig, PipelineConfig, SequenceConfig, StateConfig, StepConfig
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.graph import Graph, find_route, infer_signature
from salver.server.engine.pipeline import PipelineModel
from salver.server.engine.served import LoadedModel
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import RunSettings
from salver.testing.engine import FunctionSession, add_model


def tensor(name: str, *shape: int | str, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def signature(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Signature:
    return Signature(inputs=tuple(inputs), outputs=tuple(outputs))


def step(model: str, inputs: dict[str, str], outputs: dict[str, str], version: str = "") -> StepConfig:
    return StepConfig(model=model, version=version, inputs=inputs, outputs=outputs)


def graph_of(inputs: str, outputs: str, *steps: StepConfig) -> Graph:
    return Graph(PipelineConfig(inputs=tuple(inputs.split()), outputs=tuple(outputs.split()), steps=steps))


A = step("a", {"x": "image"}, {"y": "features"})
B = step("b", {"x": "features"}, {"y": "classes"})
ONE = signature([tensor("x", "batch", 2)], [tensor("y", "batch", 2)])
CIRCLE = step("c", {"p": "p", "f": "features"}, {"q": "q", "z": "z"})


class TestGraph:
    @pytest.mark.parametrize(
        ("graph", "message"),
        [
            (("image", "classes", A, step("b", {"x": "feature"}, {"y": "classes"})), "Did you mean 'features'"),
            (("image", "labels", A, B), "output of the pipeline, 'labels'"),
            (("image", "classes image", A, B), "output of the pipeline, 'image'"),
            (("image", "classes", A, B, step("c", {"x": "image"}, {"y": "more"})), "nothing uses 'more'"),
            (("image mask", "classes", A, B), "nothing uses 'mask'"),
            (("image", "classes", A, B, A), "'features' comes from step 1 .'a'. and from step 3"),
            (("features", "classes", B, step("c", {"x": "classes"}, {"y": "features"})), "comes from the client"),
            (
                ("image", "z", A, step("b", {"x": "q"}, {"y": "p"}), CIRCLE),
                "step 2 .'b'., step 3 .'c'. wait for each other in a circle",
            ),
            (("image", "classes classes", A, B), "outputs of different names"),
            (("", "classes", A, B), "inputs of different names, got none"),
            (("image", "features", A, step("b", {}, {"y": "q"})), "step 2 .'b'. has no inputs"),
        ],
    )
    def test_what_is_not_sound_is_named(self, graph: Any, message: str) -> None:
        with pytest.raises(InvalidArgument, match=message):
            graph_of(*graph)

    def test_steps_may_be_written_in_any_order(self) -> None:
        assert graph_of("image", "classes", B, A).order == (1, 0)

    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            (ONE, signature([tensor("z", "batch", 2)], [tensor("y", 1)]), "unknown input of step 2 .'b'. 'x'"),
            (ONE, signature([tensor("x", "n", 2)], [tensor("z", "n")]), "unknown output of step 2 .'b'. 'y'"),
            (ONE, signature([tensor("x", "n", 2), tensor("m", "n")], [tensor("y", "n")]), "not given its input 'm'"),
            (
                ONE,
                signature([tensor("x", "n", 2, datatype="INT8")], [tensor("y", "n")]),
                "is FP32 for step 1.*but INT8",
            ),
            (ONE, signature([tensor("x", "n", 3)], [tensor("y", "n")]), r"is \[batch, 2\] for.*but \[n, 3\] for"),
            (ONE, signature([tensor("x", "n", 2, 1)], [tensor("y", "n")]), r"but \[n, 2, 1\] for"),
            (
                signature([tensor("x", "n", "n")], [tensor("y", "n", 2)]),
                signature([tensor("x", 3, 2)], [tensor("y", 3)]),
                None,
            ),
            (
                signature([tensor("x", "n")], [tensor("y", "n", "n")]),
                signature([tensor("x", 3, 2)], [tensor("y", 3)]),
                r"is \[n, n\] for step 1.*but \[3, 2\]",
            ),
        ],
    )
    def test_what_one_gives_must_be_what_the_next_takes(
        self, first: Signature, second: Signature, message: str | None
    ) -> None:
        graph = graph_of("image", "classes", A, B)
        if message is None:
            found = infer_signature(graph, (first, second))
            assert found.inputs[0].shape == (3, 3)
            return
        with pytest.raises(InvalidArgument, match=message):
            infer_signature(graph, (first, second))

    def test_dimensions_that_are_the_same_have_one_name_and_others_are_told_apart(self) -> None:
        first = signature([tensor("x", "N", "n", "?x_2")], [tensor("y", "N", "m")])
        second = signature([tensor("x", "batch", 7)], [tensor("y", "batch", "n", "?y_1")])
        found = infer_signature(graph_of("image", "classes features", A, B), (first, second))
        assert found.inputs == (tensor("image", "N", "n", "?x_2"),)
        assert found.outputs == (tensor("classes", "N", "n_2", "?y_1"), tensor("features", "N", 7))
        assert found.batch_dim == "N"

    def test_a_fixed_batch_of_one_step_fixes_all(self) -> None:
        second = signature([tensor("x", 1, 2)], [tensor("y", 1, 5)])
        found = infer_signature(graph_of("image", "classes", A, B), (ONE, second))
        assert found.inputs[0].shape == (1, 2)
        assert found.batch_dim is None

    def test_an_unknown_rank_takes_the_other_sides(self) -> None:
        first = signature([tensor("x", "...")], [tensor("y", "...")])
        second = signature([tensor("x", "batch", 2)], [tensor("y", "...")])
        found = infer_signature(graph_of("image", "classes features", A, B), (first, second))
        assert [spec.shape for spec in (*found.inputs, *found.outputs)] == [("...",), ("...",), ("batch", 2)]

    def test_labels_of_classes_come_along(self) -> None:
        labeled = TensorSpec(name="y", datatype="FP32", shape=("n", 2), labels=("cat", "dog"))
        second = signature([tensor("x", "n", 2)], [labeled])
        found = infer_signature(graph_of("image", "classes", A, B), (ONE, second))
        assert found.outputs[0].labels == ("cat", "dog")

    def test_a_route_runs_and_asks_no_more_than_is_needed(self) -> None:
        two = signature([tensor("x", "n", 2)], [tensor("y", "n", 2), tensor("z", "n", 2), tensor("w", "n", 2)])
        c = step("c", {"x": "image"}, {"y": "c", "z": "cz"})
        d = step("d", {"x": "cz"}, {"w": "d"})
        graph = graph_of("image", "classes c d", A, B, c, d)
        signatures = (ONE, ONE, two, two)
        every = find_route(graph, signatures, None)
        assert [(s.index, s.outputs, s.needs, s.followers) for s in every.steps] == [
            (0, None, 0, (2,)),
            (2, ("y", "z"), 0, (3,)),
            (1, None, 1, ()),
            (3, ("w",), 1, ()),
        ]
        assert [s.index for s in find_route(graph, signatures, ("classes",)).steps] == [0, 1]
        alone = find_route(graph, signatures, ("d",))
        assert [(s.index, s.outputs) for s in alone.steps] == [(2, ("z",)), (3, ("w",))]
        assert find_route(graph, signatures, ("c", "classes")).outputs == ("c", "classes")


class Asked:
    """One request and what became of it."""

    def __init__(self, value: Any, rows: int = 1, name: str = "image", **more: Any) -> None:
        self.result: Any = None
        self.timing: Timing | None = None
        self.calls = 0
        self.answered = asyncio.get_running_loop().create_future()
        self.request = InferRequest({name: np.full((rows, 2), value, np.float32)}, rows, self._done, **more)

    def _done(self, result: Any, timing: Timing | None) -> None:
        self.calls += 1
        self.result, self.timing = result, timing
        if not self.answered.done():
            self.answered.set_result(None)


@pytest.fixture(params=["uvloop", "asyncio"])
def play(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], None]]:
    loop = new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()

    async def run(scenario: Any) -> None:
        engine = RealTimeEngine(Metrics())
        try:
            await asyncio.wait_for(scenario(engine), 30)
        finally:
            engine.close()

    yield lambda scenario: loop.run_until_complete(run(scenario))
    loop.close()


def chain(*names: str) -> ModelConfig:
    """Each takes what the one before it gives; ``image`` goes in, ``classes`` comes out."""
    tensors = ["image", *(f"t{i}" for i in range(1, len(names))), "classes"]
    steps = [step(name, {"x": tensors[i]}, {"y": tensors[i + 1]}) for i, name in enumerate(names)]
    return pipeline("image", "classes", *steps)


def pipeline(inputs: str, outputs: str, *steps: StepConfig, **more: Any) -> ModelConfig:
    config = PipelineConfig(inputs=tuple(inputs.split()), outputs=tuple(outputs.split()), steps=steps)
    return ModelConfig(pipeline=config, **more)


def add_pipeline(
    engine: RealTimeEngine, config: ModelConfig, name: str = "p", settings: RunSettings | None = None
) -> PipelineModel:
    model = PipelineModel(name, "1", config, engine, settings or RunSettings())
    engine.put(model)
    return model


def add_function(engine: RealTimeEngine, name: str, function: Callable[[Array], Array], **more: Any) -> FunctionSession:
    session = FunctionSession(ONE, lambda inputs: {"y": function(inputs["x"])})
    add_model(engine, session, name=name, **more)
    return session


def refuse(error: SalverError) -> Callable[[Array], Array]:
    def function(_: Array) -> Array:
        raise error

    return function


class Gate:
    """A model that waits to be let through."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, x: Array) -> Array:
        self.entered.set()
        assert self.open.wait(30)
        return x


class TestRequests:
    @pytest.mark.parametrize("inline", [True, False])
    def test_steps_share_batches_and_every_request_gets_its_own_rows(self, play: Any, inline: bool) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            first = add_function(engine, "a", lambda x: x + 1, inline=inline)
            second = add_function(engine, "b", lambda x: x * 10, inline=inline)
            model = add_pipeline(engine, chain("a", "b"))
            assert model.state == "READY"
            assert model.signature == signature([tensor("image", "batch", 2)], [tensor("classes", "batch", 2)])
            asked = [Asked(float(i), rows=1 + i % 3) for i in range(10)]
            for one in asked:
                engine.submit(model, one.request)
            await asyncio.gather(*(one.answered for one in asked))
            assert first.batches == [19]
            assert second.batches == [19]
            for i, one in enumerate(asked):
                assert list(one.result) == ["classes"]
                np.testing.assert_array_equal(one.result["classes"], np.full((1 + i % 3, 2), 10.0 * (i + 1)))
                assert one.timing is not None
                assert one.calls == 1
            assert model.idle

        play(scenario)

    def test_a_step_shares_its_batches_with_direct_requests(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            session = add_function(engine, "a", lambda x: x + 1)
            model = add_pipeline(engine, chain("a"))
            asked, direct = Asked(1.0), Asked(2.0, name="x")
            engine.submit(model, asked.request)
            engine.submit(engine.find("a"), direct.request)
            await asyncio.gather(asked.answered, direct.answered)
            assert session.batches == [2]

        play(scenario)

    def test_steps_that_do_not_need_each_other_run_at_the_same_time(self, play: Any) -> None:
        barrier = threading.Barrier(2, timeout=20)

        def meet(x: Array) -> Array:
            barrier.wait()
            return x

        async def scenario(engine: RealTimeEngine) -> None:
            add_function(engine, "a", meet)
            add_function(engine, "b", meet)
            steps = step("a", {"x": "image"}, {"y": "l"}), step("b", {"x": "image"}, {"y": "r"})
            model = add_pipeline(engine, pipeline("image", "l r", *steps))
            asked = Asked(1.0)
            engine.submit(model, asked.request)
            await asked.answered
            assert list(asked.result) == ["l", "r"]

        play(scenario)

    def test_only_what_is_wanted_runs_and_arrays_pass_uncopied(self, play: Any) -> None:
        seen: list[Array] = []

        def keep(x: Array) -> Array:
            seen.append(x)
            return x

        async def scenario(engine: RealTimeEngine) -> None:
            add_function(engine, "a", keep)
            add_function(engine, "b", keep)
            other = add_function(engine, "c", keep)
            config = chain("a", "b")
            assert config.pipeline is not None
            steps = (*config.pipeline.steps, step("c", {"x": "image"}, {"y": "more"}))
            model = add_pipeline(engine, pipeline("image", "classes more", *steps))
            seen.clear()
            asked = Asked(1.0, outputs=("classes",))
            engine.submit(model, asked.request)
            await asked.answered
            assert list(asked.result) == ["classes"]
            assert other.batches == []
            assert all(array is asked.request.inputs["image"] for array in seen)
            assert asked.result["classes"] is asked.request.inputs["image"]

        play(scenario)

    def test_any_choice_of_outputs_is_remembered_within_bounds(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            add_function(engine, "a", lambda x: x, inline=True)
            names = [f"o{i}" for i in range(8)]
            steps = [step("a", {"x": "image"}, {"y": name}) for name in names]
            model = add_pipeline(engine, pipeline("image", " ".join(names), *steps))
            for mask in range(1, 200):
                wanted = tuple(name for i, name in enumerate(names) if mask >> i & 1)
                asked = Asked(float(mask), outputs=wanted)
                engine.submit(model, asked.request)
                await asked.answered
                assert tuple(asked.result) == wanted
            plan: Any = model._plan
            assert len(plan._routes) <= 64

        play(scenario)

    def test_deadline_and_priority_go_with_every_step(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            gate = Gate()
            add_function(engine, "a", lambda x: x)
            add_function(engine, "b", gate, settings=RunSettings(max_batch=1))
            model = add_pipeline(engine, chain("a", "b"))
            first = Asked(0.0)
            engine.submit(model, first.request)
            await asyncio.to_thread(gate.entered.wait, 30)
            late = Asked(1.0, deadline_s=asyncio.get_running_loop().time() + 0.1)
            low, high = Asked(2.0, priority=5), Asked(3.0, priority=1)
            order: list[float] = []
            for one in (low, high):
                one.answered.add_done_callback(lambda _, one=one: order.append(one.request.priority))
            for one in (late, low, high):
                engine.submit(model, one.request)
            await late.answered
            assert isinstance(late.result, DeadlineExceeded)
            assert late.result.message.startswith("step 2 ('b'): the deadline passed")
            gate.open.set()
            await asyncio.gather(low.answered, high.answered)
            await asyncio.sleep(0)
            assert order == [1, 5]

        play(scenario)

    def test_the_pipelines_own_timeout_is_a_deadline(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            gate = Gate()
            add_function(engine, "a", gate)
            model = add_pipeline(engine, chain("a"), settings=RunSettings(default_timeout_s=0.05))
            engine.submit(model, Asked(1.0).request)
            await asyncio.to_thread(gate.entered.wait, 30)
            late = Asked(2.0)
            engine.submit(model, late.request)
            await late.answered
            assert isinstance(late.result, DeadlineExceeded)
            gate.open.set()

        play(scenario)


class TestFailures:
    def test_an_error_names_its_step_and_cancels_the_others(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            gate = Gate()
            slow = add_function(engine, "slow", gate)
            add_function(engine, "bad", refuse(InvalidArgument("thirteen")))
            steps = (
                step("slow", {"x": "image"}, {"y": "s"}),
                step("bad", {"x": "image"}, {"y": "b"}),
            )
            model = add_pipeline(engine, pipeline("image", "s b", *steps))
            blocker = Asked(0.0, name="x")
            engine.submit(engine.find("slow"), blocker.request)
            await asyncio.to_thread(gate.entered.wait, 30)
            asked = Asked(1.0)
            engine.submit(model, asked.request)
            await asked.answered
            assert isinstance(asked.result, InvalidArgument)
            assert asked.result.message == "step 2 ('bad'): thirteen"
            gate.open.set()
            await blocker.answered
            await asyncio.sleep(0.02)
            assert slow.batches == [1], "its other step was cancelled in the queue"
            assert asked.calls == 1
            assert model.idle

        play(scenario)

    def test_a_bad_request_fails_alone(self, play: Any) -> None:
        def picky(x: Array) -> Array:
            if (x == 13).any():
                raise InvalidArgument("thirteen")
            return x

        async def scenario(engine: RealTimeEngine) -> None:
            add_function(engine, "a", lambda x: x)
            add_function(engine, "b", picky)
            model = add_pipeline(engine, chain("a", "b"))
            asked = [Asked(float(i)) for i in range(10, 20)]
            for one in asked:
                engine.submit(model, one.request)
            await asyncio.gather(*(one.answered for one in asked))
            assert [isinstance(one.result, InvalidArgument) for one in asked] == [i == 13 for i in range(10, 20)]

        play(scenario)

    def test_a_full_queue_of_the_first_step_refuses_with_its_hint(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            gate = Gate()
            free = add_function(engine, "free", lambda x: x)
            add_function(engine, "full", gate, settings=RunSettings(max_queue=1))
            steps = step("free", {"x": "image"}, {"y": "f"}), step("full", {"x": "image"}, {"y": "g"})
            model = add_pipeline(engine, pipeline("image", "f g", *steps))
            for i in range(2):
                engine.submit(engine.find("full"), Asked(float(i), name="x").request)
                await asyncio.to_thread(gate.entered.wait, 30)
            refused = Asked(1.0)
            with pytest.raises(ResourceExhausted, match=r"step 2 \('full'\): the queue is full") as error:
                engine.submit(model, refused.request)
            assert error.value.retry_after_s is not None
            assert engine.metrics.of(model).refused == {"RESOURCE_EXHAUSTED": 1}
            assert model.idle
            gate.open.set()
            await asyncio.sleep(0.02)
            assert free.batches == []
            assert refused.calls == 0

        play(scenario)

    def test_a_full_queue_of_a_later_step_answers_with_its_hint(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            gate = Gate()
            add_function(engine, "free", lambda x: x)
            add_function(engine, "full", gate, settings=RunSettings(max_queue=1))
            model = add_pipeline(engine, chain("free", "full"))
            for i in range(2):
                engine.submit(engine.find("full"), Asked(float(i), name="x").request)
                await asyncio.to_thread(gate.entered.wait, 30)
            asked = Asked(1.0)
            engine.submit(model, asked.request)
            await asked.answered
            assert isinstance(asked.result, ResourceExhausted)
            assert asked.result.retry_after_s is not None
            gate.open.set()

        play(scenario)

    def test_shapes_that_do_not_fit_when_it_runs_are_the_requests_error(self, play: Any) -> None:
        open_ended = signature([tensor("x", "batch", 2)], [tensor("y", "batch", "n")])

        async def scenario(engine: RealTimeEngine) -> None:
            add_model(engine, FunctionSession(open_ended, lambda _: {"y": np.ones((1, 3), np.float32)}), name="a")
            add_function(engine, "b", lambda x: x)
            model = add_pipeline(engine, chain("a", "b"))
            asked = Asked(1.0)
            engine.submit(model, asked.request)
            await asked.answered
            assert isinstance(asked.result, InvalidArgument)
            assert asked.result.message == "step 2 ('b'): input 'x': got shape [1, 3], expected [batch, 2]"

        play(scenario)

    def test_rows_are_checked_where_a_step_has_no_batch_dimension(self, play: Any) -> None:
        """Because of an output that the pipeline does not use; so the model itself may answer any number of rows."""
        own = signature([tensor("x", "n", 2)], [tensor("y", "n", 2), tensor("count", 1)])

        async def scenario(engine: RealTimeEngine) -> None:
            session = FunctionSession(own, lambda i: {"y": i["x"][:1], "count": np.ones(1, np.float32)})
            add_model(engine, session, name="a")
            model = add_pipeline(engine, chain("a"))
            assert model.signature.batch_dim == "n"
            asked = Asked(1.0, rows=3)
            engine.submit(model, asked.request)
            await asked.answered
            assert isinstance(asked.result, Internal)
            assert asked.result.message == "tensor 'classes' has shape [1, 2] for 3 input rows"
            assert model.idle

        play(scenario)

    def test_a_request_that_failed_is_freed_at_once(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            add_function(engine, "a", lambda x: x)
            add_function(engine, "b", refuse(Internal("no")))
            model = add_pipeline(engine, chain("a", "b"))
            answered = asyncio.get_running_loop().create_future()
            inputs = {"image": np.ones((1, 2), np.float32)}
            data = weakref.ref(inputs["image"])
            gc.disable()
            try:
                engine.submit(model, InferRequest(inputs, 1, lambda result, _: answered.set_result(type(result))))
                del inputs
                assert await answered is Internal
                until = asyncio.get_running_loop().time() + 5
                while data() is not None and asyncio.get_running_loop().time() < until:
                    await asyncio.sleep(0.005)
                assert data() is None
            finally:
                gc.enable()

        play(scenario)


class TestCancel:
    def test_a_cancelled_request_goes_no_further(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            gate = Gate()
            add_function(engine, "a", gate)
            second = add_function(engine, "b", lambda x: x)
            model = add_pipeline(engine, chain("a", "b"))
            asked, queued = Asked(1.0), Asked(2.0)
            engine.submit(model, asked.request)
            await asyncio.to_thread(gate.entered.wait, 30)
            engine.submit(model, queued.request)
            for one in (asked, queued):
                engine.cancel(model, one.request)
                engine.cancel(model, one.request)
            assert model.idle
            gate.open.set()
            await asyncio.sleep(0.05)
            assert (asked.calls, queued.calls) == (0, 0)
            assert second.batches == []

        play(scenario)


class TestState:
    def test_it_follows_its_steps(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            model = add_pipeline(engine, chain("a", "b"))
            assert (model.state, model.reason) == ("UNAVAILABLE", "step 1 ('a'): no model 'a'; served: 'p'")
            with pytest.raises(Unavailable, match=r"step 1 \('a'\): no model 'a'"):
                engine.find("p")
            add_function(engine, "a", lambda x: x)
            first = engine.add("b", "1")
            assert model.reason == "step 2 ('b'): model 'b' version 1 is LOADING: loading"
            first.refuse("broken")
            assert "is UNAVAILABLE: broken" in model.reason
            add_function(engine, "b", lambda x: x, version="2")
            assert model.state == "READY"
            assert model.metadata["steps"] == [{"model": "a", "version": "1"}, {"model": "b", "version": "2"}]
            await engine.retire(next(m for m in engine.models() if m.version == "2"), 1.0)  # type: ignore[arg-type]
            assert model.state == "UNAVAILABLE"
            with pytest.raises(Unavailable):
                engine.submit(model, Asked(1.0).request)

        play(scenario)

    def test_steps_that_do_not_fit_are_its_reason(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            add_function(engine, "a", lambda x: x)
            other = signature([tensor("x", "batch", 3)], [tensor("y", "batch", 2)])
            add_model(engine, FunctionSession(other, lambda i: {"y": i["x"]}), name="b")
            model = add_pipeline(engine, chain("a", "b"))
            assert model.state == "UNAVAILABLE"
            assert "tensor 't1' is [batch, 2] for step 1 ('a') 'y', but [batch, 3]" in model.reason

        play(scenario)

    def test_a_graph_that_is_not_sound_is_refused(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            with pytest.raises(InvalidArgument, match="nothing uses"):
                add_pipeline(engine, pipeline("image k", "classes", step("a", {"x": "image"}, {"y": "classes"})))
            with pytest.raises(InvalidArgument, match="no steps"):
                add_pipeline(engine, ModelConfig())

        play(scenario)

    def test_a_step_may_be_pinned_to_a_version_or_a_label(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            add_function(engine, "a", lambda x: x + 1, version="1")
            add_function(engine, "a", lambda x: x + 2, version="2")
            engine.labels["a"] = {"stable": "1"}
            model = add_pipeline(engine, pipeline("image", "y", step("a", {"x": "image"}, {"y": "y"}, "stable")))
            for label, expected in (("1", 2.0), ("2", 3.0)):
                engine.labels["a"]["stable"] = label
                engine.refresh()
                asked = Asked(1.0)
                engine.submit(model, asked.request)
                await asked.answered
                assert asked.result["y"][0, 0] == expected

        play(scenario)

    def test_a_step_that_is_replaced_serves_requests_under_way(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            gate = Gate()
            add_function(engine, "a", gate)
            add_function(engine, "b", lambda x: x + 1)
            model = add_pipeline(engine, chain("a", "b"))
            asked = Asked(1.0)
            engine.submit(model, asked.request)
            await asyncio.to_thread(gate.entered.wait, 30)
            old: Any = engine.find("b")
            new = LoadedModel("b", "1", engine.metrics, engine.refresh)
            session = FunctionSession(ONE, lambda inputs: {"y": inputs["x"] + 2})
            new.open(session, RunSettings(), merge=True, cost=old._scheduler.cost)
            engine.put(new)
            await engine.retire(old, 1.0)
            gate.open.set()
            await asked.answered
            assert asked.result["classes"][0, 0] == 3.0

        play(scenario)

    def test_pipelines_of_pipelines(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            add_function(engine, "a", lambda x: x + 1)
            outer = add_pipeline(engine, pipeline("image", "z", step("p", {"image": "image"}, {"classes": "z"})), "q")
            assert "no model 'p'" in outer.reason
            inner = add_pipeline(engine, chain("a", "a"))
            assert (inner.depth, outer.depth, outer.state) == (1, 2, "READY")
            asked = Asked(1.0)
            engine.submit(outer, asked.request)
            await asked.answered
            assert asked.result["z"][0, 0] == 3.0

        play(scenario)

    def test_pipelines_in_a_circle_are_refused(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            first = add_pipeline(engine, chain("q"), "p")
            second = add_pipeline(engine, chain("r"), "q")
            third = add_pipeline(engine, chain("p"), "r")
            engine.refresh()
            assert first.reason == "pipelines go round in a circle: p -> q -> r -> p"
            assert second.reason == "pipelines go round in a circle: q -> r -> p -> q"
            assert third.reason == "pipelines go round in a circle: r -> p -> q -> r"
            itself = add_pipeline(engine, chain("s"), "s")
            assert "s -> s" in itself.reason

        play(scenario)

    def test_a_drain_lets_requests_through_all_their_steps(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            gate = Gate()
            add_function(engine, "a", gate)
            add_function(engine, "b", lambda x: x + 1)
            add_pipeline(engine, chain("a", "b"))
            steps = step("b", {"x": "image"}, {"y": "t"}), step("p", {"image": "t"}, {"classes": "z"})
            outer = add_pipeline(engine, pipeline("image", "z", *steps), "q")
            asked = [Asked(float(i)) for i in range(5)]
            for one in asked:
                engine.submit(outer, one.request)
            await asyncio.to_thread(gate.entered.wait, 30)
            draining = asyncio.ensure_future(engine.drain(30))
            await asyncio.sleep(0.01)
            with pytest.raises(Unavailable, match="draining"):
                engine.submit(outer, Asked(1.0).request)
            gate.open.set()
            assert await draining
            assert [one.result["z"][0, 0] for one in asked] == [2.0 + i for i in range(5)]

        play(scenario)

    def test_closing_answers_what_is_under_way(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            gate = Gate()
            add_function(engine, "a", gate)
            model = add_pipeline(engine, chain("a"))
            asked = Asked(1.0)
            engine.submit(model, asked.request)
            await asyncio.to_thread(gate.entered.wait, 30)
            assert model.close()
            assert isinstance(asked.result, Unavailable)
            assert (model.state, model.reason) == ("UNAVAILABLE", "unloaded")
            gate.open.set()
            await asyncio.sleep(0.02)
            assert asked.calls == 1

        play(scenario)


class TestMetrics:
    def test_a_pipeline_and_its_steps_are_counted_each(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            add_function(engine, "a", lambda x: x)
            add_function(engine, "b", refuse(InvalidArgument("no")))
            model = add_pipeline(engine, chain("a"))
            failing = add_pipeline(engine, chain("a", "b"), "q")
            for target in (model, failing):
                asked = Asked(1.0, rows=2)
                engine.submit(target, asked.request)
                await asked.answered
            metrics = engine.metrics
            assert metrics.of(model).inferences == 2
            assert metrics.of(failing).inferences == 0
            assert metrics.of(engine.find("a")).codes == {"OK": 2}
            assert metrics.of(engine.find("b")).codes == {"INVALID_ARGUMENT": 1}
            assert model.gauges() == {"queued": 0, "queued_rows": 0, "running": 0}

        play(scenario)


class TestSequences:
    SIGNATURE = signature(
        [tensor("x", "batch", 2), tensor("s", "batch", 2)], [tensor("y", "batch", 2), tensor("s2", "batch", 2)]
    )

    @staticmethod
    def add(inputs: Mapping[str, Array]) -> dict[str, Array]:
        total = inputs["x"] + inputs["s"]
        return {"y": total, "s2": total}

    def test_a_step_with_state_gets_the_sequence(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            add_function(engine, "a", lambda x: x * 2)
            config = ModelConfig(sequence=SequenceConfig(states=(StateConfig(input="s", output="s2"),)))
            add_model(engine, FunctionSession(self.SIGNATURE, self.add), name="sum", config=config)
            model = add_pipeline(engine, chain("a", "sum"), settings=RunSettings(response_cache_bytes=1 << 20))
            assert model.stateful
            assert model._cache is None
            for i in range(3):
                asked = [Asked(float(name), sequence=SequenceStep(name, i == 0, i == 2)) for name in (1, 2)]
                for one in asked:
                    engine.submit(model, one.request)
                await asyncio.gather(*(one.answered for one in asked))
                assert [one.result["classes"][0, 0] for one in asked] == [2.0 * (i + 1), 4.0 * (i + 1)]
            lost = Asked(1.0)
            engine.submit(model, lost.request)
            await lost.answered
            assert isinstance(lost.result, InvalidArgument)
            assert "step 2 ('sum'): the model keeps state" in lost.result.message

        play(scenario)

    def test_two_requests_of_a_sequence_cannot_overtake_each_other(self, play: Any) -> None:
        async def scenario(engine: RealTimeEngine) -> None:
            config = ModelConfig(sequence=SequenceConfig(states=(StateConfig(input="s", output="s2"),)))
            add_model(engine, FunctionSession(self.SIGNATURE, self.add), name="sum", config=config)
            model = add_pipeline(engine, chain("sum"))
            first = Asked(1.0, sequence=SequenceStep(1, True))
            engine.submit(model, first.request)
            with pytest.raises(FailedPrecondition, match="sequence 1 has a request under way"):
                engine.submit(model, Asked(1.0, sequence=SequenceStep(1)).request)
            await first.answered
            second = Asked(1.0, sequence=SequenceStep(1))
            engine.submit(model, second.request)
            await second.answered
            assert second.result["classes"][0, 0] == 2.0

        play(scenario)


@given(data=st.data())
def test_any_graph_gives_what_running_it_by_hand_gives(data: st.DataObject) -> None:
    """Random acyclic graphs of one model with two inputs and two outputs."""
    count = data.draw(st.integers(1, 7))
    tensors = ["i0", "i1"]
    steps = []
    for number in range(count):
        takes = [data.draw(st.sampled_from(tensors)) for _ in range(2)]
        gives = [f"t{number}a", f"t{number}b"]
        steps.append(step("m", dict(zip("pq", takes, strict=True)), dict(zip("uv", gives, strict=True))))
        tensors += gives
    used = {t for s in steps for t in s.inputs.values()}
    outputs = [t for t in tensors[2:] if t not in used] or tensors[-2:]
    inputs = [t for t in ("i0", "i1") if t in used]
    order = data.draw(st.permutations(steps))
    wanted = tuple(data.draw(st.lists(st.sampled_from(outputs), min_size=1, unique=True)))
    values = {name: np.full((2, 2), 1.0 + i, np.float32) for i, name in enumerate(inputs)}

    def mix(given: Mapping[str, Array]) -> dict[str, Array]:
        return {"u": given["p"] * 2 + given["q"], "v": given["p"] - given["q"] * 0.5}

    by_hand: dict[str, Array] = dict(values)
    for one in steps:
        found = mix({name: by_hand[t] for name, t in one.inputs.items()})
        by_hand |= {t: found[name] for name, t in one.outputs.items()}

    async def scenario() -> None:
        engine = RealTimeEngine(Metrics())
        two = signature(
            [tensor("p", "batch", 2), tensor("q", "batch", 2)], [tensor("u", "batch", 2), tensor("v", "batch", 2)]
        )
        add_model(engine, FunctionSession(two, mix), name="m", inline=True)
        model = add_pipeline(engine, pipeline(" ".join(inputs), " ".join(outputs), *order))
        assert model.state == "READY", model.reason
        answered = asyncio.get_running_loop().create_future()
        engine.submit(model, InferRequest(values, 2, lambda result, _: answered.set_result(result), outputs=wanted))
        result = await answered
        assert list(result) == list(wanted)
        for name in wanted:
            np.testing.assert_array_equal(result[name], by_hand[name])
        engine.close()

    asyncio.run(scenario())
