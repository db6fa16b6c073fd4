"""Who may call: ``Host`` against DNS rebinding, ``Origin`` against web pages of other sites.

A server on loopback is reachable by every web page the user has open: a page's own name can be made to resolve to
127.0.0.1 (its requests then carry that name in ``Host``), and a page may post to 127.0.0.1 directly (its requests then
carry its ``Origin``). Both are refused unless configured.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from salver.core.errors import InvalidArgument, PermissionDenied

_MAX_SEEN: Final = 256


class Guard:
    """Checks of one listener.

    Args:
        loopback: whether it listens on loopback only; then just loopback names and ``trusted_hosts`` pass. Elsewhere
            every host passes, unless ``trusted_hosts`` are named.
        trusted_hosts: host names, without port.
        cors_origins: origins such as ``https://app.example``, or ``*``.
    """

    def __init__(self, loopback: bool, trusted_hosts: Sequence[str], cors_origins: Sequence[str]) -> None:
        self._loopback = loopback
        self._trusted = {h.lower() for h in trusted_hosts}
        self._origins = {o.lower().rstrip("/") for o in cors_origins}
        self._seen: set[bytes] = set()

    def check_host(self, host: bytes | None) -> None:
        """Refuse a request whose ``Host`` is not one of ours.

        Raises:
            PermissionDenied: it is not.
        """
        if host is None or host in self._seen:
            return
        if self._loopback or self._trusted:
            name = _host_name(host)
            if name not in self._trusted and not (self._loopback and _is_loopback_name(name)):
                raise PermissionDenied(
                    f"host '{name}' is not served here; use 127.0.0.1 or localhost, or add the name to trusted_hosts"
                )
        if len(self._seen) < _MAX_SEEN:
            self._seen.add(host)

    def check_origin(self, origin: bytes, host: bytes | None) -> bool:
        """Refuse a browser's request from another site.

        Returns:
            Whether the origin is another one that is allowed, so that CORS header lines are due.

        Raises:
            PermissionDenied: the origin is neither ours nor allowed.
        """
        text = origin.decode("latin-1").lower()
        if host is not None and text.partition("://")[2] == host.decode("latin-1").lower():
            return False
        if "*" in self._origins or text in self._origins:
            return True
        raise PermissionDenied(f"origin '{text}' may not call this server; add it to cors_origins to allow it")


def cors_fields(origin: bytes) -> bytes:
    """Header lines that let the page of an allowed origin read the answer."""
    return (
        b"access-control-allow-origin: " + origin + b"\r\nvary: origin\r\n"
        b"access-control-expose-headers: inference-header-content-length, retry-after\r\n"
    )


def preflight_fields(origin: bytes, methods: bytes) -> bytes:
    """Header lines that answer a CORS preflight (https://fetch.spec.whatwg.org/#http-cors-protocol)."""
    return (
        cors_fields(origin) + b"access-control-allow-methods: " + methods + b"\r\n"
        b"access-control-allow-headers: content-type, inference-header-content-length, authorization\r\n"
        b"access-control-max-age: 600\r\n"
    )


def _host_name(host: bytes) -> str:
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        name, bracket, rest = text.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidArgument(f"malformed Host '{text}'")
        return name[1:]
    name, _, port = text.partition(":")
    if port and not port.isdecimal():
        raise InvalidArgument(f"malformed Host '{text}'")
    return name.rstrip(".")


def is_loopback_address(address: str) -> bool:
    """Whether an IP address is one of loopback."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_loopback_name(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost") or is_loopback_address(name)
