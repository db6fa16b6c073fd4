"""The processes that a service speaks to, and how all of them are brought to do the same."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from salver.core.errors import SalverError, Unavailable
from salver.server.processes.base import Worker

_LOG = logging.getLogger(__name__)
_AT_ONCE: Final = max(1, (os.cpu_count() or 1) // 2)
"""Processes that load a model at the same time: the others' cores are for requests."""
_GRACE_S: Final = 30.0


T = TypeVar("T")


class Member:
    """A process that takes part: from its greeting until it has ended."""

    __slots__ = ("gone", "worker")

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.gone = asyncio.Event()

    @property
    def stays(self) -> bool:
        """Whether it is neither gone nor about to go."""
        return not self.gone.is_set() and self.worker.state != "DRAINING"

    async def ask(self, kind: str, message: Any, gives: Any = None, timeout_s: float | None = None) -> Any:
        """As `Channel.ask`.

        Raises:
            SalverError: what the process answers; `Unavailable` when it is gone or does not answer in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self.worker.channel.ask(kind, message, gives)
        except TimeoutError:
            raise Unavailable(f"worker {self.worker.slot} did not answer '{kind}' within {timeout_s:g} s") from None


class Fleet:
    """All members."""

    def __init__(self) -> None:
        self._members: dict[Worker, Member] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    @property
    def members(self) -> list[Member]:
        """Those that take part now."""
        return list(self._members.values())

    def join(self, worker: Worker) -> Member:
        """A process takes part from now on."""
        member = self._members[worker] = Member(worker)
        return member

    def leave(self, worker: Worker) -> None:
        """It has ended."""
        member = self._members.pop(worker, None)
        if member is not None:
            member.gone.set()

    async def prepare(
        self, work: Callable[[Member], Awaitable[Any]], concerned: Callable[[Member], bool]
    ) -> Mapping[Member, SalverError | None]:
        """Do something with every member that is concerned, and with those that join meanwhile; with few of them at a
        time.

        When this returns, nobody has joined who was left out, until something else is awaited.

        Returns:
            Why it failed, by member; None where it did not.
        """
        outcomes: dict[Member, SalverError | None] = {}

        async def one(member: Member) -> None:
            async with self._turns:
                result = await _attempt(work, member)
                outcomes[member] = result if isinstance(result, SalverError) else None

        while fresh := [member for member in self.members if member not in outcomes and concerned(member)]:
            await asyncio.gather(*(one(member) for member in fresh))
        return outcomes

    async def each(self, work: Callable[[Member], Awaitable[T]], members: Sequence[Member]) -> list[T]:
        """Do something with members at the same time.

        Returns:
            What it gave. Who fails is replaced: when this returns, it is gone.
        """
        results = await asyncio.gather(*(_attempt(work, member) for member in members))
        found = dict(zip(members, results, strict=True))
        await self.dismiss({m: result for m, result in found.items() if isinstance(result, SalverError)})
        return [result for result in results if not isinstance(result, SalverError)]

    async def dismiss(self, failing: Mapping[Member, SalverError]) -> None:
        """Replace members that could not follow a change, and wait until they have ended."""
        for member, error in failing.items():
            worker = member.worker
            if not worker.channel.closed and not member.gone.is_set():
                _LOG.error("worker %d could not follow a change: %s", worker.slot, error.message)
                worker.replace("repository", error.message)
        if failing:
            limit_s = _GRACE_S + max(member.worker.settings.drain_s for member in failing)
            waits = [asyncio.ensure_future(member.gone.wait()) for member in failing]
            _, late = await asyncio.wait(waits, timeout=limit_s)
            for wait in late:
                wait.cancel()
            if late:
                raise Unavailable(f"{len(late)} workers could not follow a change, and have not ended in {limit_s:g} s")


async def _attempt(work: Callable[[Member], Awaitable[T]], member: Member) -> T | SalverError:
    try:
        return await work(member)
    except SalverError as error:
        return error
