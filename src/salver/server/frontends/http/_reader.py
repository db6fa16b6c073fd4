"""From bytes to requests: the receiving half of an HTTP/1.1 connection. The only file that imports httptools."""

from __future__ import annotations

import abc
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

import httptools

from salver.core.errors import InvalidArgument, SalverError, TooLarge
from salver.server.frontends.access import Peer
from salver.server.frontends.codes import HttpError, status_of
from salver.server.frontends.http.admission import admit, check_caller, check_method
from salver.server.frontends.http.answers import SMALL_BODY_BYTES
from salver.server.frontends.http.exchange import NO_MATCH, Exchange, Match
from salver.server.frontends.http.headers import known_name
from salver.server.frontends.http.shared import NO_HEAD, Head, Host

MAX_TARGET_BYTES: Final = 8192

_VERSIONS: Final = frozenset({"1.0", "1.1"})
_MAX_CACHED_HEAD_BYTES: Final = 1024
_MAX_CACHED_HEADS: Final = 512
# Framing a sender may add to a body before it looks like an attack: chunks of one byte cost six bytes each.
_MAX_FRAMING_RATIO: Final = 8
_NOT_CACHED: Final = frozenset(
    {
        b"connection",
        b"content-encoding",
        b"cookie",
        b"expect",
        b"origin",
        b"transfer-encoding",
    }
)


class _Stop(Exception):
    """Leaves the parser in the middle of its input; why has been said already."""


class RequestReader(abc.ABC):
    """Reads requests, and refuses what their heads and sizes decide. A head that was read before is recognized.

    While `_deaf`, what arrives is thrown away: the client gets its answer and then the end of the connection, but not
    a reset, which would make its kernel drop an answer it has not read yet (RFC 9112, 9.6).
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.peer = Peer()
        self._limits = host.limits
        self._time = host.time
        self._parser = httptools.HttpRequestParser(self)
        self._deaf = False
        self._continue_due = False
        self._since_s = 0.0  # the first byte of the request being read, or the first `check` since the last answer
        self._partial = False
        self._exchanges = 0
        self._head = NO_HEAD  # the one before, which most clients send again
        self._held_bytes = 0
        self._begin()

    @abc.abstractmethod
    def _take(self, exchange: Exchange, step: Callable[[Exchange], None]) -> None:
        """A request is complete; the step answers it."""

    @abc.abstractmethod
    def _handle(self, exchange: Exchange) -> None:
        """Answer a request whatever its head says, once its caller was checked."""

    @abc.abstractmethod
    def _take_refused(self, exchange: Exchange, error: SalverError) -> None:
        """A request is complete, but was refused before its body was read."""

    @abc.abstractmethod
    def _refuse(self, error: SalverError) -> None:
        """A request is refused for which nothing more can be read: answer it, and become deaf."""

    @abc.abstractmethod
    def _send_continue(self) -> None:
        """The client waits for 100 before it sends the body."""

    @abc.abstractmethod
    def answered(self, exchange: Exchange) -> None:
        """As `Writer`."""

    @abc.abstractmethod
    def cut(self, exchange: Exchange) -> None:
        """As `Writer`."""

    @abc.abstractmethod
    def limit_hit(self, name: str) -> None:
        """A limit refused something."""

    def _begin(self) -> None:
        self._in_head = True
        self._wire_bytes = 0
        self._head_bytes = 0
        self._target = b""
        self._fields: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._match: Match = NO_MATCH
        self._refusal: SalverError | None = None
        self._extra = b""

    def _read(self, data: bytes) -> None:
        """Take what came."""
        if self._partial:
            self._parse(data)
            return
        head = self._head
        if len(data) != head.size or not data.startswith(head.raw):
            end = data.find(b"\r\n\r\n", 0, _MAX_CACHED_HEAD_BYTES) + 4
            found = self._host.heads.get(data[:end])
            if found is None or len(data) != found.size:
                self._read_new(data, end)
                return
            self._head = head = found
        body = data[head.end :]
        exchange = Exchange(self, head.method, head.target, head.match, head.fields, body, perf_counter())
        self._take(exchange, head.handler or self._handle)

    def _read_new(self, data: bytes, end: int) -> None:
        """Parse what came, and keep the head of a request that came whole, and alone."""
        exchanges = self._exchanges
        self._parse(data)
        if end > 3 and self._exchanges == exchanges + 1 and not self._partial and not self._deaf:
            self._remember(data[:end], len(data))

    def _remember(self, raw: bytes, size: int) -> None:
        fields = self._fields
        if self._refusal is not None or not _NOT_CACHED.isdisjoint(fields):
            return
        if int(fields.get(b"content-length", b"0")) != size - len(raw):
            return
        heads = self._host.heads
        if len(heads) >= _MAX_CACHED_HEADS:
            heads.clear()
        method, match = self._method(), self._match
        is_open = match.scopes.get(method, "open") in self._host.guard.anonymous
        handler = match.handlers.get(method) if is_open else None
        heads[raw] = Head(raw, size, method, self._target, match, fields, handler)

    def _parse(self, data: bytes) -> None:
        exchanges = self._exchanges
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # RFC 9110, 7.8: an upgrade may be ignored; what follows would be of its protocol
        except httptools.HttpParserError as error:
            if not self._deaf:
                self._refuse(_parse_error(error))
        if self._partial and not self._deaf:
            # A read that ends one request and begins another does not count for the second.
            self._check_framing(len(data) if self._exchanges == exchanges else 0)

    def _check_framing(self, read_bytes: int) -> None:
        self._wire_bytes += read_bytes
        limit = self._limits.max_header_bytes
        if not self._in_head:
            limit = 2 * limit + _MAX_FRAMING_RATIO * self._body_bytes
        if self._wire_bytes > limit:
            self._refuse_head()

    def _end_reading(self) -> None:
        """Nothing comes any more."""
        self._deaf = True
        del self._parser  # it knows this connection: only a rare collection of garbage would free the two

    # The parser's side

    def on_message_begin(self) -> None:
        self._begin()
        self._partial = True
        self._since_s = self._time()

    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > MAX_TARGET_BYTES:
            self.limit_hit("target_bytes")
            self._refuse(HttpError(414, f"the request target is longer than {MAX_TARGET_BYTES} bytes"))
            raise _Stop

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._limits.max_header_bytes:
            self._refuse_head()
            raise _Stop
        if not self._in_head:  # a trailer field means nothing here
            return
        known = known_name(name)
        if known is None:
            return
        if known in self._fields:
            if known in (b"host", b"inference-header-content-length"):
                self._refuse(InvalidArgument(f"the request has two '{known.decode()}' fields"))
                raise _Stop
            value = self._fields[known] + b", " + value
        self._fields[known] = value

    def on_headers_complete(self) -> None:
        self._in_head = False
        fields = self._fields
        length = int(fields.get(b"content-length", b"0"))
        if length > self._limits.max_body_bytes:
            self._refuse_body(f"{length} bytes")
            raise _Stop
        try:
            self._check_head(fields)
        except SalverError as error:
            is_hopeless = status_of(error) in (400, 505) or length > SMALL_BODY_BYTES
            if is_hopeless or b"transfer-encoding" in fields or b"expect" in fields:
                self._refuse(error)
                raise _Stop from None
            self._refusal = error
            return
        if b"expect" in fields and (length or b"transfer-encoding" in fields):
            self._continue_due = True
            self._send_continue()

    def on_body(self, part: bytes) -> None:
        self._body_bytes += len(part)
        if self._body_bytes > self._limits.max_body_bytes:
            self._refuse_body("more")
            raise _Stop
        if self._refusal is None:
            self._body.append(part)
            self._hold(len(part))

    def _hold(self, size: int) -> None:
        intake = self._host.intake
        self._held_bytes += size
        intake.held_bytes += size
        if intake.is_over:
            self.limit_hit("max_incoming_bytes")
            self._refuse(intake.refusal())
            raise _Stop

    def _let_go(self) -> list[bytes]:
        """The body so far, which is no longer coming in."""
        parts, self._body = self._body, []
        self._host.intake.held_bytes -= self._held_bytes
        self._held_bytes = 0
        return parts

    def on_message_complete(self) -> None:
        self._partial = False
        self._continue_due = False
        self._exchanges += 1
        parts = self._let_go()
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        exchange = Exchange(
            self, self._method(), self._target, self._match, self._fields, body, perf_counter(), self._extra
        )
        exchange.is_old = self._parser.get_http_version() == "1.0"
        if self._parser.should_upgrade() or not self._parser.should_keep_alive():
            exchange.close = True
            self._deaf = True
        if self._refusal is None:
            self._take(exchange, self._handle)
        else:
            self._take_refused(exchange, self._refusal)

    def _method(self) -> bytes:
        return self._parser.get_method()

    def _check_head(self, fields: dict[bytes, bytes]) -> None:
        """Everything about a request that its head alone decides."""
        host = fields.get(b"host")
        version = self._parser.get_http_version()
        if version not in _VERSIONS:
            raise HttpError(505, f"HTTP/{version} is not spoken here; send HTTP/1.1")
        is_old = version == "1.0"
        if host is None and not is_old:
            raise InvalidArgument("an HTTP/1.1 request needs a 'Host' field")
        if fields.get(b"transfer-encoding", b"chunked").strip().lower() != b"chunked":
            raise HttpError(501, "the only Transfer-Encoding known is 'chunked'; say gzip in Content-Encoding")
        if fields.get(b"content-type", b"").startswith(b"application/grpc"):
            raise HttpError(415, "gRPC is spoken over HTTP/2 only; this request came as HTTP/1.1")
        method = self._method()
        match, extra = admit(self._host.router, self._host.guard, self._target, host, fields)
        self._extra += extra
        check_method(match, method, self._target)
        check_caller(self._host.guard, match, method, fields, self.peer)
        if b"expect" in fields and not is_old and fields[b"expect"].lower() != b"100-continue":
            raise HttpError(417, f"unknown expectation '{fields[b'expect'][:50].decode('latin-1')}'")
        if b"expect" in fields and is_old:
            del fields[b"expect"]  # RFC 9110, 10.1.1: an HTTP/1.0 client does not understand 100
        if self._parser.should_upgrade() and (b"content-length" in fields or b"transfer-encoding" in fields):
            raise HttpError(501, "protocol upgrades are not supported; send plain HTTP/1.1")
        self._match = match

    def _refuse_head(self) -> None:
        self.limit_hit("max_header_bytes")
        limit = self._limits.max_header_bytes
        self._refuse(HttpError(431, f"the request's header fields are larger than {limit} bytes (max_header_bytes)"))

    def _refuse_body(self, size: str) -> None:
        self.limit_hit("max_body_bytes")
        limit = self._limits.max_body_bytes
        self._refuse(TooLarge(f"the body has {size}, over the limit of {limit} bytes (max_body_bytes)"))


def _parse_error(error: Any) -> SalverError:
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return HttpError(501, "unknown HTTP method")
    return InvalidArgument(f"malformed HTTP request: {error or type(error).__name__}")
