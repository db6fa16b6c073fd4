"""The one state of the repository for all workers: what is loaded, from which files, under which labels, where."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from salver.core.errors import SalverError, Unavailable
from salver.server.engine.base import Changed
from salver.server.engine.marks import Marks
from salver.server.processes.base import Service, Supervision, Worker
from salver.server.processes.fleet import Fleet
from salver.server.processes.orders import APART, CATALOG, FIRST, Greeting, Load, Move, Owner, Report, Unload
from salver.server.processes.shared import Cells, SharedKeeper, SharedModel, Taste
from salver.server.processes.taster import taste_apart

_MOST_APART: Final = 16
_LOADS: Final = 3
"""Processes that may crash while they load a model before it gets one of its own: the cause may have been another."""
_MOMENT_S: Final = 0.05
_LONGEST: Final = 70  # of a folder, for the path of a Unix socket has at most 107 bytes

_LOG = logging.getLogger(__name__)


class Catalog(Service, Cells):
    """What administrators and the folders say of models, done by all workers alike. A model that crashed a worker gets
    a process of its own, to which the workers forward its requests, and so does from the start one that is run by a
    framework of its own. Lives on the supervisor's event loop.

    Args:
        supervision: knows the settings, and keeps processes.
        taste: tries what is new before a worker loads it.
    """

    name = CATALOG

    def __init__(self, supervision: Supervision, taste: Taste = taste_apart) -> None:
        self._supervision = supervision
        self._fleet = Fleet()
        self._keeper = SharedKeeper(supervision.settings, self._fleet, taste, self)
        self._watching: asyncio.Task[None] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._marks: dict[tuple[int, int], int] = {}
        self._owners: dict[int, Owner] = {}
        self._seen: dict[int, asyncio.Event] = {}
        """Slots whose process has been ready."""

    async def start(self) -> None:
        """
        Raises:
            SalverError: as `Sources.check`; `Unavailable` where there is no room for a folder.
        """
        usual = tempfile.gettempdir()
        try:
            self._folder = tempfile.TemporaryDirectory(
                prefix="salver-", dir=usual if len(usual) <= _LONGEST else "/tmp", ignore_cleanup_errors=True
            )
        except OSError as error:
            raise Unavailable(f"no folder can be made for sockets between processes: {error}") from None
        if self._supervision.settings.workers > 1:
            self._owners[FIRST] = Owner(FIRST)
        try:
            await self._keeper.begin()
        except SalverError:
            self._folder.cleanup()
            raise

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await self._keeper.stop()
        if self._folder is not None:
            self._folder.cleanup()

    def inherits(self, slot: int, generation: int) -> Sequence[int]:
        fd = self._marks[slot, generation] = Marks.create()
        return (fd,)

    def attach(self, worker: Worker) -> None:
        channel, keeper = worker.channel, self._keeper
        channel.on("catalog.load", Load, lambda m: _done(partial(keeper.load, m.name, config=m.config, files=m.files)))
        channel.on("catalog.unload", Unload, lambda m: _done(partial(keeper.unload, m.name, dependents=m.dependents)))
        channel.on("catalog.move", Move, self._move)
        channel.on("catalog.started", dict[str, Report], keeper.settle)

    def greeting(self, worker: Worker) -> Any:
        member = self._fleet.join(worker)
        orders = [model.order() for model in self._keeper.models if model.concerns(member)]
        if worker.slot >= APART:
            orders = [order for order in orders if order.owner == worker.slot]
        marks = self._marks[worker.slot, worker.generation]
        return msgspec.to_builtins(Greeting(orders, list(self._owners.values()), self._path_of(worker), marks))

    def ready(self, worker: Worker) -> None:
        if self._supervision.settings.watch_s and self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._keeper.watch())
        if worker.slot in self._owners:
            self._seen.setdefault(worker.slot, asyncio.Event()).set()
            self._announce(Owner(worker.slot, self._path_of(worker)))
        for model in self._keeper.models:
            if model.isolated == worker.slot:  # until now those who had loaded it served on
                self._keeper.begin_realign(model)

    def gone(self, worker: Worker) -> None:
        self._fleet.leave(worker)
        fd = self._marks.pop((worker.slot, worker.generation), None)
        running, loading = ([], []) if fd is None or not worker.fault else Marks.read(fd)
        if fd is not None:
            os.close(fd)
        owner = self._owners.get(worker.slot)
        if owner is not None and owner.path in ("", self._path_of(worker)):
            # A moment later, when it is known when the next one is tried.
            asyncio.get_running_loop().call_later(_MOMENT_S, self._mourn, worker.slot)
        for model in self._keeper.models:
            if model.name in running:
                self._blame(model, worker, 1 if worker.fault == "crash" and len(running) == 1 else 2)
            elif model.name in loading and not running and len(self._keeper.models) > 1:
                self._blame(model, worker, _LOADS)

    def _path_of(self, worker: Worker) -> str:
        """Unix socket on which a process answers others; each has its own, for an old one answers on."""
        if self._folder is None or worker.slot not in self._owners:
            return ""
        return f"{self._folder.name}/{worker.slot}.{worker.generation}"

    def _announce(self, owner: Owner) -> None:
        self._owners[owner.slot] = owner
        for member in self._fleet.members:
            if member.worker.slot != owner.slot:
                member.worker.channel.tell("catalog.owner", owner)

    def _mourn(self, slot: int) -> None:
        """Say why nobody answers for the models of a process, and when somebody may again."""
        if any(member.worker.slot == slot and member.worker.state == "READY" for member in self._fleet.members):
            return
        crashes = max((model.crashes for model in self._keeper.models if model.owner == slot), default=0)
        wait_s = self._supervision.delay_s(slot)
        times = f"crashed {crashes} times" if crashes > 1 else "crashed" if crashes else "went away"
        self._announce(
            Owner(slot, "", f"the process that runs it {times}; next try in {wait_s:.0f} s", wait_s, lost=True)
        )

    def _blame(self, model: SharedModel, worker: Worker, limit: int) -> None:
        """A process ended by a fault while it ran or loaded a model, and perhaps others.

        Args:
            limit: how often that may happen before the model gets a process of its own.
        """
        model.crashes += 1
        if model.isolated is not None and worker.slot < APART:
            self._keeper.begin_realign(model)
        elif model.isolated is None and model.crashes >= limit and self._folder is not None:
            _LOG.error("model '%s' made a worker end: it gets a process of its own", model.name)
            slot = model.isolated = self.assign(model)
            for member in self._fleet.members:  # what ran there is gone, or no other place is free
                if member.worker.slot == slot:
                    member.worker.replace("repository", f"model '{model.name}' is run there from now on")

    def assign(self, model: SharedModel) -> int:
        if self._folder is None:
            raise Unavailable(f"there is no process for model '{model.name}': the server is stopping")
        apart = [other.isolated for other in self._keeper.models]
        slot = min(range(APART, APART + _MOST_APART), key=apart.count)
        if slot not in self._owners:
            self._owners[slot] = Owner(slot)
            self._supervision.enlist(slot, self._folder.name)
        return slot

    async def wait_ready(self, slot: int) -> None:
        limit_s = self._supervision.settings.load_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._seen.setdefault(slot, asyncio.Event()).wait()
        except TimeoutError:
            raise Unavailable(f"the process for the model did not start within {limit_s:g} s") from None

    def settings_changed(self) -> None:
        self._keeper.change(self._supervision.settings)

    async def _move(self, move: Move) -> None:
        await self._keeper.check_move(move.name, move.label, move.version).move_label(move.label, move.version)


async def _done(begin: Callable[[Changed], None]) -> None:
    """Begin a change, and wait for its end. It goes on where nobody waits any more.

    Raises:
        SalverError: why it was not made.
    """
    ended: asyncio.Future[SalverError | None] = asyncio.get_running_loop().create_future()
    begin(lambda error: None if ended.done() else ended.set_result(error))
    error = await ended
    if error is not None:
        raise error
