"""Who makes room for whom: the budget with tenants that only count."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.errors import FailedPrecondition, ResourceExhausted
from salver.server.engine.budget import MemoryBudget, Tenant
from salver.server.settings import ServeSettings


class Counting(Tenant):
    """A tenant that takes what it says."""

    def __init__(self, budget: MemoryBudget, name: str, cost_bytes: int, *, idle: bool = True) -> None:
        self.name = name
        self.cost_bytes = self.least_bytes = cost_bytes
        self.keeps = False
        self.loaded = False
        self._budget = budget
        self._idle = idle

    @property
    def idle(self) -> bool:
        return self._idle

    @property
    def bound(self) -> bool:
        return self.keeps

    async def evict(self) -> None:
        self.loaded = False
        self._budget.release(self)

    async def load(self) -> None:
        """As a model does that was asked."""
        async with self._budget.turn:
            if not self.loaded:
                await self._budget.make_room(self)
                self.loaded = True
                self._budget.settle(self, 0.0)
            self.used_s = monotonic()


def of(total_bytes: int) -> MemoryBudget:
    return MemoryBudget(total_bytes, 10, 1000)


def test_every_worker_has_its_share() -> None:
    assert MemoryBudget.of(ServeSettings()) is None
    one = MemoryBudget.of(ServeSettings(memory_budget_bytes=1000))
    four = MemoryBudget.of(ServeSettings(memory_budget_bytes=1000, workers=4))
    assert one is not None
    assert four is not None
    assert (one.total_bytes, four.total_bytes) == (1000, 250)


def test_the_least_recently_asked_goes_first_and_only_as_many_as_must() -> None:
    async def scenario() -> None:
        budget = of(100)
        a, b, c, d = (Counting(budget, name, size) for name, size in (("a", 30), ("b", 30), ("c", 30), ("d", 50)))
        for tenant in (a, b, c, a):
            await tenant.load()
        await d.load()
        assert [t.loaded for t in (a, b, c, d)] == [True, False, False, True]
        assert budget.used_bytes == 80
        assert budget.loads == 4

    asyncio.run(scenario())


def test_idle_ones_go_before_busy_ones_and_busy_ones_before_none() -> None:
    async def scenario() -> None:
        budget = of(60)
        busy, idle, new = (Counting(budget, name, 30, idle=name != "busy") for name in ("busy", "idle", "new"))
        await busy.load()
        await idle.load()
        await new.load()
        assert (busy.loaded, idle.loaded) == (True, False)
        new.pinned = True
        await idle.load()
        assert (busy.loaded, idle.loaded, new.loaded) == (False, True, True)

    asyncio.run(scenario())


def test_nothing_goes_for_a_model_that_nobody_wants_any_more() -> None:
    async def scenario() -> None:
        budget = of(60)
        a, b = Counting(budget, "a", 40), Counting(budget, "b", 40)
        await a.load()
        await budget.make_room(b, lambda: False)
        assert a.loaded
        assert budget.loaded == 1

    asyncio.run(scenario())


def test_what_cannot_be_is_refused() -> None:
    async def scenario() -> None:
        budget = of(60)
        large, pinned, bound, new = (Counting(budget, name, 30) for name in ("large", "pinned", "bound", "new"))
        large.least_bytes = 61
        with pytest.raises(FailedPrecondition, match="raise --memory-budget"):
            await large.load()
        pinned.pinned = bound.keeps = True
        await pinned.load()
        await bound.load()
        with pytest.raises(ResourceExhausted, match="pinned or keep sequences"):
            await new.load()
        new.cost_bytes = 61  # as it was measured
        with pytest.raises(FailedPrecondition, match="raise --memory-budget"):
            budget.check(new)
        new.cost_bytes = 30
        bound.keeps = False
        await new.load()
        assert not bound.loaded

    asyncio.run(scenario())


def test_waiting_requests_are_bounded() -> None:
    async def scenario() -> None:
        budget = of(60)
        for _ in range(9):
            budget.hold(1)
        with pytest.raises(ResourceExhausted) as caught:
            budget.hold(992)
        assert caught.value.retry_after_s
        budget.hold(991)
        with pytest.raises(ResourceExhausted):
            budget.hold(0)
        budget.let_go(991)
        budget.hold(5)
        assert (budget.waiting, budget.waiting_bytes) == (10, 14)

    asyncio.run(scenario())


@given(
    sizes=st.lists(st.integers(1, 100), min_size=1, max_size=12),
    asked=st.lists(st.integers(0, 11), max_size=40),
    together=st.integers(1, 8),
)
def test_the_budget_holds_whatever_is_asked(sizes: list[int], asked: list[int], together: int) -> None:
    async def scenario() -> None:
        budget = of(100)
        tenants = [Counting(budget, str(number), size) for number, size in enumerate(sizes)]
        for start in range(0, len(asked), together):
            wanted = [tenants[number % len(tenants)] for number in asked[start : start + together]]
            await asyncio.gather(*(tenant.load() for tenant in wanted))
            assert wanted[-1].loaded
            loaded = [tenant for tenant in tenants if tenant.loaded]
            assert budget.used_bytes == sum(tenant.cost_bytes for tenant in loaded) <= 100
            assert budget.loaded == len(loaded)

    asyncio.run(scenario())
