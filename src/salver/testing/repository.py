"""For authors of engines: the suite that every `Repository` must pass, fakes included."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from salver.core.errors import FailedPrecondition, InvalidArgument, NotFound, SalverError, Unavailable
from salver.server.engine.base import Engine, Repository

Scenario = Callable[[Engine], Awaitable[None]]
Play = Callable[[Scenario], None]
"""Runs a scenario on an event loop, with an engine of which `RepositoryConformance` says what it serves."""


async def load(repository: Repository, name: str, **more: Any) -> None:
    """Load a model, and raise why it failed."""
    await _change(lambda done: repository.load(name, done, **more))


async def unload(repository: Repository, name: str, **more: Any) -> None:
    """Unload a model, and raise why it failed."""
    await _change(lambda done: repository.unload(name, done, **more))


async def move(repository: Repository, name: str, label: str, version: str | None) -> None:
    """Move a label, and raise why it cannot be moved."""
    await _change(lambda done: repository.move_label(name, label, version, done))


async def _change(begin: Callable[[Callable[[SalverError | None], None]], None]) -> None:
    ended: asyncio.Future[SalverError | None] = asyncio.get_running_loop().create_future()
    begin(ended.set_result)  # a second call would raise
    error = await ended
    await asyncio.sleep(0)
    if error is not None:
        raise error


def states(repository: Repository) -> Mapping[tuple[str, str], str]:
    """Name and version -> state, as the index says."""
    return {(entry.name, entry.version): entry.state for entry in repository.index()}


class RepositoryConformance:
    """What every repository must do. Subclasses give a fixture ``play`` whose engine serves versions 1 and 2 of a model
    ``m``, both READY."""

    def test_the_index_names_what_is_served(self, play: Play) -> None:
        async def scenario(engine: Engine) -> None:
            assert states(engine.repository) == {("m", "1"): "READY", ("m", "2"): "READY"}
            assert all(not entry.reason for entry in engine.repository.index())

        play(scenario)

    def test_an_unloaded_model_answers_no_more_until_it_is_loaded(self, play: Play) -> None:
        async def scenario(engine: Engine) -> None:
            await unload(engine.repository, "m")
            assert "READY" not in states(engine.repository).values()
            assert {name for name, _ in states(engine.repository)} == {"m"}
            assert all(entry.reason for entry in engine.repository.index())
            with pytest.raises(Unavailable):
                engine.find("m")
            await load(engine.repository, "m")
            assert engine.find("m").version == "2"

        play(scenario)

    def test_a_load_of_what_is_loaded_does_no_harm(self, play: Play) -> None:
        async def scenario(engine: Engine) -> None:
            await load(engine.repository, "m")
            assert states(engine.repository) == {("m", "1"): "READY", ("m", "2"): "READY"}

        play(scenario)

    def test_unknown_models_are_not_found(self, play: Play) -> None:
        async def scenario(engine: Engine) -> None:
            repository = engine.repository
            with pytest.raises(NotFound):
                await load(repository, "no-such-model")
            with pytest.raises(NotFound):
                await unload(repository, "no-such-model")
            with pytest.raises(NotFound):
                repository.labels("no-such-model")
            with pytest.raises(NotFound):
                await move(repository, "no-such-model", "stable", "1")

        play(scenario)

    def test_labels_are_found_and_moved(self, play: Play) -> None:
        async def scenario(engine: Engine) -> None:
            repository = engine.repository
            assert repository.labels("m") == {}
            await move(repository, "m", "stable", "1")
            assert engine.find("m", "stable").version == "1"
            await move(repository, "m", "stable", "2")
            assert engine.find("m", "stable").version == "2"
            assert repository.labels("m") == {"stable": "2"}
            assert engine.find("m", "1").version == "1"
            await move(repository, "m", "stable", None)
            await move(repository, "m", "stable", None)
            assert repository.labels("m") == {}
            with pytest.raises(NotFound):
                engine.find("m", "stable")

        play(scenario)

    @pytest.mark.parametrize("label", ["1", "", "two words", "a/b", "-", "é", "l" * 65])
    def test_a_label_is_a_word(self, play: Play, label: str) -> None:
        async def scenario(engine: Engine) -> None:
            with pytest.raises(InvalidArgument):
                await move(engine.repository, "m", label, "1")
            assert engine.repository.labels("m") == {}

        play(scenario)

    def test_a_label_names_what_is_ready(self, play: Play) -> None:
        async def scenario(engine: Engine) -> None:
            with pytest.raises(NotFound):
                await move(engine.repository, "m", "stable", "9")
            await unload(engine.repository, "m")
            with pytest.raises((NotFound, FailedPrecondition)):
                await move(engine.repository, "m", "stable", "1")
            assert engine.repository.labels("m") == {}

        play(scenario)
