"""TLS: what both listeners speak, whose certificate a client proved to have, and new certificates without a restart."""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any, Final, Protocol

from salver.core.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, SalverError

ALPN: Final = ("h2", "http/1.1")
# RFC 9113, 9.2.2: over TLS 1.2, HTTP/2 wants ephemeral keys and authenticated ciphers.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_LOG: Final = logging.getLogger(__name__)


class TlsSettings(Protocol):
    """The settings that TLS follows from."""

    @property
    def tls_cert(self) -> str:
        """Certificate chain in PEM; empty for no TLS."""

    @property
    def tls_key(self) -> str:
        """Private key in PEM."""

    @property
    def tls_client_ca(self) -> str:
        """Certificates in PEM of those who vouch for clients; empty where clients need no certificate."""


def server_context(settings: TlsSettings) -> ssl.SSLContext | None:
    """How the listeners speak TLS (1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN); None where they do not.

    Raises:
        NotFound, PermissionDenied: a file is not there or may not be read.
        InvalidArgument: a file is not what it should be, or the key is encrypted or not that of the certificate.
        FailedPrecondition: the certificate has expired.
    """
    if not settings.tls_cert:
        return None
    context = _context(settings)
    if settings.tls_client_ca:
        _read(settings.tls_client_ca, "tls_client_ca")
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except ssl.SSLError:
            raise InvalidArgument(f"'{settings.tls_client_ca}' (tls_client_ca) holds no certificate in PEM") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _context(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(list(ALPN))
    _load(context, settings)
    return context


class CertificateFiles:
    """Takes a new certificate and key into a context when their files change; connections that are open keep theirs.

    The certificates of those who vouch for clients (``tls_client_ca``) are read once.
    """

    def __init__(self, context: ssl.SSLContext, settings: TlsSettings) -> None:
        self._context = context
        self._settings = settings
        self._stamp = self._look()

    def refresh(self) -> None:
        """Look at the files; called about once a second. A pair that is wrong, perhaps because only one of the files
        has been written yet, is reported, and the certificate stays as it was."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            _context(self._settings)  # a context that takes half of a pair would be of no use any more
            _load(self._context, self._settings)
        except SalverError as error:
            _LOG.error("the TLS certificate stays as it was: %s", error.message)
        else:
            _LOG.info("the TLS certificate was read again from %s", self._settings.tls_cert)

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        found = []
        for name in (self._settings.tls_cert, self._settings.tls_key):
            try:
                status = Path(name).stat()
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)


def peer_names(ssl_object: Any) -> tuple[str, ...]:
    """Common name, and DNS, URI and e-mail alternative names, of the certificate that a client proved to have.

    Args:
        ssl_object: an `ssl.SSLObject`, as a transport's ``get_extra_info("ssl_object")`` gives it.
    """
    certificate = ssl_object.getpeercert() or {}
    names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    names += [value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "URI", "email")]
    return tuple(dict.fromkeys(names))


def _load(context: ssl.SSLContext, settings: TlsSettings) -> None:
    certificate, key = settings.tls_cert, settings.tls_key
    text = _read(certificate, "tls_cert")
    _read(key, "tls_key")

    def refuse() -> str:
        raise InvalidArgument(
            f"'{key}' (tls_key) is encrypted; a server starts unattended: decrypt it (openssl pkey -in ... -out ...) "
            "and let only the server read it"
        )

    try:
        context.load_cert_chain(certificate, key, refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidArgument(f"'{key}' (tls_key) is not the key of the certificate in '{certificate}'") from None
        raise InvalidArgument(
            f"'{certificate}' (tls_cert) and '{key}' (tls_key) must be a certificate chain and its private key, in PEM "
            f"({error.reason or error})"
        ) from None
    until_s = _not_after_s(text)
    if until_s <= time():
        at = datetime.fromtimestamp(until_s, UTC)
        raise FailedPrecondition(f"the certificate in '{certificate}' expired at {at:%Y-%m-%d %H:%M} UTC; renew it")


def _read(path: str, setting: str) -> str:
    try:
        return Path(path).read_text(encoding="latin-1")
    except FileNotFoundError:
        raise NotFound(f"no such file: '{path}' ({setting})") from None
    except OSError as error:
        raise PermissionDenied(f"'{path}' ({setting}) cannot be read: {error.strerror}") from None


def _not_after_s(pem: str) -> float:
    """When the first certificate of a chain ends (RFC 5280, 4.1.2.5): the second time of the fifth field of
    TBSCertificate. OpenSSL has read it before, so it is well-formed."""
    start = pem.find(_BEGIN)
    if start < 0:  # OpenSSL reads older spellings too
        return float("inf")
    body = pem[start : pem.index(_END, start) + len(_END)]
    der = memoryview(ssl.PEM_cert_to_DER_cert(body))
    fields = _items(_items(_items(der)[0][1])[0][1])
    if fields[0][0] == 0xA0:  # the version is optional
        del fields[0]
    tag, end = _items(fields[3][1])[1]
    return (
        datetime.strptime(bytes(end).decode(), "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ")
        .replace(tzinfo=UTC)
        .timestamp()
    )


def _items(der: memoryview) -> list[tuple[int, memoryview]]:
    """Tags and contents of the values that follow each other in DER (X.690)."""
    found = []
    while der:
        tag, length, start = der[0], der[1], 2
        if length >= 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[2:start], "big")
        found.append((tag, der[start : start + length]))
        der = der[start + length :]
    return found
