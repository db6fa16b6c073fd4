"""The counters of all workers, those included that are gone: one owner in the supervisor, and a worker's way to it."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections.abc import Sequence
from time import time
from typing import Any, Final

import msgspec

from salver.core.errors import SalverError
from salver.server.monitoring.history import INTERVAL_S, History
from salver.server.monitoring.memory import KEPT, MappedMemory, MappedReader, Memory, Packed, make_file, pack, unpack
from salver.server.monitoring.metrics import Metrics, Shown
from salver.server.monitoring.observed import Observed, ProcessView
from salver.server.processes.base import Service, Supervision, Worker
from salver.server.processes.channel import Channel

_ANSWER_S: Final = 1.0
"""A worker whose event loop does not turn is left out of the gauges; its counts are there."""

_LOG = logging.getLogger(__name__)


class _Report(msgspec.Struct, array_like=True):
    """`Observed` on its way to a worker."""

    totals: list[Packed]
    recent: list[Packed]
    recent_s: float
    processes: list[ProcessView]
    started_s: float
    pids: list[int]
    gone_cpu_s: float


class _Counted:
    """A process whose counters are read."""

    def __init__(self) -> None:
        self.fd = make_file()
        self.reader = MappedReader(self.fd)
        self.worker: Worker | None = None

    def close(self) -> None:
        """The process has the file, or never will."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class MetricsService(Service):
    """Adds up what workers count in memory that they share with the supervisor. What one had counted when it was
    killed is counted on; gauges are of those that live.

    Args:
        supervision: tells what happened to workers.
    """

    name = "metrics"

    def __init__(self, supervision: Supervision) -> None:
        self._supervision = supervision
        self._started_s = time()
        self._gone = Memory()
        self._counted: dict[tuple[int, int], _Counted] = {}
        self._history = History(self._started_s)
        self._marking: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        self._mark()

    async def stop(self) -> None:
        if self._marking is not None:
            self._marking.cancel()

    def inherits(self, slot: int, generation: int) -> Sequence[int]:
        counted = self._counted[slot, generation] = _Counted()
        return (counted.fd,)

    def attach(self, worker: Worker) -> None:
        worker.channel.on("metrics", None, lambda _: self._report())

    def greeting(self, worker: Worker) -> int:
        counted = self._counted[worker.slot, worker.generation]
        counted.worker = worker  # who has not asked yet could not answer
        return counted.fd

    def ready(self, worker: Worker) -> None:
        self._counted[worker.slot, worker.generation].close()

    def gone(self, worker: Worker) -> None:
        counted = self._counted.pop((worker.slot, worker.generation), None)
        if counted is not None:
            self._gone.add(counted.reader.read())
            counted.close()
            self._drop_old()

    def totals(self) -> Memory:
        """What all processes have counted since the server started."""
        totals = self._gone.copy()
        for counted in self._counted.values():
            totals.add(counted.reader.read())
        tally = self._supervision.tally
        totals.block("worker", ())[0] = float(tally.started)
        totals.block("shift", ())[0] = float(tally.shifts)
        for reason, count in tally.replaced.items():
            totals.block("replaced", (), (reason,))[0] = float(count)
        return totals

    def _drop_old(self) -> None:
        """Of models that no process counts any more, keep the latest."""
        counted = {key.owner for counted in self._counted.values() for key, _ in counted.reader.read()}
        for owner in [owner for owner in self._gone.owners() if owner not in counted][:-KEPT]:
            self._gone.drop(owner)

    async def _report(self) -> _Report:
        workers = [counted.worker for counted in self._counted.values() if counted.worker is not None]
        views = await asyncio.gather(*(_ask(worker.channel) for worker in workers))
        now_s = time()
        totals = self.totals()
        recent, recent_s = self._history.recent(totals, now_s)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return _Report(
            pack(totals),
            pack(recent),
            recent_s,
            [view for view in views if view is not None],
            self._started_s,
            [os.getpid(), *(worker.pid for worker in workers)],
            usage.ru_utime + usage.ru_stime,
        )

    def _mark(self) -> None:
        self._history.mark(self.totals(), time())
        self._marking = asyncio.get_running_loop().call_later(INTERVAL_S, self._mark)


async def _ask(channel: Channel) -> ProcessView | None:
    try:
        async with asyncio.timeout(_ANSWER_S):
            view: ProcessView = await channel.ask("view", None, ProcessView)
            return view
    except (SalverError, TimeoutError):
        return None


def join(channel: Channel, greeting: Any) -> Metrics:
    """The metrics of a worker, counted where its supervisor reads them.

    Args:
        channel: to the supervisor.
        greeting: of `MetricsService`.
    """
    fd = int(greeting)
    metrics = Metrics(memory=MappedMemory(fd))
    os.close(fd)
    channel.on("view", None, lambda _: metrics.view())
    tasks: set[asyncio.Task[None]] = set()

    def collect(shown: Shown) -> None:
        task = asyncio.get_running_loop().create_task(_collect(channel, shown))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    metrics.follow(collect)
    return metrics


async def _collect(channel: Channel, shown: Shown) -> None:
    try:
        report: _Report = await channel.ask("metrics", None, _Report)
    except SalverError as error:
        shown(error)
        return
    shown(
        Observed(
            unpack(report.totals),
            unpack(report.recent),
            report.recent_s,
            report.processes,
            report.started_s,
            report.pids,
            report.gone_cpu_s,
        )
    )
