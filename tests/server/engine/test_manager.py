"""The repository at work: real models on a real disk, behind a real engine; the watch is driven by hand."""

from __future__ import annotations

import asyncio
import gc
import re
import shutil
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.core.errors import (
    CorruptArtifact,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    SalverError,
    Unavailable,
)
from salver.core.model import Model
from salver.server.engine.base import InferRequest
from salver.server.engine.repository import Sources
from salver.server.engine.served import LoadedModel
from salver.testing.repository import Play, RepositoryConformance
from tests.server.engine.bench import Bench, adds
from tests.server.test_app import make_endless


def onnx_bytes(tmp_path: Path, value: float) -> bytes:
    return adds(tmp_path / "sent" / "model.onnx", value).read_bytes()


Scenario = Callable[[Bench], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Run a scenario on the repository in ``tmp_path / "models"``."""

    async def run(scenario: Scenario, settings: dict[str, Any]) -> None:
        bench = Bench(tmp_path / "models", **settings)
        try:
            await asyncio.wait_for(scenario(bench), 60)
        finally:
            await bench.manager.stop()
            bench.engine.close()

    def play(scenario: Scenario, **settings: Any) -> None:
        asyncio.run(run(scenario, settings))

    (tmp_path / "models").mkdir()
    return play


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The repository, with versions 1, 2 and 3 of ``m``, which add their number."""
    for version in (1, 2, 3):
        adds(tmp_path / "models" / "m" / str(version) / "model.onnx", version)
    return tmp_path / "models"


class TestModelManager(RepositoryConformance):
    """The suite that the fake of frontends' tests passes too."""

    @pytest.fixture
    def play(self, tmp_path: Path) -> Play:
        for version in ("1", "2"):
            adds(tmp_path / "m" / version / "model.onnx", 1)

        async def run(scenario: Any) -> None:
            bench = Bench(tmp_path, versions="all")
            await bench.manager.start()
            try:
                await scenario(bench.engine)
            finally:
                await bench.manager.stop()
                bench.engine.close()

        return lambda scenario: asyncio.run(run(scenario))


@pytest.mark.parametrize(
    ("policy", "versions"),
    [("latest", {"3"}), ("latest:2", {"2", "3"}), ("all", {"1", "2", "3"}), ("1,3", {"1", "3"})],
)
def test_versions_are_served_by_policy(play: Callable[..., None], root: Path, policy: str, versions: set[str]) -> None:
    async def scenario(bench: Bench) -> None:
        assert await bench.manager.start() == []
        assert bench.served() == {f"m:{v}": "READY" for v in versions}
        for version in versions:
            assert await bench.ask("m", version) == float(version)
        assert await bench.ask() == 3.0
        assert bench.engine.ready

    play(scenario, versions=policy)


def test_a_folder_and_a_table_say_which_versions(play: Callable[..., None], root: Path) -> None:
    (root / "m" / "model.toml").write_text('versions = "1"\nlanes = 2\nlabels = {stable = "1"}\n')
    for version in (1, 2):
        adds(root / "n" / str(version) / "model.onnx", version)
    (root / "n" / "model.toml").write_text('versions = "1"\n')

    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        assert bench.served() == {"m:1": "READY", "n:2": "READY"}
        assert bench.engine.find("m", "stable").metadata["lanes"] == 2
        assert bench.engine.find("m").config.labels == {"stable": "1"}

    play(scenario, models={"n": {"versions": "2"}})


def test_a_load_request_stands_above_the_settings(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        assert bench.served() == {"m:1": "READY"}
        assert str(bench.engine.find("m").config.versions) == "1"
        await bench.load("m", config={"version_policy": {"specific": {"versions": [2]}}})
        await asyncio.sleep(0.05)
        assert bench.served() == {"m:2": "READY"}
        assert bench.engine.find("m").metadata["lanes"] == 2
        assert str(bench.engine.find("m").config.versions) == "2"

    play(scenario, models={"m": {"versions": "1", "lanes": 2}})


def test_a_version_that_is_asked_for_and_not_there_is_told(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        (error,) = await bench.manager.start()
        assert "no version 7; there are 1, 2, 3" in error.message
        assert bench.served() == {"m:1": "READY", "m:7": "UNAVAILABLE"}
        assert not bench.engine.ready
        adds(root / "m" / "7" / "model.onnx", 7)
        await bench.poll()
        assert await bench.ask() == 7.0
        assert bench.engine.ready

    play(scenario, versions="1,7")


def test_unload_and_load_again(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        old = bench.engine.find("m")
        await bench.unload("m")
        assert bench.served() == {"m:": "UNAVAILABLE"}
        assert bench.reason(version="") == "unloaded"
        assert bench.engine.models() == ()
        assert old not in bench.engine.metrics.records
        assert bench.engine.ready  # it was an administrator who took it out
        with pytest.raises(Unavailable, match="not loaded: unloaded"):
            bench.engine.find("m")
        await bench.load("m")
        assert bench.served() == {"m:3": "READY"}
        assert await bench.ask() == 3.0
        await bench.unload("m")
        await bench.unload("m")

    play(scenario)


def test_a_load_without_changes_changes_nothing(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        model = bench.engine.find("m")
        await bench.load("m")
        assert bench.engine.find("m") is model

    play(scenario)


def test_changed_files_take_the_place_of_the_old_and_counts_go_on(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        await bench.ask()
        adds(root / "m" / "3" / "model.onnx", 33)
        await bench.load("m")
        assert await bench.ask() == 33.0
        model = bench.engine.find("m")
        assert bench.engine.metrics.of(model).inferences == 2

    play(scenario)


def test_a_model_that_was_not_there_at_start_is_loaded(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        adds(root / "new" / "4" / "model.onnx", 4)
        await bench.load("new")
        assert await bench.ask("new") == 4.0
        with pytest.raises(NotFound, match="no model 'nothing' in the repository; known: m, new"):
            await bench.load("nothing")
        with pytest.raises(NotFound, match="no model 'nothing'"):
            bench.manager.unload("nothing", print)

    play(scenario)


def test_a_failing_version_leaves_the_old_in_service(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        (root / "m" / "4").mkdir()
        (root / "m" / "4" / "model.onnx").write_bytes(b"\x08\x07\x12")
        with pytest.raises(CorruptArtifact):
            await bench.load("m")
        assert bench.served() == {"m:3": "READY", "m:4": "UNAVAILABLE"}
        assert "model.onnx" in bench.reason(version="4")
        assert await bench.ask() == 3.0
        assert bench.engine.ready  # a later version cannot take that away
        adds(root / "m" / "4" / "model.onnx", 4)
        await bench.load("m")
        assert await bench.ask() == 4.0
        (root / "m" / "4" / "model.onnx").write_bytes(b"\x08\x07\x12")
        with pytest.raises(CorruptArtifact):
            await bench.load("m")
        assert await bench.ask() == 4.0
        assert "the last load failed" in bench.reason(version="4")
        adds(root / "m" / "4" / "model.onnx", 44)
        await bench.load("m")
        assert (await bench.ask(), bench.reason(version="4")) == (44.0, "")

    play(scenario)


def test_a_model_that_fails_at_start_keeps_the_server_unready_until_mended_or_unloaded(
    play: Callable[..., None], root: Path
) -> None:
    (root / "bad" / "1").mkdir(parents=True)
    (root / "bad" / "1" / "model.onnx").write_bytes(b"")
    (root / "worse").mkdir()
    (root / "worse" / "model.toml").write_text("lane = 1")

    async def scenario(bench: Bench) -> None:
        errors = await bench.manager.start()
        assert len(errors) == 2
        assert bench.served() == {"m:3": "READY", "bad:1": "UNAVAILABLE", "worse:1": "UNAVAILABLE"}
        assert "Did you mean 'lanes'" in bench.reason("worse")
        assert not bench.engine.ready
        adds(root / "bad" / "2" / "model.onnx", 2)
        await bench.load("bad")
        assert not bench.engine.ready
        await bench.unload("worse")
        assert bench.engine.ready
        assert bench.served() == {"m:3": "READY", "bad:2": "READY", "worse:": "UNAVAILABLE"}

    play(scenario)


def test_a_swap_under_load_fails_no_request(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        seen: set[float] = set()
        going = True

        async def client() -> None:
            while going:
                seen.add(await bench.ask())

        clients = [asyncio.ensure_future(client()) for _ in range(8)]
        for value in (30.0, 31.0, 32.0):
            adds(root / "m" / "3" / "model.onnx", value)
            await bench.load("m")
            assert await bench.ask() == value
        adds(root / "m" / "5" / "model.onnx", 5)
        await bench.load("m")
        going = False
        await asyncio.gather(*clients)
        assert {3.0, 30.0, 31.0, 32.0} <= seen <= {3.0, 30.0, 31.0, 32.0, 5.0}
        while "m:3" in bench.served():
            await asyncio.sleep(0.001)
        assert bench.served() == {"m:5": "READY"}

    play(scenario)


def test_requests_taken_are_answered_before_a_model_goes(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        asked = [asyncio.ensure_future(bench.ask()) for _ in range(20)]
        await asyncio.sleep(0)
        await bench.unload("m")
        assert [await a for a in asked] == [3.0] * 20

    play(scenario)


def test_labels_are_moved_and_found(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        manager = bench.manager
        manager.move_label("m", "stable", "1")
        manager.move_label("m", "canary", "3")
        assert (await bench.ask("m", "stable"), await bench.ask("m", "canary")) == (1.0, 3.0)
        manager.move_label("m", "stable", "2")
        assert await bench.ask("m", "stable") == 2.0
        assert manager.labels("m") == {"stable": "2", "canary": "3"}
        manager.move_label("m", "canary", None)
        with pytest.raises(NotFound, match="no version 'canary'; served: 1, 2, 3; labels: stable"):
            bench.engine.find("m", "canary")
        with pytest.raises(NotFound, match="no version '9'"):
            manager.move_label("m", "stable", "9")
        with pytest.raises(NotFound, match="no model 'n'"):
            manager.move_label("n", "stable", "1")
        for label in ("1", "", "a b", "x/y", "-", "é"):
            with pytest.raises(InvalidArgument, match="cannot be a label"):
                manager.move_label("m", label, "1")

    play(scenario, versions="all")


def test_a_labelled_version_stays_while_its_label_does(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        bench.manager.move_label("m", "stable", "3")
        adds(root / "m" / "4" / "model.onnx", 4)
        await bench.load("m")
        assert bench.served() == {"m:3": "READY", "m:4": "READY"}
        shutil.rmtree(root / "m" / "3")
        await bench.load("m")
        assert await bench.ask("m", "stable") == 3.0
        bench.manager.move_label("m", "stable", "4")
        await bench.load("m")
        await asyncio.sleep(0.05)
        assert bench.served() == {"m:4": "READY"}
        await bench.unload("m")
        assert bench.manager.labels("m") == {}

    play(scenario)


def test_a_label_names_only_what_is_ready(play: Callable[..., None], root: Path) -> None:
    (root / "m" / "4").mkdir()
    (root / "m" / "4" / "model.onnx").write_bytes(b"")

    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        with pytest.raises(FailedPrecondition, match="version 4 of model 'm' is UNAVAILABLE"):
            bench.manager.move_label("m", "canary", "4")

    play(scenario, versions="all")


def test_labels_outlive_an_unload(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        for label, version in (("stable", "1"), ("canary", "3"), ("old", "2")):
            bench.manager.move_label("m", label, version)
        await bench.unload("m")
        assert bench.manager.labels("m") == {}
        bench.manager.move_label("m", "canary", None)
        shutil.rmtree(root / "m" / "2")
        await bench.load("m")
        assert bench.manager.labels("m") == {"stable": "1"}
        assert bench.served() == {"m:1": "READY", "m:3": "READY"}

    play(scenario, versions="all")


def test_a_version_that_fails_at_start_leaves_it_to_the_next_lower_one(play: Callable[..., None], root: Path) -> None:
    for version in ("3", "2"):
        (root / "m" / version / "model.onnx").write_bytes(b"no model")

    async def scenario(bench: Bench) -> None:
        (error,) = await bench.manager.start()
        assert isinstance(error, CorruptArtifact)
        assert bench.served() == {"m:1": "READY", "m:2": "UNAVAILABLE", "m:3": "UNAVAILABLE"}
        assert await bench.ask() == 1.0
        assert bench.engine.ready
        adds(root / "m" / "3" / "model.onnx", 3)
        await bench.load("m")
        await asyncio.sleep(0.05)
        assert bench.served() == {"m:3": "READY"}

    play(scenario)


def test_versions_that_were_named_have_no_substitute(play: Callable[..., None], root: Path) -> None:
    (root / "m" / "3" / "model.onnx").write_bytes(b"no model")

    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        assert bench.served() == {"m:3": "UNAVAILABLE"}
        assert not bench.engine.ready

    play(scenario, versions="3")


def test_labels_of_the_folder_bring_their_versions(play: Callable[..., None], root: Path) -> None:
    config = root / "m" / "model.toml"
    config.write_text('labels = {stable = "1", old = "8"}')

    async def scenario(bench: Bench) -> None:
        assert await bench.manager.start() == []
        assert bench.served() == {"m:1": "READY", "m:3": "READY"}
        assert bench.manager.labels("m") == {"stable": "1"}
        bench.manager.move_label("m", "stable", "3")
        await bench.load("m")
        assert bench.manager.labels("m") == {"stable": "3"}  # what was moved by hand stays
        bench.manager.move_label("m", "by_hand", "3")
        config.write_text('labels = {stable = "2"}')
        adds(root / "m" / "4" / "model.onnx", 4)
        await bench.load("m")
        assert bench.manager.labels("m") == {"stable": "2", "by_hand": "3"}
        await asyncio.sleep(0.05)
        assert bench.served() == {"m:2": "READY", "m:3": "READY", "m:4": "READY"}

    play(scenario)


def test_the_watch_follows_the_folders(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        await bench.poll(3)
        assert bench.served() == {"m:3": "READY"}
        adds(root / "m" / "4" / "model.onnx", 4)
        await bench.poll(1)
        assert bench.served() == {"m:3": "READY"}  # it may still be written
        await bench.poll(1)
        assert await bench.ask() == 4.0
        adds(root / "m" / "4" / "model.onnx", 44)
        adds(root / "n" / "1" / "model.onnx", 10)
        await bench.poll()
        assert (await bench.ask("m"), await bench.ask("n")) == (44.0, 10.0)
        shutil.rmtree(root / "m" / "4")
        shutil.rmtree(root / "n")
        await bench.poll()
        await asyncio.sleep(0.05)
        assert bench.served() == {"m:3": "READY"}
        with pytest.raises(NotFound):
            bench.engine.find("n")

    play(scenario, watch_s=1)


def test_a_file_that_grows_is_left_alone_until_it_is_whole(play: Callable[..., None], root: Path) -> None:
    whole = (root / "m" / "3" / "model.onnx").read_bytes()

    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        (root / "m" / "4").mkdir()
        for size in range(10, len(whole), 40):
            (root / "m" / "4" / "model.onnx").write_bytes(whole[:size])
            assert await bench.manager.poll() == []
        (root / "m" / "4" / "model.onnx").write_bytes(whole)
        await bench.poll()
        assert bench.served()["m:4"] == "READY"

    play(scenario)


def test_a_broken_version_is_not_tried_again_until_it_changes(
    play: Callable[..., None], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        (root / "m" / "4").mkdir()
        (root / "m" / "4" / "model.onnx").write_bytes(b"")
        await bench.poll(5)
        assert bench.served() == {"m:3": "READY", "m:4": "UNAVAILABLE"}
        adds(root / "m" / "1" / "model.onnx", 11)  # another version changes
        await bench.poll(5)
        assert len([r for r in caplog.records if "cannot be served" in r.message]) == 1
        assert await bench.ask() == 3.0
        adds(root / "m" / "4" / "model.onnx", 4)
        await bench.poll()
        assert await bench.ask() == 4.0

    play(scenario)


def test_an_unloaded_model_is_left_alone_by_the_watch(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        await bench.unload("m")
        adds(root / "m" / "4" / "model.onnx", 4)
        await bench.poll(4)
        assert bench.served() == {"m:": "UNAVAILABLE"}
        shutil.rmtree(root / "m")
        await bench.poll(2)
        assert bench.served() == {}

    play(scenario)


def test_a_disk_that_is_away_takes_nothing_out_of_service(
    play: Callable[..., None], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        root.rename(root.with_name("away"))
        await bench.poll(4)
        assert await bench.ask() == 3.0
        assert caplog.text.count("cannot be looked at") == 1
        root.with_name("away").rename(root)
        await bench.poll(4)
        assert bench.served() == {"m:3": "READY"}

    play(scenario)


def test_an_emptied_folder_is_taken_for_a_copy_under_way(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        for version in ("1", "2", "3"):
            shutil.rmtree(root / "m" / version)
        await bench.poll(3)
        assert await bench.ask() == 3.0
        assert "holds no version" in bench.reason(version="3")

    play(scenario)


def test_uploads_are_refused_unless_allowed(play: Callable[..., None], root: Path, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        with pytest.raises(FailedPrecondition, match="--allow-uploads"):
            await bench.load("m", files={"1/model.onnx": onnx_bytes(tmp_path, 9)})
        assert await bench.ask() == 3.0

    play(scenario)


def test_uploaded_files_are_served_untested_until_the_next_load(
    play: Callable[..., None], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uploads").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "uploads"))

    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        await bench.load("m", files={"7/model.onnx": onnx_bytes(tmp_path, 70)})
        (folder,) = (tmp_path / "uploads").iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        assert (await bench.ask(), bench.engine.find("m").tested) == (70.0, False)
        await bench.poll(4)  # the folder does not take it back
        assert await bench.ask() == 70.0
        await bench.load("other", files={"1/model.onnx": onnx_bytes(tmp_path, 5)})
        assert await bench.ask("other") == 5.0
        await bench.poll(4)
        assert await bench.ask("other") == 5.0
        with pytest.raises(CorruptArtifact):
            await bench.load("m", files={"8/model.onnx": b"\x08"})
        assert await bench.ask() == 70.0
        await bench.load("m")
        assert await bench.ask() == 3.0
        await bench.unload("other")
        assert "other:" not in bench.served()
        assert list((tmp_path / "uploads").iterdir()) == []
        with pytest.raises(CorruptArtifact):
            await bench.load("never", files={"1/model.onnx": b"\x08"})
        await asyncio.sleep(0.01)
        assert not any("never" in served for served in bench.served())
        assert list((tmp_path / "uploads").iterdir()) == []

    play(scenario, allow_uploads=True)


@pytest.mark.parametrize(
    "name",
    [
        "model.onnx",
        "/1/model.onnx",
        "1//model.onnx",
        "../1/model.onnx",
        "1/../../model.onnx",
        "1/..",
        "1/.",
        "1/sub/model.onnx",
        "1\\model.onnx",
        "1/model\x00.onnx",
        "01/model.onnx",
        "-1/model.onnx",
        "x/model.onnx",
        "1/",
        "1/.hidden",
        "1/" + "n" * 300,
        "9" * 5000 + "/model.onnx",
        "²/model.onnx",
    ],
)
def test_names_of_uploads_stay_in_their_folder(
    play: Callable[..., None], root: Path, tmp_path: Path, name: str
) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        with pytest.raises(InvalidArgument, match="expected '<version>/<file>'"):
            await bench.load("m", files={"1/model.onnx": b"", name: b""})
        with pytest.raises(InvalidArgument, match="no files"):
            await bench.load("m", files={})
        for wrong in ("../m", "..", ".", "m" * 256):
            with pytest.raises(InvalidArgument, match="cannot be a model's name"):
                await bench.load(wrong, files={"1/model.onnx": b""})

    play(scenario, allow_uploads=True)


def test_a_stop_in_the_middle_of_loads_ends_them_all_once(play: Callable[..., None], root: Path) -> None:
    ends: list[SalverError | None] = []

    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        adds(root / "m" / "4" / "model.onnx", 4)
        for _ in range(3):
            bench.manager.load("m", ends.append)
        bench.manager.unload("m", ends.append)
        await asyncio.sleep(0)
        await bench.manager.stop()
        assert len(ends) == 4
        assert all(isinstance(error, Unavailable) for error in ends)
        with pytest.raises(Unavailable, match="stopping"):
            bench.manager.load("m", ends.append)

    play(scenario)


def test_a_storm_of_loads_and_unloads_ends_in_order(play: Callable[..., None], root: Path) -> None:
    for name in ("n", "o"):
        adds(root / name / "1" / "model.onnx", 1)

    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        ends: list[str] = []
        for turn in range(10):
            for name in ("m", "n", "o"):
                change = bench.manager.unload if turn % 2 == 0 else bench.manager.load
                change(name, lambda error, key=f"{name}{turn}": ends.append(key) if error is None else None)  # type: ignore[misc]  # the default binds the key
        while len(ends) < 30:
            await asyncio.sleep(0.005)
        for name in ("m", "n", "o"):
            assert [key for key in ends if key[0] == name] == [f"{name}{turn}" for turn in range(10)]
        assert bench.served() == {"m:3": "READY", "n:1": "READY", "o:1": "READY"}
        assert len(bench.engine.metrics.records) <= 3

    play(scenario)


def test_bundles_and_bare_files_are_version_1(play: Callable[..., None], digits: Model, digits_bundle: Path) -> None:
    async def scenario(bench: Bench) -> None:
        bench.manager._sources = Sources([str(digits_bundle), str(digits.path)])
        assert await bench.manager.start() == []
        assert bench.served() == {"numbers:1": "READY", "digits:1": "READY"}
        await bench.unload("numbers")
        await bench.load("numbers")
        assert bench.engine.find("numbers").metadata["golden_requests"] == 3

    play(scenario)


def pipeline(root: Path, name: str, *steps: str) -> None:
    """Write a pipeline that runs models one after another."""
    tensors = ["x", *(f"t{i}" for i in range(len(steps) - 1)), "y"]
    lines = ["[pipeline]", 'inputs = ["x"]', 'outputs = ["y"]']
    for i, step in enumerate(steps):
        lines += ["[[pipeline.steps]]", f'model = "{step}"']
        lines += [f'inputs = {{x = "{tensors[i]}"}}', f'outputs = {{y = "{tensors[i + 1]}"}}']
    (root / name).mkdir(exist_ok=True)
    (root / name / "model.toml").write_text("\n".join(lines))


def test_a_pipeline_stands_and_falls_with_its_steps(play: Callable[..., None], root: Path) -> None:
    pipeline(root, "a", "m", "n", "m")  # sorts before its steps
    adds(root / "n" / "1" / "model.onnx", 10)

    async def scenario(bench: Bench) -> None:
        assert await bench.manager.start() == []
        assert bench.engine.ready
        assert await bench.ask("a") == 16.0
        with pytest.raises(FailedPrecondition, match="model 'm' is a step of 'a'"):
            await bench.unload("m")
        adds(root / "n" / "2" / "model.onnx", 20)
        await bench.load("n")
        assert await bench.ask("a") == 26.0
        await bench.unload("a", dependents=True)
        assert bench.served() == {"a:": "UNAVAILABLE", "m:": "UNAVAILABLE", "n:": "UNAVAILABLE"}
        await bench.load("a")
        assert await bench.ask("a") == 26.0

    play(scenario)


def test_a_pipeline_without_its_step_waits_for_it(play: Callable[..., None], root: Path) -> None:
    pipeline(root, "p", "m", "later")

    async def scenario(bench: Bench) -> None:
        (error,) = await bench.manager.start()
        assert "later" in error.message
        assert not bench.engine.ready
        adds(root / "later" / "1" / "model.onnx", 10)
        await bench.poll()
        assert await bench.ask("p") == 13.0
        assert bench.engine.ready
        assert bench.reason("p") == ""

    play(scenario)


def test_pipelines_in_a_circle_are_refused(play: Callable[..., None], root: Path) -> None:
    pipeline(root, "p", "q")
    pipeline(root, "q", "p")

    async def scenario(bench: Bench) -> None:
        errors = await bench.manager.start()
        assert [type(error) for error in errors] == [InvalidArgument, InvalidArgument]
        assert "p -> q -> p" in bench.reason("p")
        assert await bench.ask("m") == 3.0

    play(scenario)


def test_a_pipeline_has_no_model_of_its_own(play: Callable[..., None], root: Path) -> None:
    pipeline(root, "p", "m")
    adds(root / "p" / "1" / "model.onnx", 1)

    async def scenario(bench: Bench) -> None:
        (error,) = await bench.manager.start()
        assert "is a pipeline and holds a model" in error.message

    play(scenario)


PBTXT = """
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "names.txt" } ]
instance_group [ { count: 2 } ]
version_policy { specific { versions: [ 1, 2 ] } }
optimization { graph { level: 1 } }
"""


def test_a_triton_folder_is_served_as_its_configuration_says(
    play: Callable[..., None], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "m" / "config.pbtxt").write_text(PBTXT)
    (root / "m" / "names.txt").write_text("cat\ndog\n")

    async def scenario(bench: Bench) -> None:
        assert await bench.manager.start() == []
        assert bench.served() == {"m:1": "READY", "m:2": "READY"}
        model = bench.engine.find("m")
        assert (model.metadata["lanes"], model.metadata["max_batch"]) == (2, 4)
        assert model.metadata["config_ignored"] == ["optimization"]
        assert "'optimization' of its configuration has no meaning here" in caplog.text
        assert model.signature.outputs[0].labels == ("cat", "dog")
        await bench.load("m", config={"max_batch_size": 3, "version_policy": {"latest": {"num_versions": 1}}})
        assert (bench.engine.find("m").version, bench.engine.find("m").metadata["max_batch"]) == ("3", 3)
        await bench.poll(4)  # what was asked for stays until the next load
        assert bench.engine.find("m").metadata["max_batch"] == 3
        await bench.load("m")
        assert bench.engine.find("m").version == "2"

    play(scenario)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('input { name: "z" }', "names input 'z', which the model has not; it has 'x'"),
        (
            'max_batch_size: 2 input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }',
            r"input 'x': the configuration says FP32\[-1, 3\], the model has FP32\[batch, 2\]",
        ),
        ('output { name: "y" data_type: TYPE_INT8 }', r"output 'y'.*says INT8.*model has FP32"),
        ('input { name: "x" dims: [ 2 ] }', r"says FP32\[2\], the model has FP32\[batch, 2\]"),
        ('output { name: "w" label_filename: "names.txt" }', "output 'w'"),
    ],
)
def test_a_configuration_that_contradicts_the_model_is_refused(
    play: Callable[..., None], root: Path, text: str, says: str
) -> None:
    (root / "m" / "config.pbtxt").write_text(text)
    (root / "m" / "names.txt").write_text("cat\n")

    async def scenario(bench: Bench) -> None:
        (error,) = await bench.manager.start()
        assert re.search(says, error.message)

    play(scenario)


def test_memory_of_replaced_models_is_freed(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        gone = []
        for value in range(5):
            model = bench.engine.find("m")
            assert isinstance(model, LoadedModel)
            gone.append(weakref.ref(model))
            del model
            adds(root / "m" / "3" / "model.onnx", value + 100)
            await bench.load("m")
        while bench.manager._tasks:
            await asyncio.wait(bench.manager._tasks)
        gc.collect()
        assert [ref() for ref in gone] == [None] * 5

    play(scenario)


def test_what_runs_too_long_does_not_hold_up_an_unload(play: Callable[..., None], root: Path) -> None:
    (root / "slow" / "1").mkdir(parents=True)
    make_endless(root / "slow" / "1" / "model.onnx")

    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        inputs = {"x": np.ones((1, 256), np.float32), "times": np.array(50_000)}
        model = bench.engine.find("slow")
        bench.engine.submit(model, InferRequest(inputs, 1, lambda *_: None))
        bench.engine.submit(model, InferRequest(inputs, 1, lambda result, _: ended.set_result(result)))
        while not model.gauges()["running"]:
            await asyncio.sleep(0.001)
        await bench.unload("slow")
        assert isinstance(await ended, Unavailable)  # the one that waited
        assert bench.served()["slow:"] == "UNAVAILABLE"
        assert await bench.ask("m") == 3.0

    play(scenario, drain_s=0.05)


def test_whatever_a_load_raises_is_told_and_leaves_the_old(
    play: Callable[..., None], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("in the runtime")

    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        adds(root / "m" / "4" / "model.onnx", 4)
        monkeypatch.setattr("salver.server.engine.managed.taste", fail)
        with pytest.raises(Internal, match="ZeroDivisionError: in the runtime"):
            await bench.load("m")
        assert bench.reason(version="4") == "ZeroDivisionError: in the runtime"
        assert await bench.ask() == 3.0

    play(scenario)


def test_the_watch_looks_by_itself_and_ends_with_the_server(play: Callable[..., None], root: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        watching = asyncio.ensure_future(bench.manager.watch())
        adds(root / "m" / "4" / "model.onnx", 4)
        while "m:4" not in bench.served() or bench.served()["m:4"] != "READY":
            await asyncio.sleep(0.005)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching

    play(scenario, watch_s=0.005)


def test_what_runs_on_a_lane_is_answered_by_the_version_that_took_it(play: Callable[..., None], root: Path) -> None:
    (root / "slow" / "1").mkdir(parents=True)
    make_endless(root / "slow" / "1" / "model.onnx")

    async def scenario(bench: Bench) -> None:
        await bench.manager.start()
        results: list[Any] = []
        inputs = {"x": np.ones((1, 256), np.float32), "times": np.array(2_000)}
        old = bench.engine.find("slow")
        for _ in range(5):
            bench.engine.submit(old, InferRequest(inputs, 1, lambda result, _: results.append(result)))
        make_endless(root / "slow" / "1" / "new.onnx").replace(root / "slow" / "1" / "model.onnx")
        await bench.load("slow")
        assert bench.engine.find("slow") is not old
        while len(results) < 5:
            await asyncio.sleep(0.001)
        assert not any(isinstance(result, SalverError) for result in results)

    play(scenario)


def test_what_was_replaced_is_freed_without_a_collection_of_garbage(tmp_path: Path) -> None:
    async def scenario() -> int:
        adds(tmp_path / "m" / "1" / "model.onnx", 0)
        bench = Bench(tmp_path)
        await bench.manager.start()
        replaced = []
        gc.collect()
        gc.disable()
        try:
            for number in range(1, 4):
                replaced.append(weakref.ref(bench.engine.find("m")))
                await bench.ask()
                adds(tmp_path / "m" / "1" / "model.onnx", number)
                await bench.load("m")
            await asyncio.sleep(0.05)
            return sum(model() is not None for model in replaced)
        finally:
            gc.enable()
            await bench.manager.stop()
            bench.engine.close()

    assert asyncio.run(scenario()) == 0
