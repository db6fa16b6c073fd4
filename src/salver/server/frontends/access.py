"""Who is asking, and what they may: scopes, peers and API keys."""

from __future__ import annotations

from typing import Literal

import msgspec

Scope = Literal["open", "infer", "metadata", "metrics", "admin"]
"""What a route needs. ``open`` needs nothing: liveness and readiness, which probes ask without keys."""


class Peer(msgspec.Struct, frozen=True):
    """The other end of a connection.

    Args:
        address: as shown in logs.
        uid: user of the process on the other end of a Unix socket; None elsewhere.
        names: subject and alternative names of the certificate that the client proved to have (mTLS).
        is_tls: whether the connection is encrypted.
    """

    address: str = ""
    uid: int | None = None
    names: tuple[str, ...] = ()
    is_tls: bool = False
