"""Answers given again: never another's, never more than fits, never changed by whoever got them."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from salver.core.arrays import Array
from salver.core.errors import Internal
from salver.core.tensors import Signature, TensorSpec
from salver.server.engine.base import InferRequest
from salver.server.engine.config import ModelConfig, PipelineConfig, SequenceConfig, StateConfig, StepConfig
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.pipeline import PipelineModel
from salver.server.engine.response_cache import ResponseCache
from salver.server.engine.served import LoadedModel
from salver.server.monitoring.metrics import Metrics
from salver.server.monitoring.record import ModelRecord
from salver.server.settings import ModelSettings, RunSettings, ServeSettings
from salver.testing.engine import FunctionSession, add_model

CHECKED = settings(max_examples=50, stateful_step_count=40, deadline=None)


def ask(inputs: dict[str, Any], outputs: tuple[str, ...] | None = None) -> tuple[InferRequest, list[Any]]:
    got: list[Any] = []
    return InferRequest(inputs, 1, lambda result, _: got.append(result), outputs=outputs), got


def put(cache: ResponseCache, inputs: dict[str, Any], answer: Any, outputs: tuple[str, ...] | None = None) -> None:
    request, got = ask(inputs, outputs)
    assert not cache.answer(request, ModelRecord())
    request.done(answer, None)
    assert got == [answer]


def find(cache: ResponseCache, inputs: dict[str, Any], outputs: tuple[str, ...] | None = None) -> Any:
    request, got = ask(inputs, outputs)
    return got[0] if cache.answer(request, ModelRecord()) else None


X = {"x": np.array([[1.0, 2.0]], np.float32)}
Y = {"y": np.array([[3.0]], np.float32)}

LOOKALIKES: list[dict[str, Array]] = [
    {"x": np.array([1, 0], np.int32)},
    {"z": np.array([1, 0], np.int32)},
    {"x": np.array([[1, 0]], np.int32)},
    {"x": np.array([[1], [0]], np.int32)},
    {"x": np.array([1], np.int64)},
    {"x": np.array([1], np.uint64)},
    {"x": np.array([1, 0], np.float32).view(np.uint32)},
    {"x": np.array([0.0])},
    {"x": np.array([-0.0])},
    {"x": np.array([np.nan])},
    {"x": np.array(["1"], object)},
    {"x": np.array(["1", ""], object)},
    {"x": np.array(["", "1"], object)},
    {"x": np.array(["1 ", "0"], object)},
    {"x": np.array([1], np.int32), "z": np.array([0], np.int32)},
    {"x": np.array([0], np.int32), "z": np.array([1], np.int32)},
    {"x": np.array([], np.int32)},
    {"x": np.zeros((0, 2), np.int32)},
]


@pytest.mark.parametrize("hasher", [hash, lambda _: 0], ids=["hashes", "all collide"])
def test_what_differs_in_anything_is_never_taken_for_the_same(hasher: Any) -> None:
    cache = ResponseCache(1 << 20, hasher)
    for number, inputs in enumerate(LOOKALIKES):
        for wanted in (None, ("y",), ("y", "z"), ("z", "y")):
            assert find(cache, inputs, wanted) is None
            put(cache, inputs, {"y": np.array([number])}, wanted)
    assert len(cache) == 4 * len(LOOKALIKES)
    for number, inputs in enumerate(LOOKALIKES):
        again = {name: array.copy() for name, array in inputs.items()}
        assert find(cache, again, ("y",))["y"] == [number]


def test_a_strided_input_equals_its_copy() -> None:
    cache = ResponseCache(1 << 20)
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    put(cache, {"x": wide[:, ::2]}, Y)
    assert find(cache, {"x": wide[:, ::2].copy()}) is not None


def test_answers_are_copies_that_nobody_can_write_to() -> None:
    cache = ResponseCache(1 << 20)
    answer = {"y": np.ones((2, 2), np.float32), "t": np.array(["a", "b"], object)}
    put(cache, X, {name: array[:1] for name, array in answer.items()})
    answer["y"][:] = 7
    answer["t"][:] = "z"
    found = find(cache, X)
    np.testing.assert_array_equal(found["y"], [[1, 1]])
    assert found["t"].tolist() == ["a"]
    with pytest.raises(ValueError, match="read-only"):
        found["y"][:] = 0
    found.clear()
    assert list(find(cache, X)) == ["y", "t"]


def test_what_was_sent_may_be_written_over_afterwards() -> None:
    cache = ResponseCache(1 << 20)
    buffer = np.array([[1.0, 2.0]], np.float32)
    put(cache, {"x": buffer}, Y)
    buffer[:] = 9
    assert find(cache, X) is not None
    assert find(cache, {"x": buffer}) is None


def test_errors_are_not_kept() -> None:
    cache = ResponseCache(1 << 20)
    put(cache, X, Internal("no"))
    assert len(cache) == 0


def test_the_least_recently_used_goes_first() -> None:
    cache = ResponseCache(4_000)
    inputs = [{"x": np.full(50, i, np.float32)} for i in range(4)]
    for one in inputs[:3]:
        put(cache, one, {"y": np.zeros(20, np.float32)})
    assert find(cache, inputs[0]) is not None
    put(cache, inputs[3], {"y": np.zeros(20, np.float32)})
    assert [find(cache, one) is not None for one in inputs] == [True, False, True, True]


def test_what_is_too_large_is_not_kept_and_costs_the_others_nothing() -> None:
    cache = ResponseCache(4_000)
    put(cache, X, Y)
    put(cache, {"x": np.zeros(10)}, {"y": np.zeros(1_000)})
    put(cache, {"x": np.array(["a" * 5_000], object)}, Y)
    assert len(cache) == 1


def test_two_at_once_keep_one_answer() -> None:
    cache = ResponseCache(1 << 20)
    (first, _), (second, _) = ask(X), ask(X)
    assert not cache.answer(first, ModelRecord())
    assert not cache.answer(second, ModelRecord())
    first.done(Y, None)
    size = cache.size_bytes
    second.done(Y, None)
    assert (len(cache), cache.size_bytes) == (1, size)


class CacheMachine(RuleBasedStateMachine):
    """Whatever is asked, an answer is the model's; and the bytes counted are those held, within the bound."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ResponseCache(6_000, lambda parts: hash(parts) % 3)

    @rule(x=st.lists(st.integers(-1, 2), max_size=3), wide=st.booleans(), text=st.booleans(), size=st.integers(0, 200))
    def ask(self, x: list[int], wide: bool, text: bool, size: int) -> None:
        dtype: Any = object if text else np.int64 if wide else np.int32
        inputs = {"x": np.array([str(i) for i in x] if text else x, dtype), "size": np.array(size)}
        expected = [repr((x, str(inputs["x"].dtype), size))] * (size + 1)
        found = find(self.cache, inputs)
        if found is None:
            put(self.cache, inputs, {"y": np.array(expected, object)})
        else:
            assert found["y"].tolist() == expected

    @invariant()
    def bounded(self) -> None:
        assert self.cache.size_bytes == sum(entry.size_bytes for entry in self.cache._entries.values()) <= 6_000


TestCacheRules = CacheMachine.TestCase
TestCacheRules.settings = CHECKED

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=("batch", 2)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch", 2)),),
)
CACHED = RunSettings(response_cache_bytes=1 << 20)


async def infer(engine: RealTimeEngine, model: Any, value: float) -> Any:
    answered = asyncio.get_running_loop().create_future()

    def done(result: Any, timing: Any) -> None:
        engine.metrics.record(model, "OK", timing, 1e-3)
        answered.set_result(result)

    engine.submit(model, InferRequest({"x": np.full((1, 2), value, np.float32)}, 1, done))
    return await answered


def test_a_model_answers_again_without_running_and_counts_it() -> None:
    async def scenario() -> None:
        engine = RealTimeEngine(Metrics())
        session = FunctionSession(SIGNATURE, lambda inputs: {"y": inputs["x"] * 2})
        model = add_model(engine, session, settings=CACHED)
        for value in (1.0, 1.0, float("nan"), float("nan"), 2.0):
            np.testing.assert_array_equal((await infer(engine, model, value))["y"], [[2 * value] * 2])
        assert session.batches == [1, 1, 1]
        stats = engine.metrics.statistics(model)["inference_stats"]
        assert (stats["cache_hit"]["count"], stats["cache_miss"]["count"]) == (2, 3)
        assert stats["cache_hit"]["ns"] > 0
        assert (stats["success"]["count"], stats["fail"]["count"], stats["fail"]["ns"]) == (5, 0, 0)
        assert stats["success"]["ns"] == pytest.approx(5e6)
        assert model.gauges()["cache_bytes"] > 2_000
        text = engine.metrics.render().decode()
        assert 'salver_cache_hits_total{model="m",version="1"} 2.0' in text
        assert 'salver_cache_misses_total{model="m",version="1"} 3.0' in text
        assert 'salver_cache_bytes{model="m",version="1"}' in text
        engine.close()
        assert model._cache is None

    asyncio.run(scenario())


def test_it_is_off_by_default_and_never_on_for_a_model_with_state() -> None:
    async def scenario() -> None:
        engine = RealTimeEngine(Metrics())
        plain = add_model(engine, FunctionSession(SIGNATURE, lambda inputs: {"y": inputs["x"]}))
        assert plain._cache is None
        stateful = Signature(
            inputs=(*SIGNATURE.inputs, TensorSpec(name="s", datatype="FP32", shape=("batch", 2))),
            outputs=(*SIGNATURE.outputs, TensorSpec(name="s2", datatype="FP32", shape=("batch", 2))),
        )
        config = ModelConfig(sequence=SequenceConfig(states=(StateConfig(input="s", output="s2"),)))
        session = FunctionSession(stateful, lambda inputs: {"y": inputs["x"], "s2": inputs["s"]})
        kept = add_model(engine, session, name="s", settings=CACHED, config=config)
        assert kept._cache is None
        engine.close()

    asyncio.run(scenario())


def test_a_pipeline_forgets_when_a_step_is_another() -> None:
    async def scenario() -> None:
        engine = RealTimeEngine(Metrics())
        first = add_model(engine, FunctionSession(SIGNATURE, lambda inputs: {"y": inputs["x"] * 2}), name="a")
        steps = (StepConfig(model="a", inputs={"x": "x"}, outputs={"y": "y"}),)
        config = ModelConfig(pipeline=PipelineConfig(inputs=("x",), outputs=("y",), steps=steps))
        pipeline = PipelineModel("p", "1", config, engine, CACHED)
        engine.put(pipeline)
        for _ in range(2):
            assert (await infer(engine, pipeline, 1.0))["y"][0, 0] == 2.0
        assert engine.metrics.of(pipeline).cache_hit.count == 1
        assert pipeline.gauges()["cache_bytes"] > 1_000
        second = LoadedModel("a", "1", engine.metrics, engine.refresh)
        session = FunctionSession(SIGNATURE, lambda inputs: {"y": inputs["x"] * 3})
        second.open(session, RunSettings(), merge=True, cost=first._scheduler.cost)
        engine.put(second)
        assert (await infer(engine, pipeline, 1.0))["y"][0, 0] == 3.0
        engine.close()

    asyncio.run(scenario())


def test_who_says_how_much() -> None:
    folder = ModelConfig(response_cache_bytes=5)
    own = {"m": ModelSettings(response_cache_bytes=7)}
    assert ServeSettings().for_model("m", {}).response_cache_bytes == 0
    assert ServeSettings().for_model("m", {}, folder).response_cache_bytes == 5
    assert ServeSettings(response_cache_bytes=6).for_model("m", {}, folder).response_cache_bytes == 6
    assert ServeSettings(response_cache_bytes=6, models=own).for_model("m", {}, folder).response_cache_bytes == 7
