"""Shared memory that clients registered through any worker, known to all of them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Sequence
from typing import Any, Final

import msgspec

from salver.core.errors import AlreadyExists, FailedPrecondition, SalverError
from salver.server.engine.base import Changed
from salver.server.engine.manager import outcome_of
from salver.server.frontends.shared_memory import MAX_REGIONS, Identity, Region, Registry, SharedMemory
from salver.server.processes.base import Link, Service, Supervision, Worker
from salver.server.processes.orders import APART

REGIONS: Final = "regions"

_LOG = logging.getLogger(__name__)


class Known(msgspec.Struct, frozen=True):
    """A worker is to open a region, asked as ``regions.open``."""

    region: Region
    identity: Identity


class Legacy(msgspec.Struct, frozen=True):
    """Regions that a worker finds when it starts.

    Args:
        known: all there are.
        inherited: open files of some, by name; those of others are to be closed.
    """

    known: list[Known]
    inherited: dict[str, int]


class Regions(Service):
    """Owns all registrations. It holds their objects open, and a worker that starts inherits them: a client may have
    removed their names.

    Args:
        supervision: knows the settings.
    """

    name = REGIONS

    def __init__(self, supervision: Supervision) -> None:
        self._memory = SharedMemory(supervision.settings.shared_memory)
        self._identities: dict[str, Identity] = {}
        self._workers: set[Worker] = set()
        self._inherited: dict[tuple[int, int], dict[str, int]] = {}
        self._turn = asyncio.Lock()

    async def stop(self) -> None:
        self._memory.close()

    def inherits(self, slot: int, generation: int) -> Sequence[int]:
        if slot >= APART:
            return ()
        # Copies, for one that is unregistered meanwhile is closed, and its number may soon be another file's.
        copies = {region.name: os.dup(fd) for region, fd in self._memory.open_regions}
        self._inherited[slot, generation] = copies
        return tuple(copies.values())

    def attach(self, worker: Worker) -> None:
        worker.channel.on("regions.add", Region, self._add)
        worker.channel.on("regions.remove", str | None, self._remove)

    def greeting(self, worker: Worker) -> Any:
        if worker.slot < APART:
            self._workers.add(worker)
        regions = self._memory.open_regions if worker in self._workers else []
        known = [Known(region, self._identities[region.name]) for region, _ in regions]
        copies = self._inherited.get((worker.slot, worker.generation), {})
        return msgspec.to_builtins(Legacy(known, copies))

    def ready(self, worker: Worker) -> None:
        self._drop_copies(worker)

    def gone(self, worker: Worker) -> None:
        self._drop_copies(worker)
        self._workers.discard(worker)

    def _drop_copies(self, worker: Worker) -> None:
        for fd in self._inherited.pop((worker.slot, worker.generation), {}).values():
            os.close(fd)

    async def _add(self, region: Region) -> None:
        async with self._turn:
            if region.name in self._identities:
                raise AlreadyExists(f"shared memory region '{region.name}' is registered already; unregister it first")
            if len(self._identities) >= MAX_REGIONS:
                raise FailedPrecondition(f"{MAX_REGIONS} shared memory regions are registered; unregister one first")
            identity = self._memory.add(region)
            self._identities[region.name] = identity
            try:
                await self._all("regions.open", Known(region, identity))
            except SalverError:
                await self._forget(region.name)
                raise

    async def _remove(self, name: str | None) -> None:
        async with self._turn:
            await self._forget(name)

    async def _forget(self, name: str | None) -> None:
        for each in [name] if name is not None else list(self._identities):
            self._identities.pop(each, None)
        self._memory.drop(name)
        await self._all("regions.forget", name)

    async def _all(self, kind: str, message: Any) -> None:
        """Ask all workers, those that go meanwhile left out.

        Raises:
            SalverError: one cannot.
        """
        workers = list(self._workers)
        asked: list[Awaitable[Any]] = [worker.channel.ask(kind, message) for worker in workers]
        results = await asyncio.gather(*asked, return_exceptions=True)
        for worker, result in zip(workers, results, strict=True):
            if isinstance(result, BaseException) and not worker.channel.closed:
                raise result


class RemoteRegions(Registry):
    """The registrations as a worker has them.

    Args:
        link: to the supervisor.
    """

    def __init__(self, link: Link) -> None:
        self._channel = link.channel
        self._legacy = msgspec.convert(link.start.services[REGIONS], Legacy)
        self._memory: SharedMemory | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        link.channel.on("regions.open", Known, self._open)
        link.channel.on("regions.forget", str | None, self._forget)

    def attach(self, memory: SharedMemory) -> None:
        """Know all that is registered, and ask the supervisor for more."""
        memory.registry = self
        self._memory = memory
        inherited = dict(self._legacy.inherited)
        for known in self._legacy.known:
            fd = inherited.pop(known.region.name, None)
            if fd is not None and _is(fd, known.identity):
                memory.take(known.region, fd)
                continue
            if fd is not None:
                os.close(fd)
            try:
                memory.add(known.region, known.identity)
            except SalverError as error:
                _LOG.error("shared memory region '%s' is not known here: %s", known.region.name, error.message)
        for fd in inherited.values():
            os.close(fd)

    def add(self, region: Region, done: Changed) -> None:
        self._ask("regions.add", region, done)

    def remove(self, name: str | None, done: Changed) -> None:
        self._ask("regions.remove", name, done)

    def _open(self, known: Known) -> None:
        if self._memory is None:  # it is starting
            self._legacy.known.append(known)
        else:
            self._memory.add(known.region, known.identity)

    def _forget(self, name: str | None) -> None:
        if self._memory is None:
            self._legacy.known[:] = [known for known in self._legacy.known if name not in (None, known.region.name)]
        else:
            self._memory.drop(name)

    def _ask(self, kind: str, message: Any, done: Changed) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(self._channel.ask(kind, message))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            done(outcome_of(task))

        task.add_done_callback(ended)


def _is(fd: int, identity: Identity) -> bool:
    found = os.fstat(fd)
    return (found.st_dev, found.st_ino) == identity
