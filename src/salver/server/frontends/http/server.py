"""The HTTP listener: a socket, its connections, their shared limits, and a graceful end."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from typing import Final

from salver.core.errors import InvalidArgument, Unavailable
from salver.server.engine.base import Engine
from salver.server.frontends import FRONTENDS, HttpSettings, Metrics, Services
from salver.server.frontends.http._connection import LINGER_S, Connection
from salver.server.frontends.http.guard import Guard, is_loopback_address
from salver.server.frontends.http.router import Router
from salver.server.frontends.http.shared import Head, Limits

_BACKLOG: Final = 1024
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")  # not strftime's, which follow the locale
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TICK_S: Final = 1.0
_DRAIN_STEP_S: Final = 0.02
_DRAIN_GRACE_S: Final = 0.1
"""During a drain an idle connection stays that long: a request may be on its way."""


class HttpServer:
    """Serves the HTTP frontends on one address.

    Args:
        frontends: names in the `frontends` family, in the order of their routes.
    """

    def __init__(self, frontends: Sequence[str] = ("oip-rest", "predict", "metrics", "docs")) -> None:
        self._names = tuple(frontends)
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._tick: asyncio.TimerHandle | None = None
        self.router = Router()
        self.heads: dict[bytes, Head] = {}
        self.draining = False
        self.date_line = b""

    async def start(
        self, engine: Engine, metrics: Metrics, settings: HttpSettings, sock: socket.socket | None = None
    ) -> None:
        """Listen.

        Args:
            sock: a bound socket to listen on, instead of ``settings.http``.

        Raises:
            InvalidArgument: ``settings.http`` is not ``host:port``.
            Unavailable: the address cannot be bound.
        """
        services = Services(engine, metrics, settings)
        services.frontends = tuple(FRONTENDS.get(name)(services) for name in self._names)
        for frontend in services.frontends:
            for route in frontend.routes():
                self.router.add(route.method, route.path, route.handle, route.scope)
        self._metrics = metrics
        self._max_connections = settings.max_connections
        self.limits = Limits(settings.max_body_bytes, settings.max_header_bytes, settings.idle_timeout_s)
        loop = asyncio.get_running_loop()
        self.time = loop.time
        try:
            if sock is not None:
                self._listener = await loop.create_server(
                    self._connect, sock=sock, backlog=_BACKLOG, start_serving=False
                )
            else:
                host, port = parse_address(settings.http)
                self._listener = await loop.create_server(
                    self._connect, host, port, backlog=_BACKLOG, start_serving=False
                )
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {settings.http}: {error.strerror or error}; choose another address with --http"
            ) from None
        names = [s.getsockname() for s in self._listener.sockets]
        self._address: tuple[str, int] = names[0][:2]
        self.guard = Guard(
            all(is_loopback_address(name[0]) for name in names), settings.trusted_hosts, settings.cors_origins
        )
        self._sweep()
        await self._listener.start_serving()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that the first socket listens on."""
        return self._address

    def close_listeners(self) -> None:
        """Accept no more connections; those there stay."""
        if self._listener is not None:
            self._listener.close()

    async def drain(self, timeout_s: float) -> None:
        """End every connection after the answers it is waiting for, which carry ``Connection: close``; those that are
        not done in time are cut."""
        self.close_listeners()
        self.draining = True
        end_s = self.time() + timeout_s
        grace_s = min(self.time() + _DRAIN_GRACE_S, end_s)
        while self._connections and self.time() < end_s:
            if self.time() >= grace_s:
                for connection in [c for c in self._connections if c.is_idle]:
                    connection.close()
            await asyncio.sleep(_DRAIN_STEP_S)
        for connection in list(self._connections):
            connection.abort()
        if self._tick is not None:
            self._tick.cancel()
        await asyncio.sleep(0)  # lets transports report that they are gone

    def opened(self, connection: Connection) -> int:
        """Count a connection; how many there are over the limit."""
        self._connections.add(connection)
        self._metrics.connections = len(self._connections)
        return len(self._connections) - self._max_connections

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        self._metrics.connections = len(self._connections)

    def limit_hit(self, name: str) -> None:
        """Report a limit that refused something."""
        self._metrics.limit_hit(name)

    def _connect(self) -> Connection:
        return Connection(self)

    def _sweep(self) -> None:
        self.date_line = date_line(time.time())
        now_s = self.time()
        for connection in list(self._connections):
            connection.check(now_s)
        wait_s = min(_TICK_S, self.limits.idle_timeout_s / 4, LINGER_S)
        self._tick = asyncio.get_running_loop().call_later(wait_s, self._sweep)


def date_line(at_s: float) -> bytes:
    """The ``Date`` field (RFC 9110, 5.6.7) for a time since the epoch."""
    t = time.gmtime(at_s)
    day, month = _DAYS[t.tm_wday], _MONTHS[t.tm_mon - 1]
    clock = f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
    return f"date: {day}, {t.tm_mday:02} {month} {t.tm_year} {clock} GMT\r\n".encode()


def parse_address(text: str) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 host stands in brackets.

    Raises:
        InvalidArgument: it is not that.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or not host:
        raise InvalidArgument(f"'{text}' is not an address; expected host:port, such as 127.0.0.1:8080 or [::1]:8080")
    return host.removeprefix("[").removesuffix("]"), int(port)
