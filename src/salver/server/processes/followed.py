"""A model as a worker has it: served as the supervisor says, here or by another process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from salver.core.errors import NotFound, SalverError, Unavailable
from salver.server.engine.folder import Told
from salver.server.engine.loading import Tasted
from salver.server.engine.managed import Gate, ManagedModel, discard
from salver.server.engine.planned import Failure, Origin, Plan
from salver.server.engine.repository import Shelf, stamp_of
from salver.server.engine.servable import Servable
from salver.server.processes.forward import ForwardedModel, Peer

_SETTLED_S: Final = 5.0  # for another process to say what a model is


class FollowedModel(ManagedModel):
    """A model that is served as the supervisor says."""

    told: Plan | None = None
    """What it said; None for nothing."""
    refusal: Failure | None = None
    """Why it did not."""

    owner: int | None = None
    """Slot of the process that runs it for all; None for each its own."""
    find_peer: Callable[[int | None], Peer | None]
    """The process to which its requests are forwarded; None where this one runs it."""

    async def plan(self, origin: Origin) -> Plan:
        if self.told is None:
            raise NotFound(f"model '{self.name}' is not loaded") if self.refusal is None else self.refusal.error
        return self.told

    async def read(self, origin: Origin) -> tuple[Shelf, Told]:
        plan = await self.plan(origin)
        return plan.shelf, plan.told

    async def follow(self, plan: Plan, *, again: bool, gate: Gate | None = None) -> None:
        peer = self.find_peer(self.owner)
        if peer is None:
            await super().follow(plan, again=again, gate=gate)
            return
        self.failed = {version: (plan.source(version), failure.error) for version, failure in plan.failed.items()}
        if gate is not None:
            await gate()
        fresh = [v for v in plan.wanted if v not in self.failed and not self._goes_to(peer, v, plan.source(v))]
        models = [ForwardedModel(self.name, version, peer, self._engine, self._settings) for version in fresh]
        if models:
            waits = [asyncio.ensure_future(model.settled.wait()) for model in models]
            limit_s = self._settings.load_timeout_s if gate is None else _SETTLED_S
            _, late = await asyncio.wait(waits, timeout=limit_s)
            for wait in late:
                wait.cancel()
        for model in models:
            model.required = self.required
            self.versions[model.version] = plan.source(model.version)
            self._put(model)
        for version, (_, error) in self.failed.items():
            if version not in self.versions:
                self._refuse(version, error)
        for label, version in self.settle_labels(plan.told.config).items():
            self.move_label(label, version)
        for model in models:
            if model.state != "READY" and gate is None:
                raise model.unavailable()
        self.required = False
        if not self.failed:
            self._retire_all_but({*plan.chosen, *self.labels.values()})

    def _goes_to(self, peer: Peer, version: str, source: object) -> bool:
        """Whether a version's requests are forwarded there, and it is what it was."""
        held = next((model for model in self.loaded if model.version == version), None)
        return isinstance(held, ForwardedModel) and held.peer is peer and self.versions.get(version) == source

    async def _make(self, version: str, plan: Plan, *, early: bool) -> tuple[Servable, Tasted | None]:
        await self._check_files(version, plan)
        made = await super()._make(version, plan, early=early)
        try:
            await self._check_files(version, plan)
        except SalverError:
            discard(*made)
            raise
        return made

    async def _check_files(self, version: str, plan: Plan) -> None:
        """Refuse files that are not what was tasted.

        Raises:
            Unavailable: somebody wrote to them.
        """
        if await asyncio.to_thread(stamp_of, plan.shelf, version) != plan.shelf.stamps.get(version):
            raise Unavailable(f"the files of version {version} of model '{self.name}' have changed; load it again")
