"""One address: its sockets, who may call there, and the connections that came in."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from salver.core.errors import Unavailable
from salver.core.registry import load
from salver.server.addresses import UNIX, bind_unix, parse_address, remove_unix, show_address
from salver.server.frontends.http._connection import Connection
from salver.server.frontends.http.guard import Guard, GuardSettings, is_loopback_address, make_access
from salver.server.frontends.http.router import Router
from salver.server.frontends.http.shared import Head, Intake, Limits, ServedConnection

_BACKLOG: Final = 1024
# Loaded at the first connection that speaks it: header compression is imported only then.
_HTTP2: Final = "salver.server.frontends.http2.connection:Http2Connection"


class Owner(Protocol):
    """What all listeners share; the server."""

    router: Router
    methods: dict[bytes, Any]
    limits: Limits
    intake: Intake
    draining: bool
    time: Callable[[], float]

    def opened(self, connection: ServedConnection) -> int:
        """A connection is there; how many there are over the limit."""

    def closed(self, connection: ServedConnection) -> None:
        """A connection is gone."""

    def limit_hit(self, name: str) -> None:
        """A limit refused something."""


class Listener:
    """Listens on one address. What its connections see of the server.

    Args:
        address: ``host:port`` or ``unix:/path``.
    """

    def __init__(self, owner: Owner, address: str) -> None:
        self.router = owner.router
        self.methods = owner.methods
        self.limits = owner.limits
        self.intake = owner.intake
        self.time = owner.time
        self.opened = owner.opened
        self.closed = owner.closed
        self.limit_hit = owner.limit_hit
        self.draining = owner.draining
        self.date_line = b""
        self.heads: dict[bytes, Head] = {}
        self.guard: Guard
        self.bound: tuple[str, int] | str
        """Host and port, or the path, of the first socket."""
        self._address = address
        self._context: ssl.SSLContext | None = None
        self._servers: list[asyncio.Server] = []
        self._adopted: dict[int, list[asyncio.Server]] = {}
        self._inode = 0

    async def bind(
        self, settings: GuardSettings, context: ssl.SSLContext | None, sockets: Sequence[socket.socket] = ()
    ) -> None:
        """Take the address, but accept nothing yet.

        Args:
            context: how TLS is spoken; not on Unix sockets.
            sockets: bound sockets to listen on, instead of the address.

        Raises:
            InvalidArgument: not an address.
            Unavailable: it cannot be bound.
            FailedPrecondition: other machines reach it, and callers would prove nothing.
        """
        self._context = context
        if not sockets and self._address.startswith(UNIX):
            path = self._address.removeprefix(UNIX)
            sockets = (bind_unix(path),)
            self._inode = os.lstat(path).st_ino
        if sockets:
            self._servers = [await self._open(sock=sock) for sock in sockets]
        else:
            host, port = parse_address(self._address)
            try:
                self._servers = [await self._open(host=host, port=port)]
            except OSError as error:
                raise Unavailable(
                    f"cannot listen on {self._address}: {error.strerror or error}; choose another address"
                ) from None
        names = [sock.getsockname() for server in self._servers for sock in server.sockets]
        is_unix = isinstance(names[0], (str, bytes))
        self.bound = os.fsdecode(names[0]) if is_unix else names[0][:2]
        loopback = is_unix or all(is_loopback_address(name[0]) for name in names)
        # A web page cannot reach a Unix socket, and its clients put anything in Host.
        self.guard = Guard(
            loopback and not is_unix,
            () if is_unix else settings.trusted_hosts,
            settings.cors_origins,
            make_access(settings, self._address, loopback),
        )

    async def start(self) -> None:
        """Accept connections."""
        for server in self._servers:
            await server.start_serving()

    async def adopt(self, slot: int, sockets: Sequence[socket.socket]) -> None:
        """Accept connections on other sockets besides: those of a process that is gone."""
        self._adopted[slot] = [await self._open(sock=sock) for sock in sockets]
        for server in self._adopted[slot]:
            await server.start_serving()

    def release(self, slot: int) -> None:
        """Accept no more of `adopt`'s; the connections stay."""
        for server in self._adopted.pop(slot, ()):
            server.close()

    def close(self) -> None:
        """Accept no more connections; those there stay."""
        for slot in list(self._adopted):
            self.release(slot)
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        if servers and self._inode and isinstance(self.bound, str):
            remove_unix(self.bound, self._inode)

    @property
    def title(self) -> str:
        """The address as people write it, with the port that was taken."""
        return show_address(self.bound)

    def hand_over(self, connection: ServedConnection, transport: asyncio.Transport, data: bytes) -> None:
        """Give a transport to an HTTP/2 connection."""
        self.closed(connection)
        other = load(_HTTP2)(self)
        transport.set_protocol(other)
        other.connection_made(transport)
        if data:
            other.data_received(data)

    async def _open(self, **where: Any) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        sock: socket.socket | None = where.get("sock")
        if sock is not None and sock.family == socket.AF_UNIX:
            return await loop.create_unix_server(self._connect, sock=sock, backlog=_BACKLOG, start_serving=False)
        context = self._context
        return await loop.create_server(
            self._connect,
            **where,
            backlog=_BACKLOG,
            start_serving=False,
            ssl=context,
            ssl_handshake_timeout=None if context is None else self.limits.idle_timeout_s,
        )

    def _connect(self) -> Connection:
        return Connection(self)
