"""A worker: the server of one process, on the supervisor's sockets."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from time import thread_time

from salver.core.errors import SalverError, Unavailable
from salver.server._files import allow_connections
from salver.server._loop import new_event_loop
from salver.server.app import Server, end_loop, end_stuck, settle
from salver.server.monitoring.logs import configure_logging
from salver.server.processes.affinity import keep_to_share
from salver.server.processes.balance import IDLE, Load
from salver.server.processes.base import EVERYONE, STACKS, Failure, Leave, Link, Ready, Start
from salver.server.processes.channel import Channel
from salver.server.processes.child import remove_scratch
from salver.server.processes.sockets import Inherited
from salver.server.processes.vitals import BEAT_S, beat_of
from salver.server.settings import ServeSettings

_LOG = logging.getLogger(__name__)


class WorkerProcess:
    """A server, and what its supervisor wants of it."""

    def __init__(self, link: Link) -> None:
        start = link.start
        self._channel = link.channel
        self._inherited = Inherited(start.listen)
        self._covering = asyncio.Lock()
        self._covered: set[int] = set()
        self._last = False
        self._is_closed = False
        sockets = self._inherited.of(start.slot)
        for role, shared in self._inherited.of(EVERYONE).items():
            sockets.setdefault(role, []).extend(shared)
        self.server = Server(ServeSettings.from_data(start.settings), sockets, link)
        link.channel.on("leave", Leave, self.leave)
        link.channel.on("cover", tuple[int, ...], self._cover)
        link.channel.on("ease", float, self.server.http.ease)

    async def run(self) -> None:
        """Serve until told to leave, or until the supervisor is gone."""
        beating = asyncio.ensure_future(self._beat())
        try:
            await self.server.run(self._ready, self._closed)
        except SalverError as error:
            self._channel.tell("failed", Failure(error.code, error.message))
        finally:
            beating.cancel()

    def leave(self, leave: Leave) -> None:
        """Answer what has been taken, and end."""
        self._last = self._last or leave.last
        self.server.request_stop(leave)
        if self._is_closed:
            self._closed()

    def _ready(self) -> None:
        self._channel.tell("ready", Ready(tuple(settle(self.server))))
        self._channel.tell("beat", beat_of(self.server.engine))

    def _closed(self) -> None:
        self._is_closed = True
        if self._last:
            self._inherited.close()
        self._channel.tell("closed")

    async def _cover(self, slots: Sequence[int]) -> None:
        """Accept connections of workers that are gone, or have too many; of these slots and no others."""
        async with self._covering:
            for slot in self._covered - set(slots):
                self.server.http.release(slot)
            for slot in set(slots) - self._covered:
                await self.server.http.adopt(slot, self._inherited.of(slot))
            self._covered = set(slots)

    async def _beat(self) -> None:
        time = asyncio.get_running_loop().time
        load, worked_s, at_s = IDLE, self._worked_s(), time()
        while True:
            self._channel.tell("beat", beat_of(self.server.engine, load))
            await asyncio.sleep(BEAT_S)
            before, (worked_s, at_s) = (worked_s, at_s), (self._worked_s(), time())
            load = Load((worked_s - before[0]) / (at_s - before[1]), self.server.http.in_use)

    def _worked_s(self) -> float:
        """CPU time that went to requests: of the event loop, on whose thread this is, and of batches on lanes. What it
        takes to load a model is not in it."""
        return thread_time() + self.server.metrics.lanes_s


async def _run(sock: socket.socket) -> Server | None:
    gone = asyncio.Event()
    channel = await Channel.open(sock, gone.set)
    try:
        start: Start = await channel.ask("start", gives=Start)
    except Unavailable:  # the supervisor has ended meanwhile
        return None
    settings = ServeSettings.from_data(start.settings)
    configure_logging(settings.log_level, f"worker={start.slot}")
    allow_connections(settings.max_connections)
    if settings.affinity and start.slot < settings.workers:
        cores = keep_to_share(start.slot, settings.workers)
        _LOG.info("this worker keeps to the cores %s", ", ".join(map(str, sorted(cores))))
    worker = WorkerProcess(Link(channel, start))
    serving = asyncio.ensure_future(worker.run())
    watching = asyncio.ensure_future(gone.wait())
    await asyncio.wait((serving, watching), return_when=asyncio.FIRST_COMPLETED)
    if watching.done():
        _LOG.error("the supervisor is gone: this worker answers what it has taken, and ends")
        worker.leave(Leave(0.0, settings.drain_s, last=True))
    await serving
    channel.close()
    await watching  # until all has been said
    return worker.server


def main() -> None:
    """``python -m salver.server.processes.worker FD``, where FD is its end of the channel."""
    # The supervisor says what happens, wherever a signal is sent; and a terminal takes what is written to it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()  # a crash inside a runtime says in which thread and call
    faulthandler.register(STACKS)
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    loop = new_event_loop()
    try:
        server = loop.run_until_complete(_run(sock))
    except Exception:  # noqa: BLE001  # the process boundary: what is left of it could only keep it from ending
        _LOG.exception("the worker failed")
        logging.shutdown()
        remove_scratch()
        os._exit(1)
    remove_scratch()
    end_loop(loop)
    if server is not None:
        end_stuck(server)


if __name__ == "__main__":
    main()
