"""Models as the supervisor has them: served by all workers alike, or by none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import msgspec

from salver.core.errors import NotFound, SalverError
from salver.server.engine.base import ModelState
from salver.server.engine.manager import Keeper
from salver.server.engine.planned import FROM_DISK, Failure, Origin, Plan, PlannedModel, steps_of
from salver.server.engine.repository import Sources, needs_process
from salver.server.processes.fleet import Fleet, Member
from salver.server.processes.orders import APART, FIRST, Move, Order, Refusal, Removal, Report, pack
from salver.server.settings import ServeSettings

_COMMIT_S: Final = 30.0  # for a switch, which awaits nothing

_LOG = logging.getLogger(__name__)

Taste = Callable[[str, str, Plan, ServeSettings], Awaitable[Failure | None]]
"""Tries a version of a model apart: see `taste_apart`."""


class Cells(Protocol):
    """Processes that run nothing but models of their own."""

    def assign(self, model: SharedModel) -> int:
        """Slot of the process that is to run a model from now on; it is started where it is not there yet."""

    async def wait_ready(self, slot: int) -> None:
        """Until it takes requests.

        Raises:
            Unavailable: it does not within ``load_timeout_s``.
        """


class SharedModel(PlannedModel):
    """A model as the supervisor knows it: it is served by all workers, or by none.

    A new version is tasted in a throw-away process; then all workers make it ready beside the old one; only then do all
    switch, and whoever asked for it is answered when all have.

    Args:
        fleet: the workers.
        taste: see `Taste`.
        cells: for models that are run by frameworks of their own.
    """

    def __init__(self, name: str, settings: ServeSettings, fleet: Fleet, taste: Taste, cells: Cells) -> None:
        super().__init__(name, settings)
        self.official: Plan | None = None
        """What a worker that starts is to serve; None where that is nothing."""
        self.failed: dict[str, tuple[object, Failure]] = {}
        """Version -> what it would have been made from, and why it is not served."""
        self.refusal: Failure | None = None
        """Why there is no plan."""
        self.reason = "not loaded"
        self.settled = False
        """Whether a worker has loaded it: until then nobody knows which of its versions can be served."""
        self.isolated: int | None = None
        """Slot of the process that runs nothing else, because this model crashed one, or is foreign."""
        self.foreign = False
        """Whether a framework of its own runs it: see `needs_process`."""
        self.crashes = 0
        self._fleet = fleet
        self._taste = taste
        self._cells = cells
        self._labels: dict[str, str] = {}

    @property
    def states(self) -> Mapping[str, ModelState]:
        return dict.fromkeys(self.versions, "READY")

    @property
    def steps(self) -> set[str]:
        return set() if self.official is None else set(steps_of(self.official.told))

    @property
    def labels(self) -> dict[str, str]:
        return self._labels

    @property
    def owner(self) -> int | None:
        """Slot of the process that runs it for all; None where each worker does. Sequences need one that knows them."""
        return self.isolated if self.official is None else self._owner_of(self.official)

    def _owner_of(self, plan: Plan) -> int | None:
        return FIRST if self.isolated is None and plan.told.config.sequence is not None else self.isolated

    def concerns(self, member: Member) -> bool:
        """Whether a process has to do with it: those apart run a model of their own."""
        return member.worker.slot < APART or member.worker.slot == self.isolated

    def order(self) -> Order:
        """What a worker that starts has to do about it."""
        plan, labels = self.official, None
        if plan is not None and self.settled:
            held = {*self.versions, *self.failed}
            failed = {version: failure for version, (_, failure) in self.failed.items()}
            wanted = tuple(sorted(held, key=int))
            chosen = tuple(self.versions)
            plan = msgspec.structs.replace(plan, chosen=chosen, wanted=wanted, lower=(), failed=failed)
            labels = self._labels
        return Order(
            self.name,
            None if plan is None else pack(plan),
            self.reason,
            self.refusal,
            self.kept if plan is None else labels,
            self.labels_told,
            self.required and self.foreign if self.isolated is not None else self.required or bool(self.versions),
            self.owner,
        )

    def change(self, settings: ServeSettings) -> None:
        """Be served by other settings; what they choose is seen at the next look."""
        self._settings = settings
        self.applied = self.seen = None

    async def adopt(self) -> None:
        """Let the workers that are about to start serve what the files say."""
        self.required = True
        self.applied = None if self.shelf is None else self.shelf.stamp
        try:
            plan = await self.plan(FROM_DISK)
        except SalverError as error:
            self._refuse(error)
            return
        # What a foreign model does when it is loaded, nobody knows: the workers wait for it, and must not do so long.
        self.official = await self._try(plan, again=False) if self.foreign else plan

    async def plan(self, origin: Origin) -> Plan:
        plan = await super().plan(origin)
        files = [plan.shelf.files[version] for version in (*plan.wanted, *plan.lower) if version in plan.shelf.files]
        if await asyncio.to_thread(lambda: any(map(needs_process, files))):
            self.foreign = True
            if self.isolated is None:
                self.isolated = self._cells.assign(self)
        return plan

    def settle(self, report: Report) -> bool:
        """Take notice of what a worker serves that has started.

        Returns:
            Whether it serves what the others do.
        """
        plan = self.official
        if plan is None or self.operations:  # what is under way concerns that worker too
            return True
        if not self.settled:
            self.settled = True
            self.required = self.required and bool(report.failed) and not report.versions
            self.versions = {version: plan.source(version) for version in report.versions}
            self.failed = {version: (plan.source(version), failure) for version, failure in report.failed.items()}
            self._labels, self.labels_told = dict(report.labels), plan.told.config.labels
        return self.versions.keys() <= set(report.versions)

    async def refresh(self, origin: Origin, *, again: bool) -> None:
        self.wanted = True
        self.applied = None if self.shelf is None else self.shelf.stamp
        try:
            plan = await self.plan(origin)
        except SalverError as error:
            await self.fail(error)
            raise
        plan = await self._try(plan, again=again)
        if self.foreign and self.isolated is not None:
            await self._cells.wait_ready(self.isolated)
        await self._change(plan, origin)
        if plan.failed:
            raise next(iter(plan.failed.values())).error
        self.required = False

    async def fail(self, error: SalverError) -> None:
        self._refuse(error)
        refusal = Refusal(self.name, Failure.of(error))
        await self._fleet.each(lambda member: member.ask("catalog.fail", refusal), self._members())

    async def take_out(self, reason: str) -> None:
        self.wanted = False
        self.applied = None
        self.required = False
        self.official = self.refusal = None
        self.reason = reason
        self.kept.update(self._labels)
        self._labels = {}
        self.versions.clear()
        self.failed.clear()
        self.crashes = 0
        removal = Removal(self.name, reason)
        await self._fleet.each(lambda member: member.ask("catalog.remove", removal), self._members())
        self.take_origin(FROM_DISK)

    async def move_label(self, label: str, version: str | None) -> None:
        """Let a label name another version in all workers, or none."""
        self.kept.pop(label, None)
        if version is None:
            self._labels.pop(label, None)
        else:
            self._labels[label] = version
        move = Move(self.name, label, version)
        await self._fleet.each(lambda member: member.ask("catalog.label", move), self._members())

    def forget(self) -> None:
        for member in self._fleet.members:
            member.worker.channel.tell("catalog.forget", self.name)

    def _members(self) -> list[Member]:
        return [member for member in self._fleet.members if self.concerns(member)]

    def _refuse(self, error: SalverError) -> None:
        _LOG.error("model '%s' cannot be served: %s", self.name, error.message)
        self.refusal = Failure.of(error)

    async def _try(self, plan: Plan, *, again: bool) -> Plan:
        """Taste what is new of a plan. What fails is marked so; where nothing is left to be served, the highest of the
        lower versions is wanted that can be."""
        failed: dict[str, Failure] = {}
        good = [version for version in plan.wanted if not await self._fails(version, plan, failed, again=again)]
        if not good and not self.versions:
            for version in plan.lower:
                if not await self._fails(version, plan, failed, again=again):
                    _LOG.warning("model '%s': falling back to version %s", self.name, version)
                    good = [version]
                    break
        wanted = tuple(sorted({*good, *failed}, key=int))
        return msgspec.structs.replace(plan, wanted=wanted, lower=(), failed=failed)

    async def _fails(self, version: str, plan: Plan, failed: dict[str, Failure], *, again: bool) -> bool:
        """Whether a version cannot be served; it is in ``failed`` then."""
        source, held, known = plan.source(version), self.versions.get(version), self.failed.get(version)
        if held is not None and (held == source or not plan.holds(version)):
            return False
        if known is not None and known[0] == source and not again:
            failure: Failure | None = known[1]
        elif not plan.holds(version):
            there = ", ".join(plan.shelf.files) or "none"
            failure = Failure.of(NotFound(f"model '{self.name}' has no version {version}; there are {there}"))
        elif plan.told.config.pipeline is not None:  # nothing of it runs but its steps
            return False
        else:
            failure = await self._taste(self.name, version, plan, self._settings)
        if failure is not None:
            _LOG.error("model '%s' version %s cannot be served: %s", self.name, version, failure.message)
            failed[version] = failure
        return failure is not None

    async def realign(self) -> None:
        """Let all serve what they do, now that another process runs it."""
        async with self.lock:
            if self.official is not None:
                await self._tell(self.order(), lambda: None)

    async def _tell(self, order: Order, enter: Callable[[], None]) -> list[Report]:
        """Let all workers make ready what is new, then all switch.

        Args:
            enter: from then on, a worker that starts is told the new state.

        Raises:
            SalverError: no worker could make it ready; all serve what they did.
        """
        limit_s = self._settings.load_timeout_s
        outcomes = await self._fleet.prepare(
            lambda member: member.ask("catalog.prepare", order, timeout_s=limit_s), self.concerns
        )
        failing = {member: error for member, error in outcomes.items() if error is not None}
        ready = [member for member in outcomes if member not in failing]
        staying = {member: error for member, error in failing.items() if member.stays}
        if staying and (not ready or any(member.worker.slot == order.owner for member in staying)):
            for member in outcomes:
                member.worker.channel.tell("catalog.abort", self.name)
            raise next(iter(staying.values()))
        enter()  # nothing was awaited since the last worker was ready
        first = [member for member in ready if member.worker.slot == order.owner]
        reports = await self._commit(first)  # what it runs is what the others forward to
        reports += await self._commit([member for member in ready if member not in first])
        await self._fleet.dismiss(failing)
        return reports

    async def _change(self, plan: Plan, origin: Origin) -> None:
        """
        Raises:
            SalverError: as `_tell`.
        """
        order = Order(self.name, pack(plan), owner=self._owner_of(plan))
        reports = await self._tell(order, partial(self._enter, plan, origin))
        unlike = reports[0].failed.items() if reports else ()
        if late := [(version, failure) for version, failure in unlike if version not in plan.failed]:
            for version, failure in late:  # a pipeline, whose steps went away meanwhile
                self.failed[version] = plan.source(version), failure
                self.versions.pop(version, None)
            raise late[0][1].error

    async def _commit(self, members: Sequence[Member]) -> list[Report]:
        return await self._fleet.each(lambda m: m.ask("catalog.commit", self.name, Report, _COMMIT_S), members)

    def _enter(self, plan: Plan, origin: Origin) -> None:
        """Let this be what is served."""
        self.official, self.refusal, self.settled = plan, None, True
        self.failed = {version: (plan.source(version), failure) for version, failure in plan.failed.items()}
        for version in plan.wanted:
            if version not in plan.failed and (plan.holds(version) or version not in self.versions):
                self.versions[version] = plan.source(version)
        if any(version in self.versions for version in plan.wanted):
            self.take_origin(origin)
            self._labels.update(self.settle_labels(plan.told.config))
        if not plan.failed:
            kept = {*plan.chosen, *self._labels.values()}
            self.versions = {version: source for version, source in self.versions.items() if version in kept}


class SharedKeeper(Keeper[SharedModel]):
    """Does with all workers what `ModelManager` does with one engine."""

    def __init__(self, settings: ServeSettings, fleet: Fleet, taste: Taste, cells: Cells) -> None:
        super().__init__(Sources.of(settings), settings)
        self._fleet = fleet
        self._taste = taste
        self._cells = cells

    def make(self, name: str) -> SharedModel:
        return SharedModel(name, self._settings, self._fleet, self._taste, self._cells)

    async def begin(self) -> None:
        """Find out what is to be served, before any worker is there.

        Raises:
            SalverError: as `Sources.check`.
        """
        self.check()
        await self._look()
        await asyncio.gather(*(model.adopt() for model in self.models))

    def change(self, settings: ServeSettings) -> None:
        """Serve by other settings: workers that have them take the places of all, and what is served follows."""
        self._settings, self._sources = settings, Sources.of(settings)
        for model in self.models:
            model.change(settings)
        self._start(self._follow_all())

    async def _follow_all(self) -> None:
        for _ in range(2):  # what has changed is followed when it is seen the second time
            if begun := await self.poll():
                await asyncio.wait(begun)

    def begin_realign(self, model: SharedModel) -> None:
        """Let all processes know that another runs a model."""
        self._start(model.realign())

    @property
    def models(self) -> list[SharedModel]:
        """All that are known."""
        return list(self._models.values())

    async def settle(self, reports: Mapping[str, Report]) -> None:
        """A worker has started. Where it cannot serve what the others do, because files are no longer what they were,
        all are brought in line with the files."""

        async def look(model: SharedModel) -> Origin:
            await self._look()
            return model.origin

        for model in self.models:
            report = reports.get(model.name)
            if report is not None and not model.settle(report):
                _LOG.warning("model '%s' is not the same in a worker that has started: it is loaded again", model.name)
                await asyncio.wait([self._start(self._refresh(model, read=partial(look, model), again=False))])
