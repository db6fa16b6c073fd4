"""All addresses of a server: their connections, shared limits, and a graceful end."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from salver.core.errors import AlreadyExists
from salver.core.registry import load
from salver.server.engine.base import Engine
from salver.server.frontends import BUILTIN, FRONTENDS, GRPC, Frontend, HttpSettings, Metrics, Services
from salver.server.frontends.base import Method
from salver.server.frontends.http.listener import Listener
from salver.server.frontends.http.router import Router
from salver.server.frontends.http.shared import LINGER_S, Intake, Limits, ServedConnection
from salver.server.frontends.shared_memory import Registry

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")  # not strftime's, which follow the locale
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TICK_S: Final = 1.0
_DRAIN_STEP_S: Final = 0.02
_DRAIN_GRACE_S: Final = 0.1
"""During a drain an idle connection stays that long: a request may be on its way."""

_TLS: Final = "salver.server.frontends.tls:"
_ROLES: Final = ("http", "grpc")
_NONE: Final[Mapping[str, Sequence[socket.socket]]] = MappingProxyType({})


class HttpServer:
    """Serves all frontends on ``settings.http`` and ``settings.grpc``; both answer HTTP/1.1 and HTTP/2.

    Args:
        frontends: names in the `frontends` family, or classes, in the order of their routes; all built-in ones by
            default, those that speak only gRPC where ``settings.grpc`` names an address.
        registry: of shared memory, where this is one of several processes.
    """

    def __init__(
        self, frontends: Sequence[str | type[Frontend]] | None = None, registry: Registry | None = None
    ) -> None:
        self._names = frontends
        self._registry = registry
        self._connections: set[ServedConnection] = set()
        self._listeners: list[Listener] = []
        self._by_role: dict[str, Listener] = {}
        self._tick: asyncio.TimerHandle | None = None
        self._certificates: Any = None
        self._services: Services | None = None
        self.router = Router()
        self.methods: dict[bytes, Method] = {}
        self.draining = False

    async def start(
        self,
        engine: Engine,
        metrics: Metrics,
        settings: HttpSettings,
        sockets: Mapping[str, Sequence[socket.socket]] = _NONE,
        *,
        accept: bool = True,
    ) -> None:
        """Listen.

        Args:
            sockets: bound sockets to listen on, instead of the addresses in ``http`` and ``grpc``.
            accept: whether connections are accepted at once; else `accept` does that.

        Raises:
            InvalidArgument: an address is neither ``host:port`` nor ``unix:/path``.
            Unavailable: an address cannot be bound.
            FailedPrecondition: callers from other machines would prove nothing.
        """
        self._services = Services(engine, metrics, settings)
        if self._registry is not None:
            self._registry.attach(self._services.shared_memory)
        self._add_frontends(self._services)
        self._metrics = metrics
        self._max_connections = settings.max_connections
        self.limits = Limits(
            max_body_bytes=settings.max_body_bytes,
            max_decompressed_bytes=settings.max_decompressed_bytes,
            max_header_bytes=settings.max_header_bytes,
            max_streams=settings.max_streams,
            idle_timeout_s=settings.idle_timeout_s,
        )
        self.intake = Intake(settings.max_incoming_bytes)
        self.time = asyncio.get_running_loop().time
        context = None
        if settings.tls_cert:
            context = load(_TLS + "server_context")(settings)
            self._certificates = load(_TLS + "CertificateFiles")(context, settings)
        addresses = {role: getattr(settings, role) for role in _ROLES}
        self._by_role = {role: Listener(self, address) for role, address in addresses.items() if address}
        self._listeners = list(self._by_role.values())
        try:
            for role, listener in self._by_role.items():
                await listener.bind(settings, context, sockets.get(role, ()))
        except BaseException:
            self.close_listeners()
            raise
        self._sweep()
        if accept:
            await self.accept()

    async def accept(self) -> None:
        """Accept connections."""
        for listener in self._listeners:
            await listener.start()

    async def adopt(self, slot: int, sockets: Mapping[str, Sequence[socket.socket]]) -> None:
        """Accept connections on the sockets of another slot too, until `release`."""
        for role, listener in self._by_role.items():
            await listener.adopt(slot, sockets.get(role, ()))

    def release(self, slot: int) -> None:
        """Accept no more on the sockets of another slot; the connections stay."""
        for listener in self._listeners:
            listener.release(slot)

    @property
    def in_use(self) -> int:
        """Connections on which requests came of late."""
        return sum(connection.in_use for connection in self._connections)

    def ease(self, share: float) -> None:
        """Ask the clients of a share of the connections in use to connect again: to another process, they may hope."""
        connections = [connection for connection in self._connections if connection.in_use]
        for connection in connections[: int(share * len(connections))]:
            connection.drain()

    def _add_frontends(self, services: Services) -> None:
        names = self._names
        if names is None:
            names = [name for name in BUILTIN if services.settings.grpc or name not in GRPC]
        members = [FRONTENDS.get(name) if isinstance(name, str) else name for name in names]
        services.frontends = tuple(member(services) for member in members)
        for frontend in services.frontends:
            for route in frontend.routes():
                self.router.add(route.method, route.path, route.handle, route.scope)
            for method in frontend.methods():
                if self.methods.setdefault(method.path.encode(), method) is not method:
                    raise AlreadyExists(f"gRPC method {method.path} is claimed by two frontends")

    @property
    def address(self) -> tuple[str, int] | str:
        """Host and port, or the path of a Unix socket, that ``settings.http`` became."""
        return self._listeners[0].bound

    @property
    def addresses(self) -> list[str]:
        """All addresses as people write them: ``settings.http``, then ``settings.grpc``."""
        return [listener.title for listener in self._listeners]

    def close_listeners(self) -> None:
        """Accept no more connections; those there stay."""
        for listener in self._listeners:
            listener.close()

    async def drain(self, timeout_s: float) -> None:
        """End every connection after the answers it is waiting for; those that are not done in time are cut."""
        self.close_listeners()
        if not self.draining:
            self.draining = True
            for listener in self._listeners:
                listener.draining = True
            for connection in list(self._connections):
                connection.drain()
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
        if self._services is not None:
            self._services.shared_memory.close()
        await asyncio.sleep(0)  # lets transports report that they are gone

    def opened(self, connection: ServedConnection) -> int:
        """Count a connection; how many there are over the limit."""
        self._connections.add(connection)
        self._metrics.connections = len(self._connections)
        return len(self._connections) - self._max_connections

    def closed(self, connection: ServedConnection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        self._metrics.connections = len(self._connections)

    def limit_hit(self, name: str) -> None:
        """Report a limit that refused something."""
        self._metrics.limit_hit(name)

    def _sweep(self) -> None:
        line = date_line(time.time())
        for listener in self._listeners:
            listener.date_line = line
        now_s = self.time()
        for connection in list(self._connections):
            connection.check(now_s)
        if self._certificates is not None:
            self._certificates.refresh()
        wait_s = min(_TICK_S, self.limits.idle_timeout_s / 4, LINGER_S)
        self._tick = asyncio.get_running_loop().call_later(wait_s, self._sweep)


def date_line(at_s: float) -> bytes:
    """The ``Date`` field (RFC 9110, 5.6.7) for a time since the epoch."""
    t = time.gmtime(at_s)
    day, month = _DAYS[t.tm_wday], _MONTHS[t.tm_mon - 1]
    clock = f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
    return f"date: {day}, {t.tm_mday:02} {month} {t.tm_year} {clock} GMT\r\n".encode()
