"""Where a server is and how it is reached: from a URL to an address and a TLS context."""

from __future__ import annotations

import re
import ssl
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from salver.core.errors import FailedPrecondition, InvalidArgument, SalverError, Unavailable

_KEY: Final = re.compile(r"[\x21-\x7e]*")
_PORTS: Final = {"http": 80, "https": 443, "grpc": 8081, "grpcs": 443}


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One server.

    Args:
        host, port: of TCP; empty where ``path`` is set.
        path: of a Unix socket.
        is_grpc: whether to speak gRPC.
        context: TLS, or None for plain text.
        fields: header fields sent with every request.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    is_grpc: bool
    context: ssl.SSLContext | None = None
    fields: tuple[tuple[str, str], ...] = ()

    @property
    def authority(self) -> str:
        """For ``Host`` and ``:authority``."""
        if self.path:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """For messages."""
        return f"unix:{self.path}" if self.path else self.authority


def parse_endpoint(
    url: str, *, api_key: str = "", ca: str = "", client_cert: str = "", client_key: str = ""
) -> Endpoint:
    """Read a URL.

    Args:
        url: ``http://host:port``, ``https://``, ``grpc://``, ``grpcs://``, ``http+unix:///path``, ``grpc+unix:///path``.
        api_key: sent as a bearer token.
        ca: certificates in PEM to trust instead of the system's.
        client_cert, client_key: PEM files by which this client proves who it is.

    Raises:
        InvalidArgument: the URL is of no such form, or the key cannot be sent.
        FailedPrecondition: a certificate file cannot be used.
    """
    parts = urlsplit(url)
    scheme, _, transport = parts.scheme.partition("+")
    if not _KEY.fullmatch(api_key):
        raise InvalidArgument("the API key holds characters that cannot be sent in a header; expected printable ASCII")
    fields = (("authorization", f"Bearer {api_key}"),) if api_key else ()
    if scheme not in _PORTS or transport not in ("", "unix") or (transport and scheme.endswith("s")):
        raise InvalidArgument(
            f"'{url}' is not a server's URL; expected http://host:port, https://, grpc://, grpcs:// or http+unix:///path"
        )
    is_tls = scheme in ("https", "grpcs")
    is_grpc = scheme.startswith("grpc")
    context = _context(ca, client_cert, client_key, is_grpc) if is_tls else None
    if transport == "unix":
        path = unquote(parts.path)
        if parts.netloc or not path:
            raise InvalidArgument(f"'{url}': expected an absolute path, {scheme}+unix:///run/server.sock")
        return Endpoint(path=path, is_grpc=is_grpc, context=context, fields=fields)
    try:
        port = parts.port or _PORTS[scheme]
    except ValueError:
        raise InvalidArgument(f"'{url}': the port must be a number up to 65535") from None
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise InvalidArgument(f"'{url}': expected {scheme}://host:port and nothing more")
    return Endpoint(host=parts.hostname, port=port, is_grpc=is_grpc, context=context, fields=fields)


def unreachable(endpoint: Endpoint, error: OSError) -> SalverError:
    """The error for a connection that could not be made."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return FailedPrecondition(
            f"the certificate of {endpoint.shown} is not trusted: {error.verify_message}; name the file of the "
            "authority that issued it (ca)"
        )
    return Unavailable(f"cannot reach {endpoint.shown}: {error}")


def _context(ca: str, client_cert: str, client_key: str, is_grpc: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca or None)
        if client_cert:
            context.load_cert_chain(client_cert, client_key or None)
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(repr(name) for name in (ca, client_cert, client_key) if name)
        raise FailedPrecondition(f"certificates {named} cannot be used: {error}") from None
    context.set_alpn_protocols(["h2"] if is_grpc else ["http/1.1"])
    return context
