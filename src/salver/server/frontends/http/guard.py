"""Who may call: ``Host`` against DNS rebinding, ``Origin`` against web pages of other sites, credentials for the rest.

A server on loopback is reachable by every web page the user has open: a page's own name can be made to resolve to
127.0.0.1 (its requests then carry that name in ``Host``), and a page may post to 127.0.0.1 directly (its requests then
carry its ``Origin``). Both are refused unless configured.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from salver.core.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from salver.server.frontends.access import EVERYTHING, Access, Authenticator, Peer, Scope
from salver.server.frontends.keyring import VERIFIED, KeyringFile

_LOG: Final = logging.getLogger(__name__)
_MAX_SEEN: Final = 256


class GuardSettings(Protocol):
    """The settings that say who may call."""

    @property
    def tls_client_ca(self) -> str:
        """Certificates in PEM of those who vouch for clients; empty where clients need no certificate."""

    @property
    def api_keys(self) -> str:
        """File of hashed API keys; empty for none."""

    @property
    def insecure(self) -> bool:
        """Whether to listen beyond loopback though callers prove nothing."""

    @property
    def trusted_hosts(self) -> Sequence[str]:
        """Names accepted in ``Host`` besides those of loopback."""

    @property
    def cors_origins(self) -> Sequence[str]:
        """Origins whose web pages may call."""


class Guard:
    """Checks of one listener.

    Args:
        loopback: whether it listens on loopback only; then just loopback names and ``trusted_hosts`` pass. Elsewhere
            every host passes, unless ``trusted_hosts`` are named.
        trusted_hosts: host names, without port.
        cors_origins: origins such as ``https://app.example``, or ``*``.
        access: what credentials are needed; none by default.
    """

    def __init__(
        self,
        loopback: bool,
        trusted_hosts: Sequence[str],
        cors_origins: Sequence[str],
        access: Access | None = None,
    ) -> None:
        access = access or Access()
        self.check_access = access.check_access
        self.anonymous = access.anonymous
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


def make_access(settings: GuardSettings, address: str, loopback: bool) -> Access:
    """What the callers of a listener may do.

    Args:
        address: where it listens, ``host:port`` or ``unix:/path``.
        loopback: whether only this machine can reach it.

    Raises:
        FailedPrecondition: other machines can, and callers would prove nothing.
        SalverError: the file of keys is wrong; see `read_keyring`.
    """
    authenticators: list[Authenticator] = []
    keyring = KeyringFile(Path(settings.api_keys)) if settings.api_keys else None
    if keyring is not None:
        authenticators.append(keyring.by_key)
    if settings.tls_client_ca and not address.startswith("unix:"):
        authenticators.append(_by_any_certificate if keyring is None else keyring.by_certificate)
    if authenticators or loopback:
        return Access(authenticators)
    if settings.insecure:
        _LOG.warning("%s is open to everyone who can reach it (--insecure); the admin API is closed there", address)
        return Access(anonymous=EVERYTHING - {"admin"})
    raise FailedPrecondition(
        f"{address} can be reached from other machines, and callers would prove nothing. Name a file of API keys "
        "(--api-keys, made by 'salver keys --api NAME') or those who vouch for client certificates (--tls-client-ca); "
        "or say --insecure, where a network or a proxy keeps strangers out"
    )


def _by_any_certificate(_fields: Mapping[bytes, bytes], peer: Peer) -> frozenset[Scope] | None:
    return VERIFIED if peer.is_tls else None


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
        b"access-control-allow-headers: content-type, inference-header-content-length, authorization, x-api-key\r\n"
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
