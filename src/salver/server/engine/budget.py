"""A budget for the memory of models: which are loaded, and which of them go when another needs the room."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from salver.core.errors import FailedPrecondition, ResourceExhausted
from salver.server.settings import ServeSettings

_STAY: Final = 4.0
"""A model stays that many times as long as its load took, so that loading is a fraction of what a server does."""
_MAX_STAY_S: Final = 5.0
_SMOOTHING: Final = 0.2
_SOON_S: Final = 0.001


class Tenant(abc.ABC):
    """A model that takes part in the budget. Lives on the event loop.

    Args:
        least_bytes: what it takes at least: its file, and a session.
        cost_bytes: what it takes when it is loaded, as far as is known.
        pinned: whether it stays, once it is loaded.
        used_s: `time.monotonic()` when it was asked last.
        stays_until_s: `time.monotonic()` before which it does not make room for others.
    """

    name: str
    least_bytes: int
    cost_bytes: int
    pinned: bool = False
    used_s: float = 0.0
    stays_until_s: float = 0.0

    @property
    @abc.abstractmethod
    def idle(self) -> bool:
        """Whether nothing waits or runs."""

    @property
    @abc.abstractmethod
    def bound(self) -> bool:
        """Whether clients' state would be lost with it: sequences that are alive."""

    @abc.abstractmethod
    async def evict(self) -> None:
        """Answer what was taken, free the memory, and `MemoryBudget.release` it."""


class MemoryBudget:
    """Counts what loaded models take, and makes room: the model that was asked least recently goes first. One that is
    idle goes before one that is not; those that are pinned or keep sequences stay, and a model stays for a while after
    it was loaded. Lives on the event loop.

    Args:
        total_bytes: for all models of this process.
        max_waiting, max_waiting_bytes: requests, and bytes of their input, that may wait for models to be loaded.
    """

    def __init__(self, total_bytes: int, max_waiting: int, max_waiting_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.turn = asyncio.Lock()
        """Held while room is made and a model loaded: one at a time, first come, first served, so that what a load
        takes can be measured, and the memory that it needs for a moment is needed once."""
        self.waiting = 0
        self.waiting_bytes = 0
        self.loads = 0
        self.evictions = 0
        self.load_s = 0.0
        """Of a load, smoothed."""
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._tenants: dict[Tenant, int] = {}

    @classmethod
    def of(cls, settings: ServeSettings) -> MemoryBudget | None:
        """This process's share; None where there is no budget."""
        if not settings.memory_budget_bytes:
            return None
        return cls(
            settings.memory_budget_bytes // max(settings.workers, 1), settings.max_queue, settings.max_queue_bytes
        )

    @property
    def used_bytes(self) -> int:
        """What loaded models take."""
        return sum(self._tenants.values())

    @property
    def loaded(self) -> int:
        """How many models are loaded."""
        return len(self._tenants)

    def has_room(self, tenant: Tenant) -> bool:
        """Whether a model fits without another having to go."""
        others_bytes = self.used_bytes - self._tenants.get(tenant, 0)
        return others_bytes + min(tenant.cost_bytes, self.total_bytes) <= self.total_bytes

    def check(self, tenant: Tenant) -> None:
        """Refuse what could never be loaded.

        Raises:
            FailedPrecondition: it takes more than the whole budget.
        """
        if tenant.cost_bytes > self.total_bytes:
            raise self._too_large(tenant.name, tenant.cost_bytes)

    async def make_room(self, tenant: Tenant, wanted: Callable[[], bool] = lambda: True) -> None:
        """Let others go until a model fits, and count it. Called with `turn` held.

        Args:
            wanted: whether anybody still waits for it; where nobody does, it is not counted.

        Raises:
            FailedPrecondition: it is larger than the whole budget.
            ResourceExhausted: what is loaded cannot go.
        """
        if tenant.least_bytes > self.total_bytes:
            raise self._too_large(tenant.name, tenant.least_bytes)
        while wanted() and not self.has_room(tenant):
            now = monotonic()
            movable = [t for t in self._tenants if t is not tenant and not t.pinned and not t.bound]
            if not movable:
                raise self._full(tenant)
            free = [t for t in movable if t.stays_until_s <= now]
            if free:
                idle = [t for t in free if t.idle]
                await min(idle or free, key=lambda t: t.used_s).evict()
            else:
                await asyncio.sleep(max(min(t.stays_until_s for t in movable) - now, _SOON_S))
        if wanted():
            self._tenants[tenant] = tenant.cost_bytes

    def settle(self, tenant: Tenant, took_s: float) -> None:
        """A model was loaded, and its cost measured."""
        self.loads += 1
        self.load_s += (took_s - self.load_s) * (_SMOOTHING if self.loads > 1 else 1.0)
        self._tenants[tenant] = tenant.cost_bytes
        tenant.used_s = now = monotonic()
        tenant.stays_until_s = now + min(_STAY * took_s, _MAX_STAY_S)

    def release(self, tenant: Tenant) -> None:
        """A model is not loaded any more."""
        self._tenants.pop(tenant, None)

    def hold(self, size_bytes: int) -> None:
        """Count a request that waits for a load.

        Raises:
            ResourceExhausted: too many do.
        """
        if self.waiting >= self._max_waiting or self.waiting_bytes + size_bytes > self._max_waiting_bytes:
            raise ResourceExhausted(
                f"{self.waiting} requests ({_mib(self.waiting_bytes)}) wait for models to be loaded, and more may not",
                retry_after_s=max(self.load_s, _SOON_S),
            )
        self.waiting += 1
        self.waiting_bytes += size_bytes

    def let_go(self, size_bytes: int) -> None:
        """A request waits no more."""
        self.waiting -= 1
        self.waiting_bytes -= size_bytes

    def _too_large(self, name: str, size_bytes: int) -> FailedPrecondition:
        return FailedPrecondition(
            f"model '{name}' takes {_mib(size_bytes)}, and the memory budget of this process is "
            f"{_mib(self.total_bytes)}; raise --memory-budget"
        )

    def _full(self, tenant: Tenant) -> ResourceExhausted:
        return ResourceExhausted(
            f"model '{tenant.name}' takes {_mib(tenant.cost_bytes)}, and the memory budget of "
            f"{_mib(self.total_bytes)} is full of models that are pinned or keep sequences",
            retry_after_s=_MAX_STAY_S,
        )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
