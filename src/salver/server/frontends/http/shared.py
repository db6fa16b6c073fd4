"""What the connections of one listener share."""

from __future__ import annotations

import msgspec

from salver.server.frontends.http.exchange import Match


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one connection; see ``docs/server/limits.md``."""

    max_body_bytes: int
    max_header_bytes: int
    idle_timeout_s: float


class Head:
    """A request head that was parsed before, byte for byte the same."""

    __slots__ = ("extra", "fields", "length", "match", "method", "target")

    def __init__(
        self, method: bytes, target: bytes, match: Match, fields: dict[bytes, bytes], length: int, extra: bytes
    ) -> None:
        self.method = method
        self.target = target
        self.match = match
        self.fields = fields
        self.length = length
        self.extra = extra
