"""What the connections of one listener share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from salver.core.errors import ResourceExhausted
from salver.server.frontends.http.exchange import NO_MATCH, Exchange, Match
from salver.server.frontends.http.guard import Guard
from salver.server.frontends.http.router import Router

LINGER_S: Final = 5.0
"""How long a connection that was ended waits for its client to end it too."""

MIN_BODY_BYTES_S: Final = 1024
"""A client that sends its body slower than this, `idle_timeout_s` allowed on top, is cut off."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one connection; see ``docs/server/limits.md``."""

    max_body_bytes: int
    max_decompressed_bytes: int
    max_header_bytes: int
    max_streams: int
    idle_timeout_s: float


class Intake:
    """Requests that are still coming in, of all connections together.

    Args:
        max_bytes: that they may hold.
    """

    __slots__ = ("held_bytes", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0

    @property
    def is_over(self) -> bool:
        """Whether they hold more than they may."""
        return self.held_bytes > self.max_bytes

    def refusal(self) -> ResourceExhausted:
        """The answer to the request that was too much."""
        return ResourceExhausted(
            f"requests that are still coming in hold {self.held_bytes} bytes, over the limit of {self.max_bytes} "
            "(max_incoming_bytes); retry later, or send less at once"
        )


class Head:
    """A request head that was parsed before, and means the same when it comes again, byte for byte.

    Args:
        raw: its bytes.
        size: of the whole request, its body included.
        handler: whom the request goes to; None where its caller is to be checked every time.
    """

    __slots__ = ("end", "fields", "handler", "match", "method", "raw", "size", "target")

    def __init__(
        self,
        raw: bytes,
        size: int,
        method: bytes,
        target: bytes,
        match: Match,
        fields: dict[bytes, bytes],
        handler: Callable[[Exchange], None] | None,
    ) -> None:
        self.raw = raw
        self.end = len(raw)
        self.size = size
        self.method = method
        self.target = target
        self.match = match
        self.fields = fields
        self.handler = handler


NO_HEAD: Final = Head(b"", -1, b"", b"", NO_MATCH, {}, None)
"""Of no request."""


class ServedConnection(Protocol):
    """A connection, whatever it speaks, as the listener sees it."""

    def check(self, now_s: float) -> None:
        """Cut off a client that idles or stalls for too long. Called about once a second."""

    def drain(self) -> None:
        """Ask the client to send no more requests; those open are answered. Called once."""

    @property
    def in_use(self) -> bool:
        """Whether requests came since the last `check` but one. Not of one that was asked to send no more."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being read or answered."""

    def close(self) -> None:
        """End an idle connection."""

    def abort(self) -> None:
        """End the connection now."""


class Host(Protocol):
    """What connections know of their listener."""

    router: Router
    guard: Guard
    limits: Limits
    intake: Intake
    heads: dict[bytes, Head]
    methods: dict[bytes, Any]
    """Path -> gRPC `Method`."""
    draining: bool
    date_line: bytes
    time: Callable[[], float]

    def opened(self, connection: ServedConnection) -> int:
        """A connection is there; how many there are over the limit."""

    def closed(self, connection: ServedConnection) -> None:
        """A connection is gone."""

    def limit_hit(self, name: str) -> None:
        """A limit refused something."""

    def hand_over(self, connection: ServedConnection, transport: asyncio.Transport, data: bytes) -> None:
        """The client speaks HTTP/2: let another connection have the transport, and what came on it."""
