"""One model of the repository, served by an engine: its versions in service, and how others take their place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Set
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import msgspec

from salver.core.errors import Internal, NotFound, SalverError
from salver.server.engine.base import ModelState
from salver.server.engine.budget import MemoryBudget
from salver.server.engine.config import ModelConfig
from salver.server.engine.declared import check_declared
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.folder import Told
from salver.server.engine.loading import Known, Tasted, describe, look_at, taste
from salver.server.engine.on_demand import OnDemandModel
from salver.server.engine.pipeline import PipelineModel
from salver.server.engine.planned import FROM_DISK, Origin, Plan, PlannedModel, Spawn
from salver.server.engine.repository import FIRST_VERSION
from salver.server.engine.servable import Servable
from salver.server.engine.served import LoadedModel
from salver.server.settings import RunSettings, ServeSettings

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

Gate = Callable[[], Awaitable[None]]
"""Awaited when new versions are ready to take requests and none does yet. What it raises ends the change: the old ones
stay."""


class _Fresh(msgspec.Struct, frozen=True, eq=False):
    """A version that may be served, before it is.

    Args:
        tasted: None for a pipeline.
    """

    model: Servable
    tasted: Tasted | None
    source: object


def discard(model: Servable, tasted: Tasted | None) -> None:
    """Free what was made ready and will not be served after all."""
    model.close()
    if tasted is not None:
        tasted.loaded.session.close()


class ManagedModel(PlannedModel):
    """Lives on the event loop. `refresh`, `follow` and `take_out` are called with `lock` held.

    Args:
        name: under which it is served.
        engine: that serves it.
        settings: of the server.
        slots: how many models may be loaded at the same time.
        spawn: for draining what was replaced.
        budget: for the memory of models, which are loaded when they are asked; None to load all.
    """

    def __init__(
        self,
        name: str,
        engine: RealTimeEngine,
        settings: ServeSettings,
        slots: asyncio.Semaphore,
        spawn: Spawn,
        budget: MemoryBudget | None = None,
    ) -> None:
        super().__init__(name, settings)
        self.failed: dict[str, tuple[object, SalverError]] = {}
        """Version (empty: all) -> what it would have been made from, and why it is not served."""
        self._engine = engine
        self._slots = slots
        self._spawn = spawn
        self._budget = budget
        engine.absent[name] = "not loaded"

    @property
    def loaded(self) -> list[Servable]:
        """Its versions in the engine, in any state."""
        return [m for m in self._engine.models() if m.name == self.name and isinstance(m, Servable)]

    @property
    def states(self) -> Mapping[str, ModelState]:
        return {model.version: model.state for model in self.loaded}

    @property
    def steps(self) -> set[str]:
        pipelines = [model.config.pipeline for model in self.loaded if model.config.pipeline is not None]
        return {step.model for pipeline in pipelines for step in pipeline.steps}

    @property
    def labels(self) -> dict[str, str]:
        return self._engine.labels.get(self.name, {})

    def move_label(self, label: str, version: str | None) -> None:
        """Let a label name another version, or none."""
        labels = self._engine.labels.setdefault(self.name, {})
        self.kept.pop(label, None)
        if version is None:
            labels.pop(label, None)
        else:
            labels[label] = version
        self._engine.refresh()

    async def refresh(self, origin: Origin, *, again: bool) -> None:
        self.wanted = True
        self.applied = None if self.shelf is None else self.shelf.stamp
        try:
            plan = await self.plan(origin)
        except SalverError as error:
            await self.fail(error)
            raise
        try:
            await self.follow(plan, again=again)
        finally:
            if any(version in self.versions for version in plan.wanted):
                self.take_origin(origin)

    async def follow(self, plan: Plan, *, again: bool, gate: Gate | None = None) -> None:
        """Serve what a plan says. Versions in service answer until their successors are ready; where one of those
        fails, all stay. Where nothing is in service and nothing of the plan can be, lower versions are tried.

        Args:
            again: whether versions that failed are tried again though their files did not change.
            gate: lets the new versions take requests, all in one turn of the loop; None to let each do so once it can.

        Raises:
            SalverError: why a version is not served; the first of them.
        """
        self.failed.pop("", None)
        waiting: list[_Fresh] = []
        errors: list[SalverError] = []

        async def bring(version: str) -> bool:
            found = await self._bring(version, plan, again=again, early=gate is None)
            if isinstance(found, _Fresh) and gate is None:
                found = self._switch(found, plan)
            if isinstance(found, SalverError):
                errors.append(found)
            elif found is not None:
                waiting.append(found)
            return not isinstance(found, SalverError)

        try:
            served = [await bring(version) for version in plan.wanted]
            if not any(served) and not self.versions:
                await self._fall_back(plan, bring)
            if gate is not None:
                await gate()
        except BaseException:
            for fresh in waiting:
                discard(fresh.model, fresh.tasted)
            raise
        errors += [error for fresh in waiting if (error := self._switch(fresh, plan)) is not None]
        if self.versions:
            for label, version in self.settle_labels(plan.told.config).items():
                self.move_label(label, version)
        if errors:
            raise errors[0]
        self.required = False
        self._retire_all_but({*plan.chosen, *self.labels.values()})

    async def fail(self, error: SalverError) -> None:
        self.failed[""] = (None, error)
        _LOG.error("model '%s' cannot be served: %s", self.name, error.message)
        if not self.versions:
            self._refuse(FIRST_VERSION, error)

    async def take_out(self, reason: str) -> None:
        self.wanted = False
        self.applied = None
        self.required = False
        self.versions.clear()
        self.failed.clear()
        self.kept.update(self.labels)
        self._engine.absent[self.name] = reason
        self._engine.labels.pop(self.name, None)
        await asyncio.gather(*(self._engine.retire(model, self._settings.drain_s) for model in self.loaded))
        self.take_origin(FROM_DISK)
        _LOG.info("model '%s' is out of service: %s", self.name, reason)

    def forget(self) -> None:
        self._engine.absent.pop(self.name, None)
        for left in self.loaded:
            self._spawn(self._engine.retire(left, 0.0))

    async def _fall_back(self, plan: Plan, bring: Callable[[str], Awaitable[bool]]) -> None:
        """Serve the highest version that can be, below those that were to be served and cannot."""
        for version in plan.lower:
            _LOG.warning("model '%s': falling back to version %s", self.name, version)
            if await bring(version):
                self.required = False
                for model in self.loaded:
                    model.required = False
                self._engine.refresh()
                return

    async def _bring(self, version: str, plan: Plan, *, again: bool, early: bool) -> _Fresh | SalverError | None:
        """Make a version ready to be served as it is now, unless it is served so already.

        Args:
            early: whether a version of which none is served is shown before it is ready.

        Returns:
            None where it is served. The error is what its state says too, or the index where an older one is in
            service.
        """
        source = plan.source(version)
        held = self.versions.get(version)
        known = self.failed.get(version)
        if held is not None and (held == source or not plan.holds(version)):
            self.failed.pop(version, None)
            return await self._wake(version) if again else None
        if known is not None and known[0] == source and not again:
            return known[1]
        try:
            model, tasted = await self._make(version, plan, early=early and held is None)
            if isinstance(model, OnDemandModel):
                await model.wake(evict=model.pinned or held is not None or (again and not self.required))
        except SalverError as error:
            self.failed[version] = (source, error)
            _LOG.error("model '%s' version %s cannot be served: %s", self.name, version, error.message)
            if held is None:
                self._refuse(version, error)
            return error
        self.failed.pop(version, None)
        return _Fresh(model, tasted, source)

    async def _make(self, version: str, plan: Plan, *, early: bool) -> tuple[Servable, Tasted | None]:
        """A version that may be served.

        Raises:
            SalverError: it cannot be.
        """
        if version in plan.failed:
            raise plan.failed[version].error
        if plan.told.config.pipeline is not None:
            return self._make_pipeline(version, plan.told, early=early), None
        path = plan.shelf.files.get(version)
        model = self._new(version, plan)
        model.required = self.required
        if early:
            self._put(model)
        if path is None:
            there = ", ".join(plan.shelf.files) or "none"
            raise NotFound(f"model '{self.name}' has no version {version}; there are {there}")
        if isinstance(model, LoadedModel):
            return model, await self._on_thread(taste, path, plan)
        async with model.budget.turn:  # or what it allocates would be taken for the cost of a model being loaded
            known = await self._on_thread(look_at, path, plan)
        model.know(known, self._settled(plan.told), pinned=self.name in self._settings.pin)
        return model, None

    def _new(self, version: str, plan: Plan) -> LoadedModel | OnDemandModel:
        if self._budget is None:
            return LoadedModel(self.name, version, self._engine.metrics, self._engine.refresh)

        async def load(model: LoadedModel, known: Known) -> None:
            tasted = await self._on_thread(taste, known.path, plan, known)
            try:
                self._open(model, tasted, plan.told)
            except SalverError:
                tasted.loaded.session.close()
                raise

        return OnDemandModel(self.name, version, self._engine, self._budget, load, self._spawn)

    async def _on_thread(self, step: Callable[..., T], path: Path, plan: Plan, *more: object) -> T:
        """Read or load a file, as `look_at` and `taste` do.

        Raises:
            SalverError: it cannot be.
        """
        try:
            async with self._slots:
                with nullcontext() if self._engine.marks is None else self._engine.marks.loading(self.name):
                    return await asyncio.to_thread(step, path, self.name, plan.told, self._settings, *more)
        except SalverError:
            raise
        except Exception as error:  # the load boundary: one bad model must not take the others down
            _LOG.exception("loading '%s' failed", plan.shelf.origin)
            raise Internal(f"{type(error).__name__}: {error}") from error

    async def _wake(self, version: str) -> SalverError | None:
        """Load a version that is served from disk; why that cannot be."""
        for model in self.loaded:
            if isinstance(model, OnDemandModel) and model.version == version:
                try:
                    await model.wake()
                except SalverError as error:
                    model.refuse(error.message)
                    return error
        return None

    def _make_pipeline(self, version: str, told: Told, *, early: bool) -> Servable:
        settings = self._settings.for_model(self.name, {}, told.config, told.asked)
        model = PipelineModel(self.name, version, self._settled(told), self._engine, settings)
        if model.state == "READY":
            check_declared(told.config, model.signature)
        model.required = self.required
        if early:
            self._put(model)  # where a step is missing, it becomes ready when that does
        if model.state != "READY":
            raise model.unavailable()
        return model

    def _switch(self, fresh: _Fresh, plan: Plan) -> SalverError | None:
        """Let a version take requests from now on: between two batches, for nothing is awaited.

        Returns:
            Why it is not served.
        """
        model = fresh.model
        try:
            if isinstance(model, LoadedModel) and fresh.tasted is not None:
                self._open(model, fresh.tasted, plan.told)
        except SalverError as error:
            discard(fresh.model, fresh.tasted)
            self.failed[model.version] = (fresh.source, error)
            if model.version not in self.versions:
                self._refuse(model.version, error)
            return error
        self.versions[model.version] = fresh.source
        self._put(model)
        for field in plan.told.config.ignored:
            _LOG.warning("model '%s': '%s' of its configuration has no meaning here", self.name, field)
        return None

    def _open(self, model: LoadedModel, tasted: Tasted, told: Told) -> None:
        bundle, loaded, settings = tasted.bundle, tasted.loaded, tasted.settings
        model.tested = bundle.tested
        model.platform = f"{bundle.model.format}_{bundle.model.format}v1"
        model.metadata = describe(bundle, loaded, settings, told.config)
        marks = self._engine.marks
        model.open(
            loaded.session if marks is None else marks.watch(self.name, loaded.session),
            settings,
            merge=loaded.merge,
            cost=loaded.cost,
            inline=loaded.inline,
            config=self._settled(told),
        )
        _report(model, settings)

    def _settled(self, told: Told) -> ModelConfig:
        """What the folder says, with the policy that holds."""
        policy = self._settings.versions_of(self.name, told.config, told.asked)
        return msgspec.structs.replace(told.config, versions=policy)

    def _refuse(self, version: str, error: SalverError) -> None:
        """Say in the state of a version of which none is served why that is so."""
        model = next((model for model in self.loaded if model.version == version), None)
        if isinstance(model, PipelineModel) and model.state != "READY":
            return  # it says why itself, and becomes ready when its steps are
        if not isinstance(model, LoadedModel) or model.state != "LOADING":
            model = LoadedModel(self.name, version, self._engine.metrics, self._engine.refresh)
        model.required = self.required
        model.refuse(error.message)
        self._put(model)

    def _put(self, model: Servable) -> None:
        old = self._engine.put(model)
        if old is not None:
            self._spawn(self._engine.retire(old, self._settings.drain_s))

    def _retire_all_but(self, chosen: Set[str]) -> None:
        for model in self.loaded:
            if model.version not in chosen:
                self.versions.pop(model.version, None)
                self.failed.pop(model.version, None)
                self._spawn(self._engine.retire(model, self._settings.drain_s))


def _report(model: LoadedModel, settings: RunSettings) -> None:
    facts = model.metadata
    _LOG.info(
        "model '%s' version %s is ready: %s, %d golden requests, merge=%s (%s), %s",
        model.name,
        model.version,
        "tested" if model.tested else "UNTESTED",
        facts["golden_requests"],
        facts["merge"],
        facts["merge_reason"],
        settings.explained,
    )
