"""The supervisor: starts workers, watches them, and lets fresh ones take their places."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from salver.core.errors import FailedPrecondition, SalverError, Unavailable
from salver.server.processes.balance import Balance
from salver.server.processes.base import (
    Beat,
    Failure,
    Leave,
    Ready,
    Service,
    Start,
    Supervision,
    Tally,
    Worker,
)
from salver.server.processes.channel import Channel
from salver.server.processes.child import Child, describe_end
from salver.server.processes.sockets import Sockets
from salver.server.processes.supervised import MODULE, SupervisedWorker
from salver.server.processes.watch import MEMORY_PAUSE_S, Backoff
from salver.server.settings import ServeSettings

TRIES: Final = 4
"""Workers that may crash in a row before the server says that a slot stays empty for now."""

_LOG = logging.getLogger(__name__)
_TICK_S: Final = 1.0
_LATE_S: Final = 3.0  # between two ticks: the supervisor itself was stopped, or the machine slept
_CLOSE_S: Final = 2.0  # for workers to stop accepting
_STUCK_S: Final = 5.0  # a worker in which a batch hangs is given no longer to answer the others
_FIXED: Final = ("http", "grpc", "workers")


class Slot:
    """The place of a worker.

    Args:
        folder: where one without sockets for clients has its own.
    """

    def __init__(self, index: int, folder: str = "") -> None:
        self.index = index
        self.folder = folder
        self.generation = 0
        self.worker: SupervisedWorker | None = None
        """That takes its requests; None while nobody does."""
        self.backoff = Backoff()
        self.began: asyncio.Future[SalverError | None] = asyncio.get_running_loop().create_future()
        """How the first tries went: None when one succeeded."""

    def say(self, outcome: SalverError | None) -> None:
        """The first tries are over."""
        if not self.began.done():
            self.began.set_result(outcome)


class Supervisor(Supervision):
    """A server of several processes. Lives on an event loop.

    Args:
        settings: see `ServeSettings`; ``workers`` is 1 or more.
        services: what is one for all workers.
        sockets: on which they listen.
    """

    def __init__(
        self, settings: ServeSettings, services: Iterable[Callable[[Supervision], Service]], sockets: Sockets
    ) -> None:
        self.told = settings
        self._sockets = sockets
        self.settings = sockets.name(settings)
        self.tally = Tally()
        self.stuck = False
        """Whether a worker did not end as it should when the server stopped."""
        self._slots = [Slot(index) for index in range(settings.workers)]
        self._apart: dict[int, Slot] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._processes: set[SupervisedWorker] = set()
        self._reaping: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._balance = Balance()
        self._started = False
        self._ending = False
        self._stopping = asyncio.Event()
        self._services = tuple(make(self) for make in services)

    def workers(self) -> Mapping[int, Worker]:
        starting = {worker.slot: worker for worker in self._processes if worker.state == "STARTING"}
        return {**starting, **{slot.index: slot.worker for slot in self._slots if slot.worker is not None}}

    def enlist(self, slot: int, folder: str) -> None:
        self._apart[slot] = Slot(slot, folder)
        if self._started:
            self._keep_apart(self._apart[slot])

    def _keep_apart(self, slot: Slot) -> None:
        task = asyncio.get_running_loop().create_task(self._keep(slot))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    def delay_s(self, slot: int) -> float:
        return self._slot(slot).backoff.delay_s

    def _slot(self, index: int) -> Slot:
        return self._apart.get(index) or self._slots[index]

    async def run(self, on_ready: Callable[[Sequence[str]], None]) -> None:
        """Serve until `request_stop`.

        Args:
            on_ready: called once when the workers take requests, with models and workers that do not, and why.

        Raises:
            SalverError: no worker can serve.
        """
        for service in self._services:
            await service.start()
        self._started = True
        for apart in self._apart.values():
            self._keep_apart(apart)
        stopping: asyncio.Future[Any] = asyncio.ensure_future(self._stopping.wait())
        beginning = asyncio.ensure_future(self._begin(on_ready))
        keeping = [asyncio.ensure_future(self._keep(slot)) for slot in self._slots]
        looking = asyncio.ensure_future(self._look())
        tasks: list[asyncio.Future[Any]] = [stopping, beginning, looking, *keeping]
        try:
            await _until_one((stopping, beginning, looking, *keeping))
            await _until_one((stopping, looking, *keeping))
            for keeper in (*keeping, *self._keeping):
                keeper.cancel()
            await self._drain()
        finally:
            tasks += self._keeping
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._ending = True
            self.kill()
            if self._reaping:
                await asyncio.wait(self._reaping)
            for service in self._services:
                await service.stop()

    def request_stop(self) -> None:
        """Let all workers answer what they have taken, and end."""
        self._stopping.set()

    def kill(self) -> None:
        """End all workers at once."""
        for worker in self._processes:
            worker.child.kill()

    async def change(self, settings: ServeSettings) -> None:
        """Let workers with other settings take the places of all, one after the other.

        Raises:
            SalverError: a setting cannot change while serving, or the first worker cannot serve with them; nothing
                has changed then.
        """
        for name in _FIXED:
            old, new = getattr(self.told, name), getattr(settings, name)
            if old != new:
                raise FailedPrecondition(f"{name} cannot change while serving (from '{old}' to '{new}'): start again")
        named = self._sockets.name(settings)
        async with self._turn:
            fresh = None if self._stopping.is_set() else await self._try(self._slots[0], named)
        if fresh is None or self._stopping.is_set():
            raise Unavailable("the server is stopping")
        if fresh.state != "READY":
            raise fresh.trouble
        self.told, self.settings = settings, named
        for service in self._services:
            service.settings_changed()
        for worker in self._processes - {fresh}:
            worker.replace("settings", "the settings have changed")

    # The life of a slot

    async def _begin(self, on_ready: Callable[[Sequence[str]], None]) -> None:
        troubles = [error for error in await asyncio.gather(*(slot.began for slot in self._slots)) if error is not None]
        if len(troubles) == len(self._slots):
            raise troubles[0]
        missing = [line for slot in self._slots if slot.worker is not None for line in slot.worker.missing]
        on_ready([*dict.fromkeys(missing), *(error.message for error in troubles)])

    async def _keep(self, slot: Slot) -> None:
        """See to it that somebody takes the slot's requests, until cancelled or the server stops."""
        while not self._ending:
            worker = slot.worker
            if worker is None:
                await asyncio.sleep(slot.backoff.delay_s)
                await self._attempt(slot)
                continue
            await worker.unwanted.wait()
            if worker is slot.worker and worker.complaint is not None:
                async with self._turn:  # one after the other, so that there is room for one more
                    if worker is slot.worker and not await self._attempt(slot):
                        await asyncio.sleep(slot.backoff.delay_s)

    async def _attempt(self, slot: Slot) -> bool:
        fresh = await self._try(slot, self.settings)
        if fresh.state == "READY":
            slot.say(None)
            return True
        slot.backoff.failed(0.0)
        if fresh.failure is not None:
            _LOG.error("worker %d cannot serve: %s", slot.index, fresh.failure.message)
        if fresh.failure is not None or slot.backoff.failures >= TRIES:
            slot.say(fresh.trouble)
        return False

    async def _try(self, slot: Slot, settings: ServeSettings) -> SupervisedWorker:
        """Start a worker; it is READY when this returns, or has ended."""
        slot.generation += 1
        if slot.folder:
            address = f"unix:{slot.folder}/{slot.index}.{slot.generation}.http"
            settings = msgspec.structs.replace(settings, http=address, grpc="")
        worker = SupervisedWorker(slot.index, slot.generation, settings)
        if slot.worker is not None and slot.worker.reason == "memory":
            worker.tolerate_memory(MEMORY_PAUSE_S)
        files = [] if slot.folder else [each.fd for each in self._sockets.listen]
        try:
            for service in self._services:
                files += service.inherits(slot.index, slot.generation)
            worker.child = await Child.spawn(MODULE, files, lambda channel: self._attach(worker, channel))
        except OSError as error:  # no memory, or too many processes or open files, for now
            worker.failure = Unavailable(f"worker {slot.index} cannot be started: {error.strerror or error}")
            self._bury(worker)
            return worker
        self._processes.add(worker)
        self.tally.started += 1
        reaping = asyncio.ensure_future(self._reap(slot, worker))
        self._reaping.add(reaping)
        reaping.add_done_callback(self._reaping.discard)
        if self._ending:  # meanwhile
            worker.child.kill()
        try:
            await worker.settled.wait()
        except asyncio.CancelledError:
            worker.child.kill()
            raise
        return worker

    def _attach(self, worker: SupervisedWorker, channel: Channel) -> None:
        worker.channel = channel
        channel.on("start", type(None), lambda _: self._greet(worker))
        channel.on("ready", Ready, lambda ready: self._take_over(worker, ready))
        channel.on("beat", Beat, worker.hear_beat)
        channel.on("failed", Failure, worker.hear_failure)
        channel.on("closed", type(None), worker.hear_closed)
        for service in self._services:
            service.attach(worker)

    def _greet(self, worker: SupervisedWorker) -> Start:
        return Start(
            settings=msgspec.to_builtins(worker.settings),
            slot=worker.slot,
            generation=worker.generation,
            listen=() if worker.slot in self._apart else self._sockets.listen,
            accept=worker.slot == 0 and not any(slot.worker for slot in self._slots),
            services={service.name: service.greeting(worker) for service in self._services},
        )

    def _take_over(self, worker: SupervisedWorker, ready: Ready) -> None:
        """A worker is ready: the slot's requests are its own from now on."""
        slot = self._slot(worker.slot)
        old, slot.worker = slot.worker, worker
        worker.hear_ready(ready)
        _LOG.info("%s takes requests", worker)
        for service in self._services:
            service.ready(worker)
        if old is None:
            if worker.slot not in self._apart:  # whoever had a connection to the one before has one to another now
                self._level(sure=True)
        else:
            old.replace("settings", "the settings have changed")  # or what was said before
            self._count(old)
            drain_s = old.settings.drain_s
            old.leave(Leave(0.0, min(drain_s, _STUCK_S) if old.reason == "slow" else drain_s, last=False))
        self._cover()

    async def _reap(self, slot: Slot, worker: SupervisedWorker) -> None:
        await worker.child.ended.wait()
        self._processes.discard(worker)
        code, left = worker.child.code or 0, worker.state == "DRAINING"
        if slot.worker is worker:
            slot.worker = None
            slot.backoff.failed(worker.served_s)
        if left and not code:
            _LOG.info("%s has left", worker)
        elif left:
            _LOG.error("%s %s while it was to answer what was open", worker, describe_end(code))
            self.stuck = self.stuck or self._ending
        elif worker.failure is None and not self._ending:
            _LOG.error("%s %s; a fresh one takes its place", worker, describe_end(code))
            self._count(worker)
        self._bury(worker)
        self._cover()

    def _bury(self, worker: SupervisedWorker) -> None:
        worker.end()
        for service in self._services:
            service.gone(worker)

    def _count(self, worker: SupervisedWorker) -> None:
        self.tally.replaced[worker.reason] = self.tally.replaced.get(worker.reason, 0) + 1

    def _cover(self) -> None:
        """Let others accept the connections of slots that nobody has, or that are being relieved."""
        standing = [slot.worker for slot in self._slots if slot.worker is not None]
        vacant = [slot.index for slot in self._slots if slot.worker is None]
        relieved = self._balance.relieved(self._loop.time())
        for place, worker in enumerate(standing):
            covers = (*vacant[place :: len(standing)], *relieved.get(worker.slot, ()))
            if covers != worker.covers and worker.alive:
                worker.covers = covers
                worker.channel.tell("cover", covers)

    def _level(self, *, sure: bool = False) -> None:
        """Move connections from a worker that has more to do than others."""
        workers = {slot.index: slot.worker for slot in self._slots if slot.worker is not None}
        loads = {index: worker.load for index, worker in workers.items()}
        shift = self._balance.look(loads, self._loop.time(), sure=sure)
        if shift is not None:
            giver = workers[shift.giver]
            _LOG.info(
                "%s uses %.2f cores, worker %d %.2f: the clients of %.0f %% of its connections are to connect again",
                *(giver, loads[shift.giver].cpu, shift.taker, loads[shift.taker].cpu, 100 * shift.share),
            )
            self.tally.shifts += 1
            self._cover()  # first, so that they find the other
            giver.channel.tell("ease", shift.share)

    async def _look(self) -> None:
        while True:
            before_s = self._loop.time()
            await asyncio.sleep(_TICK_S)
            late = self._loop.time() - before_s > _LATE_S
            for worker in list(self._processes):
                if late:
                    worker.excuse()
                else:
                    worker.look()
            if not late and not self._ending:
                self._level()
            self._cover()

    # The end

    async def _drain(self) -> None:
        settings = self.settings
        _LOG.info("stopping in %g s: open requests have %g s", settings.drain_delay_s, settings.drain_s)
        self._ending = True
        apart = {worker for worker in self._processes if worker.slot in self._apart}
        leaving = self._processes - apart
        _dismiss(leaving, Leave(settings.drain_delay_s, settings.drain_s, last=True))
        if closing := [asyncio.ensure_future(worker.closed.wait()) for worker in leaving]:
            _, late = await asyncio.wait(closing, timeout=settings.drain_delay_s + _CLOSE_S)
            for task in late:
                task.cancel()
        self._sockets.close()
        for worker in leaving:
            await worker.child.ended.wait()  # `_look` kills who does not leave
        _dismiss(apart, Leave(0.0, settings.drain_s, last=True))  # until now others had requests for them
        if self._reaping:
            await asyncio.wait(self._reaping)


def _dismiss(workers: Iterable[SupervisedWorker], leave: Leave) -> None:
    for worker in workers:
        if worker.state == "STARTING":
            worker.child.kill()
        else:
            worker.leave(leave)


async def _until_one(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Wait until one has ended; raise what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
