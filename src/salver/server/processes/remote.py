"""The repository as a worker has it: served by its own engine, changed by the supervisor in all workers alike."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from salver.core.errors import FailedPrecondition, Internal, SalverError, TooLarge, Unavailable
from salver.server.engine.base import Changed, not_awaited
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.manager import EngineKeeper, outcome_of
from salver.server.engine.marks import Marks
from salver.server.engine.planned import Failure, Plan
from salver.server.engine.repository import Sources
from salver.server.processes.base import Link
from salver.server.processes.channel import MAX_FRAME_BYTES, Channel
from salver.server.processes.followed import FollowedModel
from salver.server.processes.forward import Peer
from salver.server.processes.host import Host
from salver.server.processes.orders import (
    CATALOG,
    Greeting,
    Load,
    Move,
    Order,
    Owner,
    Refusal,
    Removal,
    Report,
    Unload,
    unpack,
)
from salver.server.settings import ServeSettings


class _Change:
    """A change that was prepared, and waits for all workers to be ready."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.prepared: asyncio.Future[None] = loop.create_future()
        self.decided: asyncio.Future[None] = loop.create_future()
        self.task: asyncio.Task[None]


class RemoteRepository(EngineKeeper[FollowedModel]):
    """Asks the supervisor for changes, and makes those that it tells. A new version is made ready first, and takes
    requests when the supervisor says that it is ready in all workers.

    Args:
        engine: of this worker.
        settings: of the server.
        link: to the supervisor.
    """

    def __init__(self, engine: RealTimeEngine, settings: ServeSettings, link: Link) -> None:
        super().__init__(engine, Sources(), settings)
        self._channel: Channel = link.channel
        self._slot = link.start.slot
        self._greeting = msgspec.convert(link.start.services[CATALOG], Greeting)
        self._peers = {owner.slot: Peer(owner) for owner in self._greeting.owners}
        self._host = Host(engine)
        self._changes: dict[str, _Change] = {}
        engine.marks = Marks(self._greeting.marks)
        os.close(self._greeting.marks)
        channel = link.channel
        channel.on("catalog.prepare", Order, self._prepare)
        channel.on("catalog.commit", str, self._commit)
        channel.on("catalog.abort", str, self._abort)
        channel.on("catalog.remove", Removal, self._remove)
        channel.on("catalog.fail", Refusal, self._fail)
        channel.on("catalog.label", Move, self._label)
        channel.on("catalog.forget", str, self._forget)
        channel.on("catalog.owner", Owner, self._learn)

    # The port

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
            size = sum(map(len, files.values()))
            if size > MAX_FRAME_BYTES // 2:
                raise TooLarge(f"{size} bytes of files were sent; several workers take {MAX_FRAME_BYTES // 2}")
        load = Load(name, None if config is None else dict(config), None if files is None else dict(files))
        self._forward("catalog.load", load, done)

    def unload(self, name: str, done: Changed, *, dependents: bool = False) -> None:
        self._check_running()
        self._forward("catalog.unload", Unload(name, dependents), done)

    def move_label(self, name: str, label: str, version: str | None, done: Changed = not_awaited) -> None:
        self.check_move(name, label, version)
        self._forward("catalog.move", Move(name, label, version), done)

    # The worker

    def make(self, name: str) -> FollowedModel:
        model = FollowedModel(name, self._engine, self._settings, self._slots, self._start, self.budget)
        model.find_peer = self._peer
        return model

    def _peer(self, owner: int | None) -> Peer | None:
        if owner is None or owner == self._slot:
            return None
        if owner not in self._peers:
            self._peers[owner] = Peer(Owner(owner))
        return self._peers[owner]

    def _learn(self, owner: Owner) -> None:
        if owner.slot in self._peers:
            self._peers[owner.slot].learn(owner)
        else:
            self._peers[owner.slot] = Peer(owner)

    def check(self) -> None:
        """The supervisor has."""

    async def watch(self) -> None:
        """The supervisor does."""

    async def start(self) -> list[SalverError]:
        orders = self._greeting.orders
        if self._greeting.path:
            await self._host.start(self._greeting.path)
        for order in orders:
            self._take(order)
        tasks = [
            self._start(self._refresh(self._models[order.name]))
            for order in orders
            if order.plan is not None or order.failed is not None
        ]
        if tasks:
            await asyncio.wait(tasks)
        await self._channel.ask("catalog.started", {model.name: self._report(model) for model in self._models.values()})
        return [error for task in tasks if (error := outcome_of(task)) is not None]

    async def stop(self) -> None:
        await super().stop()
        self._host.close()
        for peer in self._peers.values():
            peer.close()

    def _take(self, order: Order) -> None:
        model = self._know(order.name)
        model.owner = order.owner
        model.told = None if order.plan is None else unpack(order.plan)
        model.refusal = order.failed
        model.required = order.required
        model.kept, model.labels_told = dict(order.labels or {}), order.labels_told
        self._engine.absent[order.name] = order.reason

    async def _prepare(self, order: Order) -> None:
        if order.plan is None:
            raise Internal(f"an order to load '{order.name}' without a plan")
        plan, model = unpack(order.plan), self._know(order.name)
        self._abort(order.name)
        change = self._changes[order.name] = _Change()
        task = change.task = self._start(self._change(model, plan, order.owner, change))
        await asyncio.wait((change.prepared, task), return_when=asyncio.FIRST_COMPLETED)
        if not change.prepared.done():
            self._abort(order.name)
            raise outcome_of(task) or Internal(f"model '{order.name}' was not made ready")

    async def _change(self, model: FollowedModel, plan: Plan, owner: int | None, change: _Change) -> None:
        model.operations += 1
        try:
            async with model.lock:
                model.wanted, model.told, model.owner = True, plan, owner
                await model.follow(plan, again=True, gate=partial(_wait, model, plan, change))
        except SalverError:
            if not change.prepared.done():
                raise
        finally:
            model.operations -= 1

    async def _commit(self, name: str) -> Report:
        change = self._changes.pop(name, None)
        if change is None:
            raise FailedPrecondition(f"no change of model '{name}' was prepared")
        change.decided.set_result(None)
        await asyncio.wait([change.task])
        return self._report(self._models[name])

    def _abort(self, name: str) -> None:
        change = self._changes.pop(name, None)
        if change is not None:
            change.decided.set_exception(Unavailable("the change was given up"))
            change.decided.exception()  # nobody may be there to take it

    async def _remove(self, removal: Removal) -> None:
        if (model := self._models.get(removal.name)) is not None:
            await self._take_out(model, removal.reason)

    async def _fail(self, refusal: Refusal) -> None:
        model = self._know(refusal.name)
        async with model.lock:
            await model.fail(refusal.failure.error)

    def _label(self, move: Move) -> None:
        if (model := self._models.get(move.name)) is not None:
            model.move_label(move.label, move.version)

    def _forget(self, name: str) -> None:
        if (model := self._models.pop(name, None)) is not None:
            model.forget()

    def _forget_if_gone(self, model: FollowedModel) -> None:
        """The supervisor says when."""

    def _forward(self, kind: str, message: msgspec.Struct, done: Changed) -> None:
        self._start(self._channel.ask(kind, message), done)

    @staticmethod
    def _report(model: FollowedModel) -> Report:
        failed = {version: Failure.of(error) for version, (_, error) in model.failed.items() if version}
        return Report(tuple(model.versions), failed, dict(model.labels))


async def _wait(model: FollowedModel, plan: Plan, change: _Change) -> None:
    """The gate: new versions are ready here; wait until they are in all workers.

    Raises:
        SalverError: a version that passed elsewhere is not ready here, or the change was given up.
    """
    if plan.told.config.pipeline is None:
        for version in plan.wanted:
            if version in model.failed and version not in plan.failed:
                raise model.failed[version][1]
    change.prepared.set_result(None)
    await change.decided
