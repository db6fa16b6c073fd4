"""Shared memory that is registered through one worker and used through another."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from salver.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, SalverError
from salver.server.frontends.access import Peer
from salver.server.frontends.shared_memory import FOLDER, SharedMemory
from salver.server.processes.base import Fault, Link, Reason, Start, Worker
from salver.server.processes.channel import Channel
from salver.server.processes.regions import Regions, RemoteRegions
from salver.server.settings import ServeSettings
from tests.server.processes.fleet import LocalFleet

ME = Peer(uid=os.geteuid())


class Sharer(Worker):
    """A worker with nothing but shared memory."""

    def __init__(self, slot: int, regions: Regions, generation: int = 0) -> None:
        self.slot, self.generation, self.settings, self.state = slot, generation, ServeSettings(), "STARTING"
        self.regions = regions

    pid = 0
    fault: Fault = ""

    def replace(self, reason: Reason, why: str) -> None:
        raise AssertionError(why)

    async def open(self) -> None:
        """Start, up to where it listens."""
        # What a process inherits is its own copy.
        inherited = {fd: os.dup(fd) for fd in self.regions.inherits(self.slot, self.generation)}
        ours, theirs = socket.socketpair()
        self.channel, self.own = await Channel.open(ours), await Channel.open(theirs)
        self.regions.attach(self)
        greeting = self.regions.greeting(self)
        greeting["inherited"] = {name: inherited.pop(fd) for name, fd in greeting["inherited"].items()}
        start = Start({}, self.slot, self.generation, (), False, {"regions": greeting})
        start = msgspec.msgpack.decode(msgspec.msgpack.encode(start), type=Start)
        self.remote = RemoteRegions(Link(self.own, start))

    def listen(self) -> None:
        self.memory = SharedMemory("/salver-test-")
        self.remote.attach(self.memory)
        self.regions.ready(self)

    async def register(self, name: str, key: str, offset: int, size: int) -> None:
        await self._done(lambda done: self.memory.register(name, key, offset, size, ME, done))

    async def unregister(self, name: str | None) -> None:
        await self._done(lambda done: self.memory.unregister(name, ME, done))

    def names(self) -> list[str]:
        return [region.name for region in self.memory.status(None, ME)]

    async def _done(self, begin: Callable[[Any], None]) -> None:
        ended: asyncio.Future[SalverError | None] = asyncio.get_running_loop().create_future()
        begin(ended.set_result)
        error = await ended
        if error is not None:
            raise error

    async def end(self) -> None:
        self.own.close()
        await asyncio.sleep(0.01)
        self.memory.close()
        self.regions.gone(self)


class Sharers:
    """A supervisor's service and its workers."""

    def __init__(self) -> None:
        self.regions = Regions(LocalFleet(Path("/"), shared_memory="/salver-test-"))
        self.workers: list[Sharer] = []

    async def add(self, slot: int, generation: int = 0) -> Sharer:
        worker = Sharer(slot, self.regions, generation)
        await worker.open()
        worker.listen()
        self.workers.append(worker)
        return worker


Scenario = Callable[[Sharers], Awaitable[None]]


@pytest.fixture
def key() -> Iterator[str]:
    """An object with the numbers 0 to 255."""
    path = FOLDER / f"salver-test-{uuid.uuid4()}"
    path.write_bytes(bytes(range(256)))
    yield f"/{path.name}"
    path.unlink(missing_ok=True)


def play(scenario: Scenario) -> None:
    async def run() -> None:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # of this very moment
        sharers = Sharers()
        await sharers.add(0)
        await sharers.add(1)
        await asyncio.wait_for(scenario(sharers), 20)
        for worker in sharers.workers:
            await worker.end()
            worker.channel.close()
        await sharers.regions.stop()
        await asyncio.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208

    asyncio.run(run())


def test_what_one_worker_registers_all_know(key: str) -> None:
    async def scenario(sharers: Sharers) -> None:
        first, second = sharers.workers
        await first.register("a", key, 16, 32)
        assert second.memory.read("a", 1, 3, ME) == bytes([17, 18, 19])
        second.memory.write("a", 0, b"x", ME)
        assert first.memory.read("a", 0, 1, ME) == b"x"
        with pytest.raises(AlreadyExists):
            await second.register("a", key, 0, 1)
        await second.unregister("a")
        assert first.names() == second.names() == []
        await first.unregister("a")
        for name in ("a", "b"):
            await second.register(name, key, 0, 4)
        await first.unregister(None)
        assert first.names() == second.names() == []

    play(scenario)


def test_what_is_wrong_is_known_to_nobody(key: str) -> None:
    async def scenario(sharers: Sharers) -> None:
        first, second = sharers.workers
        with pytest.raises(NotFound):
            await first.register("a", "/salver-test-nothing", 0, 1)
        with pytest.raises(InvalidArgument):
            await first.register("a", key, 250, 100)
        open_it = second.memory.add

        def replace(*given: Any) -> Any:
            (FOLDER / key[1:]).unlink()
            (FOLDER / key[1:]).write_bytes(bytes(256))
            return open_it(*given)

        second.memory.add = replace  # type: ignore[method-assign]  # a client replaces the object just then
        with pytest.raises(FailedPrecondition, match="was replaced"):
            await first.register("a", key, 0, 1)
        assert first.names() == second.names() == []
        second.memory.add = open_it  # type: ignore[method-assign]
        await first.register("a", key, 0, 1)
        assert first.names() == second.names() == ["a"]

    play(scenario)


def test_a_fresh_worker_has_what_was_registered_though_its_name_is_gone(key: str) -> None:
    async def scenario(sharers: Sharers) -> None:
        first, second = sharers.workers
        await first.register("a", key, 0, 256)
        await first.register("b", key, 0, 256)
        (FOLDER / key[1:]).unlink()
        await second.end()
        sharers.workers.remove(second)
        second.channel.close()
        fresh = await sharers.add(1, 1)
        assert fresh.names() == ["a", "b"]
        assert fresh.memory.read("b", 7, 1, ME) == b"\7"

    play(scenario)


def test_changes_while_a_worker_starts_reach_it(key: str) -> None:
    async def scenario(sharers: Sharers) -> None:
        first = sharers.workers[0]
        await first.register("a", key, 0, 8)
        fresh = Sharer(2, sharers.regions)
        await fresh.open()
        await first.unregister("a")
        await first.register("b", key, 8, 8)
        fresh.listen()
        sharers.workers.append(fresh)
        assert fresh.names() == ["b"]
        assert fresh.memory.read("b", 0, 1, ME) == b"\x08"

    play(scenario)


def test_a_worker_that_dies_meanwhile_is_left_out(key: str) -> None:
    async def scenario(sharers: Sharers) -> None:
        first, second = sharers.workers

        async def die(_: Any) -> None:
            second.own.close()
            await asyncio.sleep(60)

        second.own.on("regions.open", Any, die)
        await first.register("a", key, 0, 8)
        assert first.names() == ["a"]

    play(scenario)
