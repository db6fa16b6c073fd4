"""Models that are loaded when they are asked, within a budget of memory: real models on a real disk."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from salver.core.arrays import Array
from salver.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    SalverError,
    Unavailable,
)
from salver.server.app import Server
from salver.server.engine.base import InferRequest, SequenceStep
from salver.server.engine.budget import MemoryBudget
from salver.server.engine.memory import heap_bytes
from salver.server.engine.on_demand import ON_DISK, OnDemandModel
from salver.server.settings import ServeSettings
from tests.server.engine.bench import Bench, adds

MIB = 1 << 20
SMALL_BYTES = 5 << 18
"""A small model takes a little less."""

Scenario = Callable[[Bench], Awaitable[None]]
Play = Callable[..., None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six models, ``m0`` to ``m5``, that add their number."""
    for number in range(6):
        adds(tmp_path / "models" / f"m{number}" / "1" / "model.onnx", number)
    return tmp_path / "models"


@pytest.fixture
def play(root: Path) -> Play:
    """Run a scenario on the six models and room for two of them, all of them described and the first ones loaded."""

    async def run(scenario: Scenario, settings: dict[str, Any]) -> None:
        bench = Bench(root, **{"memory_budget_bytes": 2 * SMALL_BYTES, **settings})
        try:
            assert await bench.manager.start() == []
            await asyncio.wait_for(scenario(bench), 60)
        finally:
            await bench.manager.stop()
            bench.engine.close()

    return lambda scenario, **settings: asyncio.run(run(scenario, settings))


def in_memory(bench: Bench) -> set[str]:
    return {model.name for model in bench.engine.models() if model.metadata.get("in_memory")}


def on_disk(bench: Bench) -> list[str]:
    return [model.name for model in bench.engine.models() if not model.metadata.get("in_memory")]


def budget_of(bench: Bench) -> MemoryBudget:
    assert bench.manager.budget is not None
    return bench.manager.budget


def model_of(bench: Bench, name: str) -> OnDemandModel:
    model = bench.engine.find(name)
    assert isinstance(model, OnDemandModel)
    return model


async def let_stays_end(bench: Bench) -> None:
    """Wait until every model that was just loaded may go."""
    for model in bench.engine.models():
        assert isinstance(model, OnDemandModel)
        await asyncio.sleep(max(model.stays_until_s - time.monotonic(), 0.0))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Asked:
    """A request to a model, and what became of it."""

    def __init__(self, bench: Bench, name: str, *, x: str = "x", y: str = "y", **more: Any) -> None:
        self._y = y
        self._answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.request = InferRequest({x: np.zeros((1, 2), np.float32)}, 1, self._done, **more)
        self.model = bench.engine.find(name)
        bench.engine.submit(self.model, self.request)

    def _done(self, result: Any, timing: object) -> None:
        self._answer.set_result(result)

    async def value(self) -> float:
        result: dict[str, Array] | SalverError = await self._answer
        if isinstance(result, SalverError):
            raise result
        return float(result[self._y][0, 0])

    @property
    def answered(self) -> bool:
        return self._answer.done()


def test_all_are_ready_and_as_many_as_fit_are_loaded(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        assert bench.engine.ready
        assert bench.served() == {f"m{n}:1": "READY" for n in range(6)}
        loaded = in_memory(bench)
        assert 1 <= len(loaded) <= 2  # the first pays for the runtime, too
        for number in range(6):
            model = model_of(bench, f"m{number}")
            assert [spec.name for spec in model.signature.inputs] == ["x"]
            assert model.platform == "onnx_onnxv1"
            assert bench.reason(model.name) == ("" if model.name in loaded else ON_DISK)
            assert (model.gauges()["memory_bytes"] > 0) == (model.name in loaded)

    play(scenario)


def test_what_is_asked_is_loaded_and_the_least_recently_asked_goes(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        for number in (3, 4, 3, 5, 3, 0):
            assert await bench.ask(f"m{number}") == number
            await let_stays_end(bench)
        assert in_memory(bench) == {"m3", "m0"}
        assert bench.engine.ready
        assert await bench.ask("m1") == 1.0
        assert in_memory(bench) == {"m0", "m1"}

    play(scenario)


def test_requests_to_a_model_that_is_being_loaded_wait_for_it(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        asked = [Asked(bench, f"m{number}") for number in range(6) for _ in range(20)]
        assert model_of(bench, "m5").gauges()["queued"] == 20
        assert [await one.value() for one in asked] == [float(number) for number in range(6) for _ in range(20)]
        assert model_of(bench, "m5").gauges()["queued"] == 0

    play(scenario)


def test_a_request_waits_no_longer_than_its_deadline(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with budget_of(bench).turn:  # nothing is loaded meanwhile
            cold = on_disk(bench)[0]
            late = Asked(bench, cold, deadline_s=time.monotonic() + 0.02)
            patient = Asked(bench, cold)
            with pytest.raises(DeadlineExceeded, match="while model"):
                await late.value()
            with pytest.raises(DeadlineExceeded, match="had passed"):
                Asked(bench, cold, deadline_s=time.monotonic() - 1.0)
            assert not patient.answered
        assert await patient.value() == float(cold[1:])

    play(scenario)


def test_a_deadline_of_the_settings_holds_while_a_model_is_loaded(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with budget_of(bench).turn:
            cold = on_disk(bench)[0]
            with pytest.raises(DeadlineExceeded):
                await Asked(bench, cold).value()

    play(scenario, default_timeout_s=0.02)


@pytest.mark.parametrize(
    ("settings", "match"), [({"max_queue": 3}, "3 requests .* wait"), ({"max_queue_bytes": 16}, "requests .* wait")]
)
def test_few_requests_may_wait_for_loads(play: Play, settings: dict[str, Any], match: str) -> None:
    async def scenario(bench: Bench) -> None:
        async with budget_of(bench).turn:
            first, second = on_disk(bench)[:2]
            asked = [Asked(bench, first), Asked(bench, first)]
            asked += [Asked(bench, second) for _ in range(settings.get("max_queue", 2) - 2)]
            with pytest.raises(ResourceExhausted, match=match) as caught:
                Asked(bench, second)
            assert caught.value.retry_after_s is not None
        for one in asked:
            assert await one.value() in {float(first[1:]), float(second[1:])}
        assert (budget_of(bench).waiting, budget_of(bench).waiting_bytes) == (0, 0)

    play(scenario, **settings)


def test_who_is_refused_after_the_load_is_counted_once(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        name = on_disk(bench)[0]
        found = await asyncio.gather(*(bench.ask(name) for _ in range(3)), return_exceptions=True)
        refused = sum(isinstance(each, ResourceExhausted) for each in found)
        assert refused >= 2
        counted = bench.engine.metrics.of(model_of(bench, name)).refusals
        assert counted == {("RESOURCE_EXHAUSTED", "slo"): refused}

    play(scenario, slo_s=1e-6)


def test_who_goes_away_waits_no_more_and_nothing_is_loaded_for_nobody(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        before = in_memory(bench)
        async with budget_of(bench).turn:
            cold = on_disk(bench)[0]
            asked = Asked(bench, cold)
            bench.engine.cancel(asked.model, asked.request)
        async with budget_of(bench).turn:
            assert in_memory(bench) == before
        assert not asked.answered
        assert budget_of(bench).waiting == 0

    play(scenario)


def test_a_model_larger_than_the_budget_is_refused(play: Play, root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        (root / "m9" / "1").mkdir(parents=True)
        adds(root / "m9" / "1" / "model.onnx", 9)
        (root / "m9" / "1" / "model.data").write_bytes(bytes(8 * MIB))
        with pytest.raises(FailedPrecondition, match=r"'m9' takes 9.0 MiB, .* is 2.5 MiB; raise --memory-budget"):
            await bench.load("m9")
        assert bench.served()["m9:1"] == "UNAVAILABLE"
        assert "raise --memory-budget" in bench.reason("m9")
        assert await bench.ask("m5") == 5.0

    play(scenario)


def test_pinned_models_are_loaded_at_start_and_stay(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        assert "m5" in in_memory(bench)
        for number in (2, 3, 4, 0, 2, 3):
            assert await bench.ask(f"m{number}") == number
            assert "m5" in in_memory(bench)

    play(scenario, pin=["m5"])


def test_a_budget_full_of_pinned_models_refuses_the_others(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(ResourceExhausted, match="pinned") as caught:
            await bench.ask("m2")
        assert caught.value.retry_after_s is not None
        assert bench.served()["m2:1"] == "READY"  # it may be asked again, when there is room
        await bench.unload("m1")
        assert await bench.ask("m2") == 2.0

    play(scenario, pin=["m0", "m1"])


def test_loads_and_evictions_are_counted(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        for number in (0, 1, 2, 3, 4, 5, 0):
            await bench.ask(f"m{number}")
        text = bench.engine.metrics.render().decode()
        loads, evictions, taken = (
            {line.split('"')[1]: float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name}{{")}
            for name in ("salver_model_loads_total", "salver_model_evictions_total", "salver_model_memory_bytes")
        )
        assert set(loads) == {f"m{number}" for number in range(6)}
        assert min(loads.values()) >= 1.0
        assert sum(loads.values()) - sum(evictions.values()) == len(in_memory(bench))
        assert {name for name, size in taken.items() if size} == in_memory(bench)
        assert sum(taken.values()) == budget_of(bench).used_bytes

    play(scenario)


def test_models_with_sequences_stay_while_those_live(play: Play, root: Path) -> None:
    (root / "m0" / "model.toml").write_text("[sequence]\nidle_timeout_s = 60\n")
    (root / "m1" / "model.toml").write_text("[sequence]\nidle_timeout_s = 60\n")

    async def scenario(bench: Bench) -> None:
        for name in ("m0", "m1"):
            assert await Asked(bench, name, sequence=SequenceStep(7, start=True)).value() == float(name[1:])
        with pytest.raises(ResourceExhausted, match="sequences"):
            await bench.ask("m2")
        assert await Asked(bench, "m0", sequence=SequenceStep(7, end=True)).value() == 0.0
        assert await bench.ask("m2") == 2.0
        assert in_memory(bench) == {"m1", "m2"}

    play(scenario)


def test_what_a_model_has_taken_is_answered_before_it_goes(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.ask("m0")
        await bench.ask("m1")
        await let_stays_end(bench)
        asked = [Asked(bench, name) for _ in range(50) for name in ("m0", "m1", "m2")]
        assert [await one.value() for one in asked] == [0.0, 1.0, 2.0] * 50

    play(scenario)


def test_a_model_stays_for_a_while_after_it_was_loaded(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.ask("m0")
        await bench.ask("m1")
        for name in in_memory(bench):
            model_of(bench, name).stays_until_s = time.monotonic() + 0.1
        asked, cold = time.monotonic(), on_disk(bench)[0]
        assert await bench.ask(cold) == float(cold[1:])
        assert time.monotonic() - asked >= 0.09

    play(scenario)


def test_an_administrator_loads_and_unloads(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        await let_stays_end(bench)
        await bench.load("m5")
        assert "m5" in in_memory(bench)
        assert len(in_memory(bench)) == 2
        await bench.unload("m5")
        assert bench.served()["m5:"] == "UNAVAILABLE"
        with pytest.raises(Unavailable, match="not loaded: unloaded"):
            bench.engine.find("m5")
        await bench.load("m5")
        assert await bench.ask("m5") == 5.0
        await bench.unload("m4")  # one on disk
        assert bench.served()["m4:"] == "UNAVAILABLE"

    play(scenario)


def test_a_new_version_is_tasted_before_it_takes_the_place_of_one_on_disk(play: Play, root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        cold = on_disk(bench)[0]
        (root / cold / "1" / "model.onnx").write_bytes(b"no model")
        with pytest.raises(SalverError, match="not an ONNX model"):
            await bench.load(cold)
        adds(root / cold / "1" / "model.onnx", 70)
        await bench.load(cold)
        assert await bench.ask(cold) == 70.0
        assert cold in in_memory(bench)

    play(scenario)


def test_a_load_that_fails_says_so_and_others_go_on(play: Play, root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        cold, other = on_disk(bench)[:2]
        good = (root / cold / "1" / "model.onnx").read_bytes()
        (root / cold / "1" / "model.onnx").write_bytes(b"no model")
        asked = [Asked(bench, cold) for _ in range(3)]
        for one in asked:
            with pytest.raises(Unavailable, match="could not be loaded"):
                await one.value()
        assert bench.served()[f"{cold}:1"] == "UNAVAILABLE"
        assert "the last load failed" in bench.reason(cold)
        with pytest.raises(Unavailable, match="the last load failed"):
            await bench.ask(cold)
        assert await bench.ask(other) == float(other[1:])
        assert bench.engine.ready
        (root / cold / "1" / "model.onnx").write_bytes(good)
        await bench.load(cold)
        assert await bench.ask(cold) == float(cold[1:])

    play(scenario)


def test_a_file_that_changed_unseen_is_not_served_under_the_old_name(play: Play, root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        cold = on_disk(bench)[0]
        adds(root / cold / "1" / "model.onnx", 70)
        with pytest.raises(Unavailable, match="has changed since it was looked at; load the model again"):
            await bench.ask(cold)
        await bench.load(cold)
        assert await bench.ask(cold) == 70.0

    play(scenario)


def test_steps_of_a_pipeline_come_and_go(play: Play, root: Path) -> None:
    (root / "sum").mkdir()
    steps = [
        f'{{model = "m{n}", inputs = {{x = "t{i}"}}, outputs = {{y = "t{i + 1}"}}}}' for i, n in enumerate((1, 2, 3))
    ]
    table = f'[pipeline]\ninputs = ["t0"]\noutputs = ["t3"]\nsteps = [{", ".join(steps)}]\n'
    (root / "sum" / "model.toml").write_text(table)

    async def scenario(bench: Bench) -> None:
        assert bench.served()["sum:1"] == "READY"
        for _ in range(3):
            assert await Asked(bench, "sum", x="t0", y="t3").value() == 6.0

    play(scenario)


def test_a_stop_refuses_who_waits(root: Path) -> None:
    async def scenario() -> None:
        bench = Bench(root, memory_budget_bytes=SMALL_BYTES)
        await bench.manager.start()
        async with budget_of(bench).turn:
            cold = on_disk(bench)[0]
            asked = Asked(bench, cold)
            await asyncio.sleep(0)
            await bench.manager.stop()
            with pytest.raises(Unavailable, match="stopping"):
                await asked.value()
        assert bench.engine.close()

    asyncio.run(scenario())


def test_who_waits_is_answered_when_its_model_is_taken_out(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        cold = on_disk(bench)[0]
        asked = [Asked(bench, cold) for _ in range(3)]
        await bench.unload(cold)
        assert [await one.value() for one in asked] == [float(cold[1:])] * 3
        assert budget_of(bench).loaded <= 2

    play(scenario)


def test_three_hundred_models_in_room_for_twenty(tmp_path: Path) -> None:
    """Random access: every answer is right, memory stays in bounds, and neither files nor threads are left behind."""
    count = 300
    adds(tmp_path / "one.onnx", 0)
    for number in range(count):
        adds(tmp_path / "models" / f"m{number}" / "1" / "model.onnx", number)

    async def scenario() -> None:
        bench = Bench(tmp_path / "models", memory_budget_bytes=20 * SMALL_BYTES)
        budget = budget_of(bench)
        assert await bench.manager.start() == []
        assert len(bench.engine.models()) == count
        assert 15 <= budget.loaded <= 25
        chosen = random.Random(7)
        peaks: list[int] = []
        for _ in range(8):
            numbers = [chosen.randrange(count) for _ in range(40)]
            assert await asyncio.gather(*(bench.ask(f"m{number}") for number in numbers)) == numbers
            assert budget.used_bytes <= budget.total_bytes
            peaks.append(heap_bytes())
        files, threads = open_files(), threading.active_count()
        for _ in range(4):
            numbers = [chosen.randrange(count) for _ in range(40)]
            assert await asyncio.gather(*(bench.ask(f"m{number}") for number in numbers)) == numbers
            peaks.append(heap_bytes())
        assert budget.evictions > 300
        assert open_files() <= files
        assert threading.active_count() <= threads
        assert max(peaks[4:]) - min(peaks[4:]) < 10 * MIB
        assert bench.engine.ready
        await bench.manager.stop()
        assert bench.engine.close()

    asyncio.run(scenario())


def test_clients_see_models_that_are_ready(root: Path) -> None:
    settings = {
        "sources": [str(root)],
        "http": "127.0.0.1:0",
        "grpc": "127.0.0.1:0",
        "memory_budget_bytes": 2 * SMALL_BYTES,
    }
    with (
        Server(ServeSettings.from_data(settings)) as server,
        triton.InferenceServerClient(server.grpc_address) as client,
    ):
        for number in (0, 5, 1, 4, 2, 3, 0):
            assert client.is_server_ready()
            assert client.is_model_ready(f"m{number}")
            assert client.get_model_metadata(f"m{number}").inputs[0].name == "x"
            tensor = triton.InferInput("x", [1, 2], "FP32")
            tensor.set_data_from_numpy(np.zeros((1, 2), np.float32))
            assert client.infer(f"m{number}", [tensor], client_timeout=20).as_numpy("y")[0, 0] == number
        index = client.get_model_repository_index().models
        assert {entry.state for entry in index} == {"READY"}
        assert 4 <= sum(entry.reason == ON_DISK for entry in index) < 6
