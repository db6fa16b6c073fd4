"""Who is on the other end of a transport."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, Final

from salver.core.registry import load
from salver.server.frontends.access import Peer

_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED
# TLS is imported only where it is used.
_PEER_NAMES: Final = "salver.server.frontends.tls:peer_names"


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    """Address, user of a Unix socket's other end, and the names in a client's certificate."""
    name = transport.get_extra_info("peername")
    tls: Any = transport.get_extra_info("ssl_object")
    if isinstance(name, tuple):
        address = f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
        names = load(_PEER_NAMES)(tls) if tls is not None else ()
        return Peer(address=address, names=names, is_tls=tls is not None, client=names[0] if names else name[0])
    uid = _uid(transport)
    return Peer(address="unix", uid=uid, client=f"user {uid}")


def _uid(transport: asyncio.BaseTransport) -> int | None:
    sock = transport.get_extra_info("socket")
    option = getattr(socket, "SO_PEERCRED", None)
    if sock is None or option is None:
        return None
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return int(uid)
