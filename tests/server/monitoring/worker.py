"""A process that counts as a worker does: ``worker.py CHANNEL``; run by `test_service`."""

from __future__ import annotations

import asyncio
import socket
import sys

from salver.core.errors import SalverError
from salver.server.engine.served import LoadedModel
from salver.server.monitoring.metrics import Metrics
from salver.server.monitoring.observed import Observed
from salver.server.monitoring.service import join
from salver.server.processes.channel import Channel


async def run(fd: int) -> None:
    gone = asyncio.Event()
    channel = await Channel.open(socket.socket(fileno=fd), gone.set)
    metrics = join(channel, await channel.ask("greeting", None, int))
    models = [LoadedModel("digits", "1", metrics)]
    metrics.models = lambda: models
    channel.on("count", int, lambda number: count(metrics, models[0], number))
    channel.on("show", None, lambda _: show(metrics))
    channel.on("hang", None, lambda _: hang())
    channel.tell("here")
    await gone.wait()


def count(metrics: Metrics, model: LoadedModel, number: int) -> None:
    metrics.connections += 1
    for _ in range(number):
        metrics.record(model, "OK", None, 0.002)
        metrics.record_batch(model, 2, inline=True, run_s=0.001, waits_s=(0.001,), reason="idle_lane")
    metrics.record(model, "INVALID_ARGUMENT", None, 0.001)
    metrics.record_refused(model, "RESOURCE_EXHAUSTED", "queue_full")


async def show(metrics: Metrics) -> tuple[str, dict[str, object]]:
    shown: asyncio.Future[Observed | SalverError] = asyncio.get_running_loop().create_future()
    metrics.collect(shown.set_result)
    observed = await shown
    if isinstance(observed, SalverError):
        raise observed
    return observed.render().decode(), observed.statistics(metrics.models()[0])


def hang() -> None:
    while True:
        pass


asyncio.run(run(int(sys.argv[1])))
