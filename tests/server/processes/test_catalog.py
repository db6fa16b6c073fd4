"""One repository over several workers: every step of a change, and every way in which it fails."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from salver.core.errors import FailedPrecondition, NotFound, ResourceExhausted, SalverError, Unavailable
from salver.server.engine.managed import ManagedModel
from salver.server.engine.planned import Failure
from salver.testing.repository import Play, RepositoryConformance, move, unload
from tests.server.engine.bench import adds
from tests.server.processes.fleet import LocalFleet

Scenario = Callable[[LocalFleet], Awaitable[None]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The repository, with versions 1 and 2 of ``m``, which add their number."""
    for version in (1, 2):
        adds(tmp_path / "models" / "m" / str(version) / "model.onnx", version)
    return tmp_path / "models"


@pytest.fixture
def play(root: Path) -> Callable[..., None]:
    """Run a scenario with two workers."""

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


class TestRemoteRepository(RepositoryConformance):
    """The suite of every repository, through one of two workers."""

    @pytest.fixture
    def play(self, root: Path) -> Play:
        async def run(scenario: Any) -> None:
            fleet = LocalFleet(root, versions="all")
            await fleet.start()
            try:
                await asyncio.wait_for(scenario(fleet.bench(1).engine), 30)
            finally:
                await fleet.stop()

        return lambda scenario: asyncio.run(run(scenario))


def test_a_load_through_any_worker_is_done_by_all(play: Callable[..., None], root: Path) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        assert await fleet.answers() == [2.0, 2.0]
        assert fleet.tasted == []
        for version, slot in ((3, 0), (4, 1)):
            adds(root / "m" / str(version) / "model.onnx", version)
            await fleet.bench(slot).load("m")
            assert await fleet.answers() == [version, version]
        assert fleet.tasted == ["m:3", "m:4"]
        await fleet.bench().load("m")
        assert fleet.tasted == ["m:3", "m:4"]
        adds(root / "m" / "4" / "model.onnx", 44)
        await fleet.bench().load("m")
        assert await fleet.answers() == [44.0, 44.0]
        assert [worker.bench.served() for worker in fleet.workers_.values()] == [{"m:4": "READY"}] * 2

    play(scenario)


def test_what_fails_its_tasting_is_loaded_by_none(play: Callable[..., None], root: Path) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        adds(root / "m" / "3" / "model.onnx", 3)
        fleet.verdicts["3"] = Failure.of(FailedPrecondition("it was killed by signal 11 (SIGSEGV)"))
        with pytest.raises(FailedPrecondition, match="SIGSEGV"):
            await fleet.bench(1).load("m")
        assert await fleet.answers() == [2.0, 2.0]
        for slot in (0, 1):
            assert fleet.bench(slot).served() == {"m:2": "READY", "m:3": "UNAVAILABLE"}
            assert "SIGSEGV" in fleet.bench(slot).reason("m", "3")
        fleet.verdicts.clear()
        await fleet.bench().load("m")
        assert await fleet.answers() == [3.0, 3.0]
        assert fleet.bench(1).served() == {"m:3": "READY"}

    play(scenario)


def test_a_worker_that_cannot_make_a_version_ready_is_replaced(
    play: Callable[..., None], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        first = fleet.workers_[0]
        engine = first.bench.engine
        make = ManagedModel._make

        async def fail(self: Any, *given: Any, **more: Any) -> Any:
            if self._engine is engine:
                raise ResourceExhausted("no memory here")
            return await make(self, *given, **more)

        monkeypatch.setattr(ManagedModel, "_make", fail)
        adds(root / "m" / "3" / "model.onnx", 3)
        await fleet.bench(1).load("m")
        assert first.replaced == ["no memory here"]
        assert first.state == "GONE"
        assert fleet.workers_[0].generation == 1
        assert await fleet.answers() == [3.0, 3.0]

    play(scenario)


def test_where_no_worker_can_all_serve_on_with_what_they_have(
    play: Callable[..., None], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Any, *given: Any, **more: Any) -> Any:
        raise ResourceExhausted("no memory anywhere")

    async def scenario(fleet: LocalFleet) -> None:
        adds(root / "m" / "3" / "model.onnx", 3)
        with monkeypatch.context() as patch:
            patch.setattr(ManagedModel, "_make", fail)
            with pytest.raises(ResourceExhausted, match="no memory anywhere"):
                await fleet.bench().load("m")
        assert await fleet.answers() == [2.0, 2.0]
        assert not any(worker.replaced for worker in fleet.workers_.values())
        await fleet.bench().load("m")
        assert await fleet.answers() == [3.0, 3.0]

    play(scenario)


@pytest.mark.parametrize("when", ["_prepare", "_commit"])
def test_a_worker_that_dies_in_between_is_waited_for_no_longer(
    play: Callable[..., None], root: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        victim = fleet.workers_[1]

        async def die(message: Any) -> None:
            ends.append(asyncio.ensure_future(victim.end()))
            await asyncio.sleep(60)

        ends: list[Any] = []

        victim.own.on(f"catalog.{when[1:]}", Any, die)
        adds(root / "m" / "3" / "model.onnx", 3)
        await fleet.bench(0).load("m")
        assert await fleet.answers() == [3.0]
        await fleet.add(1, 1)
        assert await fleet.answers() == [3.0, 3.0]

    play(scenario)


def test_a_worker_that_joins_during_a_change_takes_part(play: Callable[..., None], root: Path) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        late: list[Any] = []
        taste = fleet.catalog._keeper._taste
        adds(root / "m" / "3" / "model.onnx", 3)

        async def join(*given: Any) -> Any:
            from tests.server.processes.fleet import Loner

            worker = Loner(2, fleet)
            await worker.open()  # it has been told to load version 2
            late.append(worker)
            return await taste(*given)

        fleet.catalog._keeper._models["m"]._taste = join
        load = asyncio.ensure_future(fleet.bench().load("m"))
        while not late:
            await asyncio.sleep(0.001)
        await late[0].start()
        fleet.workers_[2] = late[0]
        await load
        assert await fleet.answers() == [3.0, 3.0, 3.0]

    play(scenario)


def test_a_fresh_worker_serves_what_the_others_do_not_what_lies_there(play: Callable[..., None], root: Path) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        await move(fleet.bench().manager, "m", "stable", "2")
        adds(root / "m" / "3" / "model.onnx", 3)  # nobody has asked for it yet
        await fleet.workers_[1].end()
        await fleet.add(1, 1)
        assert await fleet.answers() == [2.0, 2.0]
        assert fleet.bench(1).manager.labels("m") == {"stable": "2"}
        assert fleet.bench(1).engine.ready

    play(scenario)


def test_files_that_changed_unasked_are_tasted_before_a_fresh_worker_serves_them(
    play: Callable[..., None], root: Path
) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        adds(root / "m" / "2" / "model.onnx", 22)
        await fleet.workers_[1].end()
        await fleet.add(1, 1)
        assert fleet.tasted == ["m:2"]
        assert await fleet.answers() == [22.0, 22.0]

    play(scenario)


def test_unloading_and_labels_hold_for_all(play: Callable[..., None], root: Path) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        await move(fleet.bench(1).manager, "m", "stable", "2")
        for slot in (0, 1):
            assert fleet.bench(slot).manager.labels("m") == {"stable": "2"}
        with pytest.raises(NotFound):
            await move(fleet.bench(1).manager, "m", "stable", "7")
        await unload(fleet.bench(0).manager, "m")
        for slot in (0, 1):
            assert fleet.bench(slot).served() == {"m:": "UNAVAILABLE"}
            assert fleet.bench(slot).reason("m", "") == "unloaded"
        await fleet.workers_[1].end()
        await fleet.add(1, 1)
        assert fleet.bench(1).reason("m", "") == "unloaded"
        adds(root / "m" / "3" / "model.onnx", 3)
        await fleet.bench(1).load("m")
        assert await fleet.answers() == [3.0, 3.0]
        assert await fleet.answers(version="stable") == [2.0, 2.0]
        with pytest.raises(NotFound):
            await fleet.bench(1).load("nothing")
        with pytest.raises(NotFound):
            await unload(fleet.bench(1).manager, "nothing")

    play(scenario)


def test_an_upload_outlives_the_worker_that_brought_it(play: Callable[..., None], tmp_path: Path) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        content = adds(tmp_path / "sent.onnx", 9).read_bytes()
        await fleet.bench(1).load("m", files={"5/model.onnx": content}, config={})
        assert await fleet.answers() == [9.0, 9.0]
        await fleet.workers_[1].end()
        await fleet.add(1, 1)
        assert await fleet.answers() == [9.0, 9.0]
        await fleet.bench().load("new", files={"1/model.onnx": content})
        assert await fleet.answers("new") == [9.0, 9.0]
        folder = fleet.catalog._keeper._models["new"].origin.upload.path
        await unload(fleet.bench(1).manager, "new")
        assert not folder.exists()
        assert fleet.bench(0).served() == {"m:5": "READY"}
        await fleet.bench().load("m")
        assert await fleet.answers() == [2.0, 2.0]

    play(scenario, allow_uploads=True)


def test_the_folders_are_watched_once_for_all(play: Callable[..., None], root: Path) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        adds(root / "m" / "3" / "model.onnx", 3)
        adds(root / "n" / "1" / "model.onnx", 1)
        while fleet.bench(0).served() != {"m:3": "READY", "n:1": "READY"}:
            await asyncio.sleep(0.01)
        while fleet.bench(1).served() != {"m:3": "READY", "n:1": "READY"}:
            await asyncio.sleep(0.01)
        assert sorted(fleet.tasted) == ["m:3", "n:1"]
        shutil.rmtree(root / "n")
        while any("n:1" in fleet.bench(slot).served() for slot in (0, 1)):
            await asyncio.sleep(0.01)

    play(scenario, watch_s=0.02)


def test_changes_through_different_workers_follow_one_another(play: Callable[..., None], root: Path) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        async def change(slot: int, version: int) -> None:
            adds(root / "m" / "2" / "model.onnx", version)
            try:
                await fleet.bench(slot).load("m")
                if version % 3 == 0:
                    await unload(fleet.bench(slot).manager, "m")
            except SalverError as error:
                assert isinstance(error, (Unavailable, FailedPrecondition)), error

        await asyncio.gather(*(change(version % 2, version) for version in range(10, 22)))
        await fleet.bench().load("m")
        assert len(set(await fleet.answers())) == 1
        states = [fleet.bench(slot).served() for slot in (0, 1)]
        assert states[0] == states[1] == {"m:2": "READY"}

    play(scenario)


def test_pipelines_are_served_by_all(play: Callable[..., None], root: Path) -> None:
    (root / "twice").mkdir()
    (root / "twice" / "model.toml").write_text(
        '[pipeline]\ninputs = ["x"]\noutputs = ["y"]\n'
        '[[pipeline.steps]]\nmodel = "m"\ninputs = {x = "x"}\noutputs = {y = "z"}\n'
        '[[pipeline.steps]]\nmodel = "m"\ninputs = {x = "z"}\noutputs = {y = "y"}\n'
    )

    async def scenario(fleet: LocalFleet) -> None:
        assert await fleet.answers("twice") == [4.0, 4.0]
        with pytest.raises(FailedPrecondition, match="is a step of 'twice'"):
            await unload(fleet.bench(1).manager, "m")
        await unload(fleet.bench(1).manager, "twice", dependents=True)
        assert fleet.bench(0).served() == {"m:": "UNAVAILABLE", "twice:": "UNAVAILABLE"}
        await fleet.bench(0).load("twice")
        assert await fleet.answers("twice") == [4.0, 4.0]
        assert fleet.tasted == ["m:2"]

    play(scenario)


def test_a_version_that_cannot_be_served_at_start_leaves_it_to_a_lower_one(root: Path) -> None:
    (root / "m" / "3").mkdir()
    (root / "m" / "3" / "model.onnx").write_bytes(b"no model")

    async def run() -> None:
        fleet = LocalFleet(root)
        await fleet.start()
        try:
            assert await fleet.answers() == [2.0, 2.0]
            assert fleet.bench(1).served() == {"m:2": "READY", "m:3": "UNAVAILABLE"}
            await fleet.workers_[1].end()
            await fleet.add(1, 1)
            assert fleet.bench(1).served() == {"m:2": "READY", "m:3": "UNAVAILABLE"}
            assert fleet.tasted == []
        finally:
            await fleet.stop()

    asyncio.run(run())


def test_an_upload_for_which_there_is_no_room_is_refused(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "full"))
        with pytest.raises(ResourceExhausted, match="cannot be kept"):
            await fleet.bench(1).load("m", files={"5/model.onnx": b"a"})
        assert await fleet.answers() == [2.0, 2.0]

    play(scenario, allow_uploads=True)


def test_other_settings_are_followed_by_all(play: Callable[..., None]) -> None:
    async def scenario(fleet: LocalFleet) -> None:
        fleet.settings = msgspec.structs.replace(fleet.settings, versions="all")
        fleet.catalog.settings_changed()
        both = {"m:1": "READY", "m:2": "READY"}
        while not all(fleet.bench(slot).served() == both for slot in (0, 1)):
            await asyncio.sleep(0.01)

    play(scenario)
