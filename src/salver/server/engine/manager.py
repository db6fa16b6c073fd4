"""The repository at work: what administrators and the folders ask for, done while requests are answered."""

from __future__ import annotations

import abc
import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from salver.core.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, SalverError, Unavailable
from salver.server.engine.base import Changed, IndexEntry, Repository, check_label, not_awaited
from salver.server.engine.budget import MemoryBudget
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.managed import ManagedModel
from salver.server.engine.planned import Origin, PlannedModel
from salver.server.engine.repository import Sources, check_name
from salver.server.engine.upload import Upload, check_names
from salver.server.settings import ServeSettings

_LOG = logging.getLogger(__name__)
_LOADS: Final = max(2, min(4, os.cpu_count() or 1))
"""Models that are loaded at the same time."""


M = TypeVar("M", bound=PlannedModel)
L = TypeVar("L", bound=ManagedModel)


class Keeper(abc.ABC, Generic[M]):
    """Follows what administrators and the folders say of models, whoever serves them.

    Lives on the event loop. Disks are read on threads. Changes of one model follow one another; those of several run
    beside one another.

    Args:
        sources: where models come from.
        settings: of the server.
    """

    def __init__(self, sources: Sources, settings: ServeSettings) -> None:
        self._sources = sources
        self._settings = settings
        self._models: dict[str, M] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._trouble = ""

    @abc.abstractmethod
    def make(self, name: str) -> M:
        """A model that becomes known."""

    def load(
        self,
        name: str,
        done: Changed,
        *,
        config: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self._check_running()
        if files is not None:
            self._check_upload(name, files)
        self._start(self._load(name, config, files), done)

    def unload(self, name: str, done: Changed, *, dependents: bool = False) -> None:
        self._check_running()
        self._find(name)
        if users := self._users(name):
            raise FailedPrecondition(f"model '{name}' is a step of {', '.join(users)}; unload that first")
        self._start(self._unload(name, dependents), done)

    def labels(self, name: str) -> Mapping[str, str]:
        return dict(self._find(name).labels)

    def check_move(self, name: str, label: str, version: str | None) -> M:
        """The model whose label is to name a version.

        Raises:
            NotFound, FailedPrecondition, InvalidArgument: as `Repository.move_label`.
        """
        check_label(label)
        model = self._find(name)
        if version is not None and version not in model.versions:
            states = model.states
            if version not in states:
                raise NotFound(f"model '{name}' has no version '{version}'; served: {', '.join(states) or 'none'}")
            raise FailedPrecondition(
                f"version {version} of model '{name}' is {states[version]}; what a label names must be READY"
            )
        return model

    # The server

    def check(self) -> None:
        """Look at the sources' names of files, before anything is loaded.

        Raises:
            SalverError: as `Sources.check`.
        """
        self._sources.check(may_be_empty=self._settings.watch_s > 0 or self._settings.allow_uploads)

    async def start(self) -> list[SalverError]:
        """Load everything the sources hold.

        Returns:
            What went wrong; the models concerned are UNAVAILABLE, the others are served.
        """
        await self._look()
        tasks = []
        for model in self._models.values():
            model.required = True
            tasks.append(self._start(self._refresh(model)))
        if tasks:
            await asyncio.wait(tasks)
        return [error for task in tasks if (error := outcome_of(task)) is not None]

    async def watch(self) -> None:
        """Look at the folders every ``watch_s``, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.watch_s)
            await self.poll()

    async def poll(self) -> list[asyncio.Task[None]]:
        """Look once. What differs from what is served, and did not change since the last look, is loaded or unloaded.

        Returns:
            What was begun.
        """
        try:
            await self._look()
        except SalverError as error:  # a disk that is away takes no model out of service
            if str(error) != self._trouble:
                _LOG.error("the folders cannot be looked at: %s", error)
            self._trouble = str(error)
            return []
        self._trouble = ""
        changes = [change for model in list(self._models.values()) if (change := self._follow(model)) is not None]
        return [self._start(change) for change in changes]

    async def stop(self) -> None:
        """Give up what is under way. Nothing is loaded or unloaded any more."""
        self._stopped = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for model in self._models.values():
            model.origin.close()

    # Operations

    async def _load(self, name: str, config: Mapping[str, Any] | None, files: Mapping[str, bytes] | None) -> None:
        if name not in self._models:
            await self._look()
        model = self._find(name) if files is None else self._know(name)
        upload: Upload | None = None

        async def read() -> Origin:
            nonlocal upload
            await self._look()
            upload = None if files is None else await asyncio.to_thread(Upload, files)
            return Origin(config, upload)

        try:
            await self._refresh(model, read=read)
        finally:
            if upload is not None and model.origin.upload is not upload:
                upload.close()

    async def _unload(self, name: str, dependents: bool) -> None:
        model = self._find(name)
        steps = model.steps if dependents else set()
        await self._take_out(model, "unloaded")
        for step in sorted(steps):
            if step in self._models and not self._users(step):
                await self._take_out(self._models[step], "unloaded")

    def _follow(self, model: M) -> Coroutine[Any, Any, None] | None:
        """What the watch has to do for a model."""
        stamp = None if model.shelf is None else model.shelf.stamp
        quiet, model.seen = stamp == model.seen, stamp
        if not quiet or stamp == model.applied or model.operations or model.origin.upload is not None:
            return None
        if model.shelf is None:
            return self._take_out(model, "its files were removed")
        return self._refresh(model, again=False) if model.wanted else None

    async def _take_out(self, model: M, reason: str) -> None:
        model.operations += 1
        try:
            async with model.lock:
                await model.take_out(reason)
        finally:
            model.operations -= 1
            self._forget_if_gone(model)

    async def _refresh(
        self,
        model: M,
        *,
        read: Callable[[], Awaitable[Origin]] | None = None,
        again: bool = True,
        chain: tuple[str, ...] = (),
    ) -> None:
        """Bring a model in line with its files.

        Args:
            read: gives the origin, once it is this change's turn; None for what it was.
            again: as `ManagedModel.refresh`.
            chain: pipelines whose steps are being loaded.
        """
        model.operations += 1
        try:
            async with model.lock:
                origin = model.origin if read is None else await read()
                try:
                    await self._load_steps(model, origin, (*chain, model.name))
                except SalverError as error:
                    await model.fail(error)
                    raise
                await model.refresh(origin, again=again)
        finally:
            model.operations -= 1
            self._forget_if_gone(model)

    async def _load_steps(self, model: M, origin: Origin, chain: tuple[str, ...]) -> None:
        """Load the models that a pipeline is made of and that are not served.

        Raises:
            InvalidArgument: it is a step of itself.
        """
        steps = await model.read_steps(origin)
        if not steps:
            return
        await self._check_acyclic(steps, chain, set())  # or two of them could wait for each other, for ever
        for step in steps:
            if step in self._models and not self._models[step].versions:
                await self._refresh(self._models[step], chain=chain)

    async def _check_acyclic(self, steps: Sequence[str], chain: tuple[str, ...], seen: set[str]) -> None:
        for step in steps:
            if step in chain:
                raise InvalidArgument(f"a pipeline cannot be a step of itself: {' -> '.join((*chain, step))}")
            if step in self._models and step not in seen:
                seen.add(step)
                model = self._models[step]
                await self._check_acyclic(await model.read_steps(model.origin), (*chain, step), seen)

    async def _look(self) -> None:
        shelves = await asyncio.to_thread(self._sources.look)
        for name, shelf in shelves.items():
            self._know(name).shelf = shelf
        for name, model in list(self._models.items()):
            if name not in shelves:
                model.shelf = None
                self._forget_if_gone(model)

    def _know(self, name: str) -> M:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = self.make(name)
        return model

    def _forget_if_gone(self, model: M) -> None:
        """A model that is neither in a source nor in service is known no more."""
        if model.shelf is None and not model.versions and not model.operations:
            self._models.pop(model.name, None)
            model.forget()

    def _find(self, name: str) -> M:
        if name not in self._models:
            known = ", ".join(sorted(self._models)) or "none"
            raise NotFound(f"no model '{name}' in the repository; known: {known}")
        return self._models[name]

    def _users(self, name: str) -> list[str]:
        """Pipelines in service that a model is a step of."""
        return [
            f"'{other.name}'"
            for other in self._models.values()
            if name in other.steps and "READY" in other.states.values()
        ]

    def _check_upload(self, name: str, files: Mapping[str, bytes]) -> None:
        if not self._settings.allow_uploads:
            raise FailedPrecondition("this server takes no uploads; start it with --allow-uploads")
        check_name(name)
        check_names(files)

    def _check_running(self) -> None:
        if self._stopped:
            raise Unavailable("the server is stopping")

    def _start(self, work: Coroutine[Any, Any, None], done: Changed | None = None) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = outcome_of(task)
            if done is not None:
                done(error)

        task.add_done_callback(ended)
        return task


class EngineKeeper(Keeper[L], Repository):
    """Models in an engine. They are loaded and tasted on threads; what answers is changed on the loop, between two
    requests.

    Args:
        engine: that serves them.
        sources: where they come from.
        settings: of the server.
    """

    def __init__(self, engine: RealTimeEngine, sources: Sources, settings: ServeSettings) -> None:
        super().__init__(sources, settings)
        self._engine = engine
        self._slots = asyncio.Semaphore(_LOADS)
        self.budget = MemoryBudget.of(settings)

    def index(self) -> Sequence[IndexEntry]:
        served: dict[str, list[IndexEntry]] = {name: [] for name in self._models}
        for model in self._engine.models():
            known = self._models.get(model.name)
            failed = known.failed.get(model.version, known.failed.get("")) if known and known.versions else None
            reason = model.reason or (f"the last load failed: {failed[1].message}" if failed else "")
            served.setdefault(model.name, []).append(IndexEntry(model.name, model.version, model.state, reason))
        for name, entries in served.items():
            entries.sort(key=lambda entry: int(entry.version))
            if not entries:
                entries.append(IndexEntry(name, "", "UNAVAILABLE", self._engine.absent.get(name, "not loaded")))
        return [entry for entries in served.values() for entry in entries]

    def move_label(self, name: str, label: str, version: str | None, done: Changed = not_awaited) -> None:
        self.check_move(name, label, version).move_label(label, version)
        done(None)


class ModelManager(EngineKeeper[ManagedModel]):
    """The repository of a server of one process."""

    def make(self, name: str) -> ManagedModel:
        return ManagedModel(name, self._engine, self._settings, self._slots, self._start, self.budget)


def outcome_of(task: asyncio.Task[None]) -> SalverError | None:
    """Why a change was not made."""
    if task.cancelled():
        return Unavailable("the server is stopping")
    error = task.exception()
    if error is None or isinstance(error, SalverError):
        return error
    _LOG.error("a change of the repository failed", exc_info=error)
    return Internal(f"{type(error).__name__}: {error}")
