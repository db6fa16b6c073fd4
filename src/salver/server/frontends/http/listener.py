"""One address: its sockets, who may call there, and the connections that came in."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol

from salver.core.errors import Unavailable
from salver.core.registry import load
from salver.server.frontends.http._connection import Connection
from salver.server.frontends.http.addresses import UNIX, bind_unix, parse_address, remove_unix, show_address
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
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def bind(
        self, settings: GuardSettings, context: ssl.SSLContext | None, sock: socket.socket | None = None
    ) -> None:
        """Take the address, but accept nothing yet.

        Args:
            context: how TLS is spoken; not on Unix sockets.
            sock: a bound socket to listen on, instead of the address.

        Raises:
            InvalidArgument: not an address.
            Unavailable: it cannot be bound.
            FailedPrecondition: other machines reach it, and callers would prove nothing.
        """
        loop = asyncio.get_running_loop()
        is_unix = sock is None and self._address.startswith(UNIX)
        if is_unix:
            path = self._address.removeprefix(UNIX)
            sock = bind_unix(path)
            self._inode = os.lstat(path).st_ino
            self._server = await loop.create_unix_server(
                self._connect, sock=sock, backlog=_BACKLOG, start_serving=False
            )
            self.bound = path
        else:
            where: dict[str, Any] = {"sock": sock}
            if sock is None:
                host, port = parse_address(self._address)
                where = {"host": host, "port": port}
            try:
                self._server = await loop.create_server(
                    self._connect,
                    **where,
                    backlog=_BACKLOG,
                    start_serving=False,
                    ssl=context,
                    ssl_handshake_timeout=None if context is None else self.limits.idle_timeout_s,
                )
            except OSError as error:
                raise Unavailable(
                    f"cannot listen on {self._address}: {error.strerror or error}; choose another address"
                ) from None
            name: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
            self.bound = name
        loopback = is_unix or all(is_loopback_address(s.getsockname()[0]) for s in self._server.sockets)
        # A web page cannot reach a Unix socket, and its clients put anything in Host.
        self.guard = Guard(
            loopback and not is_unix,
            () if is_unix else settings.trusted_hosts,
            settings.cors_origins,
            make_access(settings, self._address, loopback),
        )

    async def start(self) -> None:
        """Accept connections."""
        if self._server is not None:
            await self._server.start_serving()

    def close(self) -> None:
        """Accept no more connections; those there stay."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            if isinstance(self.bound, str):
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

    def _connect(self) -> Connection:
        return Connection(self)
