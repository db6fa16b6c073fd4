"""A catalog and workers on one event loop: real engines and real channels, no processes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from salver.server.engine.engine import RealTimeEngine
from salver.server.processes.base import Fault, Link, Reason, Service, Start, Supervision, Tally, Worker
from salver.server.processes.catalog import Catalog
from salver.server.processes.channel import Channel
from salver.server.processes.remote import RemoteRepository
from salver.server.settings import ServeSettings
from tests.server.engine.bench import Bench


class Loner(Worker):
    """A worker without a process."""

    def __init__(self, slot: int, fleet: LocalFleet, generation: int = 0) -> None:
        self.slot, self.generation, self.settings, self.state = slot, generation, fleet.settings, "STARTING"
        self.fleet = fleet
        self.replaced: list[str] = []
        self.blame: Fault = ""
        self.bench: Bench

    @property
    def pid(self) -> int:
        return 0

    async def open(self) -> None:
        """Greet it, up to where it would load its models."""
        self.fleet.hired.append(self)
        ours, theirs = socket.socketpair()
        self.channel, self.own = await Channel.open(ours), await Channel.open(theirs)
        for service in self.fleet.services:
            service.inherits(self.slot, self.generation)
            service.attach(self)
        greetings = {service.name: service.greeting(self) for service in self.fleet.services}
        start = Start({}, self.slot, self.generation, (), False, greetings)
        start = msgspec.msgpack.decode(msgspec.msgpack.encode(start), type=Start)
        # The worker closes what it inherited, and here both are one process.
        start.services["catalog"]["marks"] = os.dup(start.services["catalog"]["marks"])
        self.bench = Bench.__new__(Bench)
        self.bench.settings = self.settings
        self.bench.engine = self.fleet.make_engine()
        self.bench.manager = RemoteRepository(self.bench.engine, self.settings, Link(self.own, start))
        self.bench.engine.repository = self.bench.manager

    async def start(self) -> list[Any]:
        """Load its models and take requests."""
        errors = await self.bench.manager.start()
        self.state = "READY"
        for service in self.fleet.services:
            service.ready(self)
        return errors

    @property
    def fault(self) -> Fault:
        return self.blame

    def replace(self, reason: Reason, why: str) -> None:
        self.replaced.append(why)
        self.fleet.replace(self)

    async def end(self) -> None:
        """As a process that ends."""
        self.state = "GONE"
        self.own.close()
        await self.bench.manager.stop()
        self.bench.engine.close()
        self.fleet.workers_.pop(self.slot, None) if self.fleet.workers_.get(self.slot) is self else None
        for service in self.fleet.services:
            service.gone(self)


class LocalFleet(Supervision):
    """A supervisor whose workers live on its own event loop."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.settings = ServeSettings.from_data({"sources": [str(root)], "drain_s": 2.0, "workers": 2, **settings})
        self.tally = Tally()
        self.workers_: dict[int, Loner] = {}
        self.hired: list[Loner] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.tasted: list[str] = []
        self.verdicts: dict[str, Any] = {}
        self.catalog = Catalog(self, self.taste)
        self.services: list[Service] = [self.catalog]

    def workers(self) -> Mapping[int, Worker]:
        return self.workers_

    def enlist(self, slot: int, folder: str) -> None:
        self.tasks.add(asyncio.get_running_loop().create_task(self.add(slot)))

    def delay_s(self, slot: int) -> float:
        return 4.0

    @staticmethod
    def make_engine() -> RealTimeEngine:
        from salver.server.monitoring.metrics import Metrics

        return RealTimeEngine(Metrics())

    async def taste(self, name: str, version: str, plan: Any, settings: ServeSettings) -> Any:
        self.tasted.append(f"{name}:{version}")
        return self.verdicts.get(version)

    async def start(self, workers: int = 2) -> None:
        for service in self.services:
            await service.start()
        await asyncio.gather(*(self.add(slot) for slot in range(workers)))

    async def add(self, slot: int, generation: int = 0) -> Loner:
        worker = Loner(slot, self, generation)
        await worker.open()
        await worker.start()
        self.workers_[slot] = worker
        return worker

    def replace(self, old: Loner) -> None:
        async def work() -> None:
            await self.add(old.slot, old.generation + 1)
            await old.end()

        task = asyncio.get_running_loop().create_task(work())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def stop(self) -> None:
        if self.tasks:
            await asyncio.wait(self.tasks)
        for worker in self.hired:
            if worker.state != "GONE":
                await worker.end()
        for service in self.services:
            await service.stop()
        await asyncio.sleep(0.05)  # what was hung up is gone before the loop is

    def bench(self, slot: int = 0) -> Bench:
        return self.workers_[slot].bench

    async def answers(self, name: str = "m", version: str | None = None) -> list[float]:
        """What the model adds, by each worker."""
        return [await worker.bench.ask(name, version) for worker in self.workers_.values()]
