"""A server, composed: engine, frontends, metrics and signals."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType
from typing import Final, Self

from salver.core.errors import FailedPrecondition, Unavailable
from salver.server._loop import new_event_loop
from salver.server.engine.engine import RealTimeEngine, unready
from salver.server.engine.manager import ModelManager
from salver.server.engine.repository import Sources
from salver.server.frontends.http.server import HttpServer
from salver.server.launch import Terminal, announce
from salver.server.monitoring.metrics import Metrics
from salver.server.monitoring.service import MetricsService, join
from salver.server.processes.base import Leave, Link
from salver.server.processes.regions import RemoteRegions
from salver.server.processes.remote import RemoteRepository
from salver.server.processes.sockets import take_activated, with_titles
from salver.server.settings import ServeSettings

_LOG = logging.getLogger(__name__)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_BACKLOG_S: Final = 0.05
CLOSE_S: Final = 5.0
"""For connections to end once all requests have been answered."""
_GC_THRESHOLDS: Final = (20_000, 20, 100)  # requests leave no cycles; the default collects 50 times as often


class Server:
    """A server on an event loop of its own, in a thread of its own.

        with Server(ServeSettings(sources=("digits.salver",), http="127.0.0.1:0")) as server:
            requests.get(server.url + "/v2/health/ready")

    Args:
        settings: see `ServeSettings`.
        sockets: bound sockets to listen on instead of the addresses, by ``http`` and ``grpc``.
        link: to the supervisor, where this is one of several processes.
    """

    def __init__(
        self,
        settings: ServeSettings,
        sockets: Mapping[str, Sequence[socket.socket]] = MappingProxyType({}),
        link: Link | None = None,
    ) -> None:
        self.settings = settings
        self._sockets = sockets
        self._link = link
        self._leave = Leave(settings.drain_delay_s, settings.drain_s, last=True)
        self.metrics = Metrics() if link is None else join(link.channel, link.start.services[MetricsService.name])
        self.engine = RealTimeEngine(self.metrics)
        self._repository = self.engine.repository = (
            ModelManager(self.engine, Sources.of(settings), settings)
            if link is None
            else RemoteRepository(self.engine, settings, link)
        )
        self.http = HttpServer(registry=None if link is None else RemoteRegions(link))
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._stopping = asyncio.Event()
        self.stuck = False
        """Whether a run that cannot be interrupted outlived the drain."""

    @property
    def url(self) -> str:
        """Where it listens: ``http://127.0.0.1:8080``, or ``unix:/path``."""
        address = self.http.addresses[0]
        if address.startswith("unix:"):
            return address
        return f"https://{address}" if self.settings.tls_cert else f"http://{address}"

    @property
    def grpc_address(self) -> str:
        """Where it listens besides, as gRPC clients take it: ``127.0.0.1:8081``; empty where it does not."""
        return self.http.addresses[1] if self.settings.grpc else ""

    def start(self) -> None:
        """Listen, load all models, and return when they are ready.

        Raises:
            SalverError: the address is taken, a source does not exist, or no model can be served.
        """
        started: Future[None] = Future()
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(started,), name="salver-server", daemon=True)
        self._thread.start()
        started.result()

    def stop(self) -> None:
        """Answer what is open, within ``drain_s``, and end."""
        if self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    async def run(self, on_ready: Callable[[], None], on_closed: Callable[[], None] = lambda: None) -> None:
        """Serve on the running event loop until `request_stop`.

        Args:
            on_ready: called when all models have been loaded and at least one can be served.
            on_closed: called when connections are accepted no more.

        Raises:
            SalverError: as `start`.
        """
        self._repository.check()
        self.engine.loading = True
        accept = self._link is None or self._link.start.accept
        await self.http.start(self.engine, self.metrics, self.settings, self._sockets, accept=accept)
        stopping = asyncio.ensure_future(self._stopping.wait())
        loading = asyncio.ensure_future(self._load_all())
        watching: asyncio.Future[None] | None = None
        try:
            await asyncio.wait((stopping, loading), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                self.engine.loading = False
                if self.settings.watch_s:
                    watching = asyncio.ensure_future(self._repository.watch())
                if not accept:
                    await self.http.accept()
                on_ready()
            await stopping
            await self._drain(on_closed)
        finally:
            for task in (stopping, loading, watching):
                if task is not None:
                    task.cancel()
            await self._repository.stop()
            self.stuck = not self.engine.close()
            await self.http.drain(CLOSE_S)

    def request_stop(self, leave: Leave | None = None) -> None:
        """Drain and end; called on the event loop.

        Args:
            leave: in which way; as the settings say by default.
        """
        self._leave = leave or self._leave
        self._stopping.set()

    async def _load_all(self) -> None:
        errors = await self._repository.start()
        if errors and not any(model.state == "READY" for model in self.engine.models()):
            if len(errors) == 1:
                raise errors[0]
            raise FailedPrecondition("no model can be served: " + "; ".join(unready(self.engine.models())))

    async def _drain(self, on_closed: Callable[[], None]) -> None:
        """Say so to balancers, stop accepting, finish what is queued and running."""
        leave = self._leave
        _LOG.info("stopping in %g s: open requests have %g s", leave.delay_s, leave.drain_s)
        if leave.last:
            self.engine.announce_drain()
        await asyncio.sleep(leave.delay_s)
        until = asyncio.get_running_loop().time() + leave.drain_s
        if leave.last:  # closing a listener resets the connections in its backlog: take those in first
            await asyncio.sleep(min(_BACKLOG_S, leave.drain_s))
        self.http.close_listeners()
        on_closed()
        await self.http.drain(leave.drain_s)
        left_s = max(until - asyncio.get_running_loop().time(), 0.0)
        if not await self.engine.drain(left_s):
            _LOG.error("some requests were still open after %g s and are refused", leave.drain_s)

    def _run(self, started: Future[None]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self.run(lambda: started.set_result(None)))
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)
        else:
            if not started.done():
                started.set_exception(Unavailable("the server was stopped before its models were loaded"))
        finally:
            close_loop(self._loop)


def serve_alone(settings: ServeSettings) -> None:
    """Serve in this process until SIGTERM or SIGINT, then answer what is open and return; where a run outlives the
    drain, the process ends with exit code 1 instead.

    Raises:
        SalverError: the address is taken, or no model can be served.
    """
    activated = take_activated()
    server = Server(with_titles(settings, activated), activated)
    loop = new_event_loop()
    try:
        loop.run_until_complete(_serve(server))
    finally:
        end_loop(loop)
    end_stuck(server)


def end_stuck(server: Server) -> None:
    """End the process where a run goes on that cannot be interrupted; return where there is none."""
    if server.stuck:  # an orderly exit would end the thread inside the runtime's C++, which aborts the process
        _exit("a run outlived the drain")


def _exit(why: str) -> None:
    _LOG.error("%s; the process ends without waiting for it", why)
    logging.shutdown()
    os._exit(1)


async def _serve(server: Server) -> None:
    loop = asyncio.get_running_loop()
    terminal = Terminal()

    def stop() -> None:
        for number in _SIGNALS:  # a second signal does what it does everywhere: it ends the process
            loop.remove_signal_handler(number)
        server.request_stop()

    def hang_up() -> None:
        if terminal.gone:
            stop()
        else:
            _LOG.warning("SIGHUP: one process cannot replace itself by one with new settings; --workers 1 can")

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    await server.run(lambda: announce(server.url, server.grpc_address, settle(server)))


def settle(server: Server) -> list[str]:
    """Make the process ready to serve what it has loaded; the models that it does not serve, and why."""
    gc.collect()
    gc.freeze()  # what is loaded stays: do not walk it again
    gc.set_threshold(*_GC_THRESHOLDS)
    return unready(server.engine.models())


def end_loop(loop: asyncio.AbstractEventLoop) -> None:
    """As `close_loop`; where a model is still being loaded, which cannot be interrupted either, end the process."""
    timer = threading.Timer(CLOSE_S, _exit, ("a model is still being loaded",))
    timer.daemon = True
    timer.start()
    try:
        close_loop(loop)
    finally:
        timer.cancel()


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop's helpers end, then close it."""
    try:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
