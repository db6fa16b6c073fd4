"""A server of several processes as a process of its own: its services, signals and end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from salver.core.errors import SalverError, Unimplemented
from salver.server.launch import Terminal, announce
from salver.server.monitoring.logs import configure_logging
from salver.server.monitoring.service import MetricsService
from salver.server.processes.base import Service, Supervision
from salver.server.processes.catalog import Catalog
from salver.server.processes.regions import Regions
from salver.server.processes.sockets import Sockets
from salver.server.processes.supervisor import Supervisor
from salver.server.settings import ServeSettings

SERVICES: Final[tuple[Callable[[Supervision], Service], ...]] = (Catalog, Regions, MetricsService)
"""What is one for all workers, in the order in which they are started."""

_LOG = logging.getLogger(__name__)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def supervise(settings: ServeSettings, reread: Callable[[], ServeSettings]) -> None:
    """Serve until SIGTERM or SIGINT, then let all workers answer what is open, and return. Where a run outlives the
    drain, or a worker ends otherwise than it should, the process ends with exit code 1 instead.

    Args:
        reread: resolves the settings again, at SIGHUP.

    Raises:
        Unimplemented: this is not Linux.
        SalverError: an address is taken, or no worker can serve.
    """
    if not hasattr(os, "pidfd_open"):
        raise Unimplemented("--workers needs Linux; without it, one process serves")
    # The standard library's loop: there is little to do, and uvloop takes memory.
    stuck = asyncio.run(_supervise(settings, reread))
    if stuck:
        sys.exit(1)


async def _supervise(settings: ServeSettings, reread: Callable[[], ServeSettings]) -> bool:
    sockets = Sockets(settings, settings.workers)
    try:
        supervisor = Supervisor(settings, SERVICES, sockets)
        reloading = asyncio.Event()
        reloads = asyncio.ensure_future(_reload(supervisor, reloading, reread))
        _heed(supervisor, reloading)
        try:
            await supervisor.run(partial(_announce, supervisor))
        finally:
            reloads.cancel()
    finally:
        sockets.close()
    return supervisor.stuck


def _heed(supervisor: Supervisor, reloading: asyncio.Event) -> None:
    """Do what signals say."""
    loop = asyncio.get_running_loop()
    terminal = Terminal()

    def stop() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            loop.add_signal_handler(number, die, number)
        supervisor.request_stop()

    def die(number: int) -> None:
        supervisor.kill()
        loop.remove_signal_handler(number)
        os.kill(os.getpid(), number)

    def hang_up() -> None:
        if terminal.gone:
            stop()
        else:
            reloading.set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, hang_up)


async def _reload(supervisor: Supervisor, wanted: asyncio.Event, reread: Callable[[], ServeSettings]) -> None:
    """Take over the settings of now at each SIGHUP, where they are sound."""
    while True:
        await wanted.wait()
        wanted.clear()
        try:
            settings = reread()
            await supervisor.change(settings)
        except SalverError as error:
            _LOG.error("SIGHUP: the new settings are refused, and the old ones stay: %s", error.message)
        else:
            configure_logging(settings.log_level)
            _LOG.info("SIGHUP: the settings were read again, and the workers are replaced one by one")


def _announce(supervisor: Supervisor, missing: Sequence[str]) -> None:
    settings = supervisor.settings
    url = settings.http if settings.http.startswith("unix:") else f"{_scheme(settings)}://{settings.http}"
    announce(url, settings.grpc, missing)


def _scheme(settings: ServeSettings) -> str:
    return "https" if settings.tls_cert else "http"
