"""Models that one process runs for all: sequences over several workers, and models that crashed a worker."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import TensorProto, helper

from salver.core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, SalverError, Unavailable
from salver.server.engine.base import InferRequest, SequenceStep, Timing
from salver.server.processes.forward import ForwardedModel
from salver.server.processes.frames import Frames, Outputs, lay_out, pick_up
from salver.server.processes.orders import Owner
from tests.server.engine.bench import Bench, adds
from tests.server.processes.fleet import LocalFleet, Loner

Scenario = Callable[[LocalFleet], Awaitable[None]]


def sums(folder: Path) -> None:
    """Write a model that gives the sum of all that a sequence has sent."""
    shape = ["batch", 1]
    tensors = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "s", "y", "t")}
    nodes = [helper.make_node("Add", ["x", "s"], ["y"]), helper.make_node("Identity", ["y"], ["t"])]
    graph = helper.make_graph(nodes, "g", [tensors["x"], tensors["s"]], [tensors["y"], tensors["t"]])
    (folder / "1").mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "1" / "model.onnx"
    )
    (folder / "model.toml").write_text('[sequence]\nstates = [{input = "s", output = "t"}]\n')


@pytest.fixture
def root(tmp_path: Path) -> Path:
    adds(tmp_path / "models" / "m" / "1" / "model.onnx", 1)
    sums(tmp_path / "models" / "sums")
    return tmp_path / "models"


@pytest.fixture
def play(root: Path) -> Callable[..., None]:
    def play(scenario: Scenario, **settings: Any) -> None:
        async def run() -> None:
            fleet = LocalFleet(root, **settings)
            await fleet.start()
            try:
                await asyncio.wait_for(scenario(fleet), 30)
            finally:
                await fleet.stop()

        asyncio.run(run())

    return play


async def add(bench: Bench, x: float, sequence: int = 7, **more: Any) -> float:
    """One step of a sequence; the sum."""
    model = bench.engine.find("sums")
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    request = InferRequest(
        {"x": np.full((1, 1), x, np.float32)},
        1,
        lambda result, timing: answered.set_result((result, timing)),
        sequence=SequenceStep(sequence, **more),
    )
    bench.engine.submit(model, request)
    result, timing = await answered
    if isinstance(result, SalverError):
        raise result
    assert isinstance(timing, Timing)
    assert timing.queue_s > 0
    assert timing.compute_s > 0
    return float(result["y"][0, 0])


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


async def crash(fleet: LocalFleet, slot: int, *models: str, flag: int = 3) -> None:
    """Let a worker end as one does in which these models crashed, on this thread."""
    worker = fleet.workers_[slot]
    worker.blame = "crash"
    marks = worker.bench.engine.marks
    assert marks is not None
    for name in models:
        memory, start = marks._of(name)
        memory[start + flag] = 1
    await worker.end()


def test_a_sequence_goes_on_whatever_worker_is_asked(play: Callable[..., None]) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        assert isinstance(fleet.bench(1).engine.find("sums"), ForwardedModel)
        assert not isinstance(fleet.bench(0).engine.find("sums"), ForwardedModel)
        assert fleet.bench(1).engine.ready
        total = 0.0
        for step in range(8):
            total += step
            assert await add(fleet.bench(step % 2), step, start=step == 0, end=step == 7) == total
        with pytest.raises(InvalidArgument):
            await add(fleet.bench(1), 1.0)
        assert await asyncio.gather(
            *(add(fleet.bench(slot % 2), slot, sequence=slot, start=True, end=True) for slot in range(1, 20))
        ) == list(map(float, range(1, 20)))

    play(scenario)


def test_what_a_model_is_is_told_by_who_runs_it(play: Callable[..., None]) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        own, other = fleet.bench(0).engine.find("sums"), fleet.bench(1).engine.find("sums")
        for field in ("signature", "ragged", "stateful", "config", "tested", "platform", "metadata", "state"):
            assert getattr(own, field) == getattr(other, field), field
        assert [spec.name for spec in other.signature.inputs] == ["x"]
        assert fleet.bench(1).served() == {"m:1": "READY", "sums:1": "READY"}

    play(scenario)


def test_where_the_owner_goes_requests_fail_at_once_until_there_is_another(play: Callable[..., None]) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        await add(fleet.bench(1), 1.0, start=True)
        asked = asyncio.ensure_future(add(fleet.bench(1), 1.0))
        await fleet.workers_[0].end()
        with pytest.raises(Unavailable) as caught:
            await asked
        assert caught.value.retry_after_s
        model = fleet.bench(1).engine.models()
        await until(lambda: any(m.name == "sums" and m.state == "UNAVAILABLE" for m in model))
        with pytest.raises(Unavailable) as caught:
            await add(fleet.bench(1), 1.0)
        assert caught.value.retry_after_s
        assert await fleet.bench(1).ask() == 1.0
        await fleet.add(0, 1)
        await until(lambda: fleet.bench(1).served()["sums:1"] == "READY")
        assert await add(fleet.bench(1), 5.0, start=True) == 5.0
        assert await add(fleet.bench(0), 1.0, end=True) == 6.0

    play(scenario)


def test_a_replaced_owner_answers_what_it_was_asked(play: Callable[..., None]) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        old = fleet.workers_[0]
        asked = asyncio.ensure_future(add(fleet.bench(1), 3.0, start=True))
        await asyncio.sleep(0)
        await fleet.add(0, 1)
        assert await asked == 3.0
        model = fleet.bench(1).engine.find("sums")
        assert isinstance(model, ForwardedModel)
        await until(lambda: model.peer._at.endswith("/0.1"))
        assert await add(fleet.bench(1), 4.0, start=True) == 4.0
        await old.end()
        assert await add(fleet.bench(1), 1.0) == 5.0

    play(scenario)


def test_an_owner_that_leaves_does_not_make_a_load_fail(play: Callable[..., None], root: Path) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        old = fleet.workers_[0]
        await fleet.add(0, 1)
        old.state = "DRAINING"
        loading = asyncio.Event()

        async def load(*_: Any, **__: Any) -> Any:
            loading.set()
            await asyncio.Event().wait()

        old.bench.manager._models["sums"]._make = load  # type: ignore[method-assign]

        async def leave() -> None:
            await loading.wait()
            await old.bench.manager.stop()
            await asyncio.sleep(0.1)
            await old.end()

        leaving = asyncio.ensure_future(leave())
        os.utime(root / "sums" / "1" / "model.onnx")
        await fleet.bench(1).load("sums")
        await leaving
        assert await add(fleet.bench(1), 1.0, start=True) == 1.0

    play(scenario)


def test_only_so_much_waits_for_another_process(play: Callable[..., None]) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        asked = [asyncio.ensure_future(add(fleet.bench(1), 1.0, sequence=i, start=True)) for i in range(1, 7)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        refused = [result for result in results if isinstance(result, ResourceExhausted)]
        assert refused
        assert all(error.retry_after_s for error in refused)
        assert [result for result in results if not isinstance(result, SalverError)] == [1.0] * (6 - len(refused))

    play(scenario, max_queue=3)


def test_what_was_said_of_a_model_by_a_process_that_is_away_counts_no_more(play: Callable[..., None]) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        model = fleet.bench(1).engine.find("sums")
        assert isinstance(model, ForwardedModel)
        peer = model.peer
        peer._ask_what(model)
        peer.learn(Owner(0))  # before the answer is there
        await until(lambda: not peer._asked)
        assert model.state == "UNAVAILABLE"
        model.state = "READY"
        with pytest.raises(Unavailable):
            await add(fleet.bench(1), 1.0)
        assert model._open_bytes == 0

    play(scenario)


def test_who_went_away_is_not_answered(play: Callable[..., None]) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        engine, answers = fleet.bench(1).engine, []
        model = engine.find("sums")
        inputs = {"x": np.zeros((1, 1), np.float32)}
        request = InferRequest(inputs, 1, lambda *answer: answers.append(answer), sequence=SequenceStep(9, True))
        engine.submit(model, request)
        engine.cancel(model, request)
        assert model.idle
        assert await add(fleet.bench(1), 2.0, start=True) == 2.0
        assert answers == []

    play(scenario)


def test_a_model_that_crashed_a_worker_is_run_apart(play: Callable[..., None]) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        await crash(fleet, 1, "m")
        await fleet.add(1, 1)
        await until(lambda: 1000 in fleet.workers_)
        await until(lambda: all(fleet.bench(slot).served()["m:1"] == "READY" for slot in (0, 1)))
        assert fleet.bench(1000).served() == {"m:1": "READY"}
        await until(lambda: all(isinstance(fleet.bench(slot).engine.find("m"), ForwardedModel) for slot in (0, 1)))
        for slot in (0, 1):
            assert fleet.bench(slot).engine.ready
            assert await fleet.bench(slot).ask() == 1.0
        adds(Path(fleet.settings.sources[0]) / "m" / "2" / "model.onnx", 2)
        await fleet.bench(1).load("m")
        assert await fleet.answers() == [2.0] * 3
        await crash(fleet, 1000, "m")
        await until(lambda: fleet.bench(0).served()["m:2"] == "UNAVAILABLE")
        await until(lambda: "crashed 2 times; next try in 4 s" in fleet.bench(0).reason("m", "2"))
        with pytest.raises(Unavailable) as caught:
            await fleet.bench(0).ask()
        assert caught.value.retry_after_s == 4.0
        assert fleet.bench(0).engine.ready
        assert await add(fleet.bench(1), 1.0, start=True) == 1.0
        await fleet.add(1000, 1)
        await until(lambda: fleet.bench(0).served()["m:2"] == "READY")
        assert await fleet.answers() == [2.0] * 3

    play(scenario)


def test_a_process_that_ran_a_model_which_is_gone_runs_the_next(play: Callable[..., None], root: Path) -> None:
    adds(root / "next" / "1" / "model.onnx", 5)

    async def scenario(fleet: LocalFleet) -> None:
        await crash(fleet, 1, "m")
        await fleet.add(1, 1)
        await until(lambda: fleet.bench(0).served().get("m:1") == "READY" and 1000 in fleet.workers_)
        shutil.rmtree(root / "m")
        await fleet.catalog._keeper.poll()
        await fleet.catalog._keeper.poll()
        await until(lambda: "m" not in {model.name for model in fleet.catalog._keeper.models})
        await crash(fleet, 1, "next")
        await fleet.add(1, 2)
        await until(lambda: all(isinstance(fleet.bench(slot).engine.find("next"), ForwardedModel) for slot in (0, 1)))
        assert fleet.bench(1000).served() == {"next:1": "READY"}
        assert sorted(fleet.workers_) == [0, 1, 1000]
        assert await fleet.answers("next") == [5.0] * 3

    play(scenario)


def test_a_model_with_state_is_run_apart_as_well(play: Callable[..., None]) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        await crash(fleet, 0, "sums")
        await fleet.add(0, 1)
        await until(lambda: 1000 in fleet.workers_)
        await until(lambda: all(fleet.bench(slot).served()["sums:1"] == "READY" for slot in (0, 1)))
        assert all(isinstance(fleet.bench(slot).engine.find("sums"), ForwardedModel) for slot in (0, 1))
        assert await add(fleet.bench(0), 1.0, start=True) == 1.0
        assert await add(fleet.bench(1), 1.0) == 2.0

    play(scenario)


def test_one_of_several_suspects_is_not_blamed_for_one_crash(play: Callable[..., None]) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        await crash(fleet, 1, "m", "sums")
        await fleet.add(1, 1)
        assert 1000 not in fleet.workers_
        assert await fleet.answers() == [1.0, 1.0]
        await crash(fleet, 1, "m")
        await fleet.add(1, 2)
        await until(lambda: 1000 in fleet.workers_)

    play(scenario)


def test_an_end_that_is_no_crash_blames_nobody(play: Callable[..., None]) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        worker = fleet.workers_[1]
        assert worker.bench.engine.marks is not None
        memory, start = worker.bench.engine.marks._of("m")
        memory[start + 3] = 1
        await worker.end()
        await fleet.add(1, 1)
        assert 1000 not in fleet.workers_

    play(scenario)


def test_a_model_that_crashes_who_loads_it_is_tried_a_few_times(root: Path) -> None:
    async def run() -> None:
        fleet = LocalFleet(root)
        for service in fleet.services:
            await service.start()
        for generation in range(3):
            assert 1000 not in fleet.workers_
            worker = Loner(0, fleet, generation)
            await worker.open()
            fleet.workers_[0] = worker
            await crash(fleet, 0, "m", flag=50)
        await fleet.add(0, 3)
        assert fleet.bench(0).served() == {"m:1": "READY", "sums:1": "READY"}
        assert await fleet.bench(0).ask() == 1.0
        assert 1000 in fleet.workers_
        await fleet.stop()

    asyncio.run(run())


def test_a_run_that_hung_twice_is_run_apart(play: Callable[..., None]) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        for generation in (1, 2):
            assert 1000 not in fleet.workers_
            fleet.workers_[1].blame = "hang"
            marks = fleet.bench(1).engine.marks
            assert marks is not None
            memory, start = marks._of("m")
            memory[start] = 1
            await fleet.workers_[1].end()
            await fleet.add(1, generation)
        await until(lambda: 1000 in fleet.workers_)

    play(scenario)


@given(
    arrays=st.dictionaries(
        st.text(max_size=8),
        npst.arrays(
            st.one_of(npst.integer_dtypes(endianness="<"), npst.floating_dtypes(endianness="<"), npst.boolean_dtypes()),
            npst.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4),
        )
        | npst.arrays(object, npst.array_shapes(max_dims=2), elements=st.text() | st.just("\ud800"))
        | npst.arrays(object, 3, elements=st.binary(max_size=5)),
        max_size=3,
    ),
    pieces=st.integers(1, 9),
)
def test_tensors_come_through_whole(arrays: dict[str, Any], pieces: int) -> None:
    sent = bytearray()

    class Wire:
        def is_closing(self) -> bool:
            return False

        def writelines(self, parts: Any) -> None:
            for part in parts:
                sent.extend(part)

    received: list[Any] = []
    out, into = Frames(lambda *_: None, lambda: None), Frames(lambda *got: received.append(got), lambda: None)
    out.connection_made(Wire())  # type: ignore[arg-type]  # what it uses of a transport
    tensors, parts = lay_out(arrays)
    for number in (1, 2):
        out.send(Outputs(number, None, tensors), parts)
    step = max(1, len(sent) // pieces)
    for start in range(0, len(sent), step):
        into.data_received(bytes(sent[start : start + step]))
    assert [head.number for head, _ in received] == [1, 2]
    for head, body in received:
        found = pick_up(head.tensors, body)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert found[name].shape == array.shape
            if array.dtype == object:
                assert found[name].tolist() == array.tolist()
            else:
                assert found[name].tobytes() == array.tobytes()


def test_a_version_that_its_owner_cannot_load_is_refused(play: Callable[..., None], root: Path) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        (root / "sums" / "2").mkdir()
        (root / "sums" / "2" / "model.onnx").write_bytes(b"no model")
        with pytest.raises(FailedPrecondition):
            await fleet.bench(1).load("sums")
        assert await add(fleet.bench(1), 1.0, start=True) == 1.0
        assert await add(fleet.bench(0), 1.0) == 2.0

    play(scenario)
