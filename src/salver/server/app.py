"""A server, composed: engine, frontends, metrics and signals."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Self

from salver.core.errors import FailedPrecondition, Unavailable
from salver.server._files import allow_connections
from salver.server._loop import new_event_loop
from salver.server.engine.engine import RealTimeEngine, unready
from salver.server.engine.manager import ModelManager
from salver.server.engine.repository import Sources
from salver.server.frontends.http.server import HttpServer
from salver.server.monitoring.logs import configure_logging
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import ServeSettings

_LOG = logging.getLogger(__name__)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_BACKLOG_S: Final = 0.05
_CLOSE_S: Final = 5.0  # for connections to end once all requests have been answered
_GC_THRESHOLDS: Final = (20_000, 20, 100)  # requests leave no cycles; the default collects 50 times as often


class Server:
    """A server on an event loop of its own, in a thread of its own.

        with Server(ServeSettings(sources=("digits.salver",), http="127.0.0.1:0")) as server:
            requests.get(server.url + "/v2/health/ready")

    Args:
        settings: see `ServeSettings`.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.engine = RealTimeEngine(self.metrics)
        named = {name: model.source for name, model in settings.models.items() if model.source}
        sources = Sources(settings.sources, settings.name, named)
        self._repository = self.engine.repository = ModelManager(self.engine, sources, settings)
        self._http = HttpServer()
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._stopping = asyncio.Event()
        self.stuck = False
        """Whether a run that cannot be interrupted outlived the drain."""

    @property
    def url(self) -> str:
        """Where it listens: ``http://127.0.0.1:8080``, or ``unix:/path``."""
        address = self._http.addresses[0]
        if address.startswith("unix:"):
            return address
        return f"https://{address}" if self.settings.tls_cert else f"http://{address}"

    @property
    def grpc_address(self) -> str:
        """Where it listens besides, as gRPC clients take it: ``127.0.0.1:8081``; empty where it does not."""
        return self._http.addresses[1] if self.settings.grpc else ""

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

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Serve on the running event loop until `request_stop`.

        Args:
            on_ready: called when all models have been loaded and at least one can be served.

        Raises:
            SalverError: as `start`.
        """
        self._repository.check()
        self.engine.loading = True
        await self._http.start(self.engine, self.metrics, self.settings)
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
                on_ready()
            await stopping
            await self._drain()
        finally:
            for task in (stopping, loading, watching):
                if task is not None:
                    task.cancel()
            await self._repository.stop()
            self.stuck = not self.engine.close()
            await self._http.drain(_CLOSE_S)

    def request_stop(self) -> None:
        """Drain and end; called on the event loop."""
        self._stopping.set()

    async def _load_all(self) -> None:
        errors = await self._repository.start()
        if errors and not any(model.state == "READY" for model in self.engine.models()):
            if len(errors) == 1:
                raise errors[0]
            raise FailedPrecondition("no model can be served: " + "; ".join(unready(self.engine.models())))

    async def _drain(self) -> None:
        """Say so to balancers, stop accepting, finish what is queued and running."""
        settings = self.settings
        _LOG.info("stopping in %g s: open requests have %g s", settings.drain_delay_s, settings.drain_s)
        self.engine.announce_drain()
        await asyncio.sleep(settings.drain_delay_s)
        until = asyncio.get_running_loop().time() + self.settings.drain_s
        # Closing a listener resets the connections in its backlog: take those in first.
        await asyncio.sleep(min(_BACKLOG_S, self.settings.drain_s))
        await self._http.drain(self.settings.drain_s)
        left_s = max(until - asyncio.get_running_loop().time(), 0.0)
        if not await self.engine.drain(left_s):
            _LOG.error("some requests were still open after %g s and are refused", self.settings.drain_s)

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
            _close_loop(self._loop)


def serve(
    *sources: str | os.PathLike[str], models: Mapping[str, Mapping[str, Any]] | None = None, **settings: Any
) -> None:
    """Serve models until SIGTERM or SIGINT, then answer what is open and return; where a run outlives the drain, the
    process ends with exit code 1 instead.

        salver.serve("digits.salver", http="127.0.0.1:8080")

    Args:
        sources: bundles, ONNX files (served as untested), or folders ``<name>/<version>/model.onnx``.
        models: settings of single models by name; ``source`` names a further source.
        settings: fields of `ServeSettings`.

    Raises:
        SalverError: a setting is wrong, the address is taken, or no model can be served.
    """
    data = {**settings, "sources": [str(Path(source)) for source in sources], "models": dict(models or {})}
    server = Server(ServeSettings.from_data(data))
    configure_logging(server.settings.log_level)
    allow_connections(server.settings.max_connections)
    loop = new_event_loop()
    try:
        loop.run_until_complete(_serve(server))
    finally:
        _close_loop(loop)
    if server.stuck:  # an orderly exit would end the thread inside the runtime's C++, which aborts the process
        _LOG.error("a run outlived the drain; the process ends without waiting for it")
        logging.shutdown()
        os._exit(1)


async def _serve(server: Server) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for number in _SIGNALS:  # a second signal does what it does everywhere: it ends the process
            loop.remove_signal_handler(number)
        server.request_stop()

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    await server.run(lambda: _announce(server))


def _announce(server: Server) -> None:
    gc.collect()
    gc.freeze()  # what is loaded stays: do not walk it again
    gc.set_threshold(*_GC_THRESHOLDS)
    missing = unready(server.engine.models())
    state = "ready" if not missing else "NOT ready (" + "; ".join(missing) + "), serving the others"
    where = f"{server.url}, grpc {server.grpc_address}" if server.grpc_address else server.url
    print(f"{state} on {where}", file=sys.stderr, flush=True)


def _close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop's helpers end, then close it."""
    try:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
