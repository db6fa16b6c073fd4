"""One HTTP/1.1 connection (RFC 9112): bytes to exchanges, answers to bytes. The only file that imports httptools."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import httptools

from salver.core.errors import InvalidArgument, SalverError, TooLarge, Unavailable
from salver.server.frontends.access import Peer
from salver.server.frontends.codes import HttpError, status_of
from salver.server.frontends.http.answers import SMALL_BODY_BYTES, allowed, answer_options, write_answer
from salver.server.frontends.http.coding import decompress
from salver.server.frontends.http.exchange import NO_MATCH, Exchange, Match
from salver.server.frontends.http.guard import Guard, cors_fields
from salver.server.frontends.http.headers import known_name
from salver.server.frontends.http.router import Router
from salver.server.frontends.http.shared import Head, Limits

MAX_PIPELINED: Final = 64
MAX_REFUSED: Final = 256
"""Connections over the limit that are told so; still more are cut without a word."""

MAX_TARGET_BYTES: Final = 8192
LINGER_S: Final = 5.0
MIN_BODY_BYTES_S: Final = 1024
"""A client that sends its body slower than this, `idle_timeout_s` allowed on top, is cut off."""

_VERSIONS: Final = frozenset({"1.0", "1.1"})
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_MAX_CACHED_HEAD_BYTES: Final = 1024
_MAX_CACHED_HEADS: Final = 512
# Framing a sender may add to a body before it looks like an attack: chunks of one byte cost six bytes each.
_MAX_FRAMING_RATIO: Final = 8
_NOT_CACHED: Final = frozenset(
    {b"authorization", b"cookie", b"connection", b"expect", b"origin", b"transfer-encoding", b"content-encoding"}
)


class Host(Protocol):
    """What connections share; the listener."""

    router: Router
    guard: Guard
    limits: Limits
    heads: dict[bytes, Head]
    draining: bool
    date_line: bytes
    time: Callable[[], float]

    def opened(self, connection: Connection) -> int:
        """A connection is there; how many there are over the limit."""

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""

    def limit_hit(self, name: str) -> None:
        """A limit refused something."""


class _Stop(Exception):
    """Leaves the parser in the middle of its input; why has been said already."""


class Connection(asyncio.Protocol):
    """One connection. Answers leave in the order in which requests came, whatever the order in which they are made.

    While `_deaf`, what arrives is thrown away: the client gets its answer and then the end of the connection, but not
    a reset, which would make its kernel drop an answer it has not read yet (RFC 9112, 9.6).
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.peer = Peer()
        self._limits = host.limits
        self._time = host.time
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._pending: deque[Exchange] = deque()  # in the order of their answers
        self._waiting: deque[Exchange] = deque()  # the last of these, which no handler has seen yet
        self._advance_due = False
        self._corked = False
        self._flush_due = False
        self._deaf = False
        self._closing_since_s = 0.0
        self._writes_paused_since_s = 0.0
        self._reads_paused = False
        self._continue_due = False
        self._since_s = 0.0  # the last answer written, or the first byte of the request being read
        self._partial = False
        self._exchanges = 0
        self._begin()

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

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._since_s = self._time()
        excess = self._host.opened(self)
        if excess > 0:
            self._host.limit_hit("max_connections")
        if excess > MAX_REFUSED:
            self.abort()
        elif excess > 0:
            self._refuse(Unavailable("the server has as many connections as it allows (max_connections); retry later"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._host.closed(self)
        self._forget()

    def eof_received(self) -> None:
        """The client is gone: answers made are flushed, requests in flight are cancelled, and the transport closes."""
        self._forget()
        self._closing_since_s = self._time()

    def _forget(self) -> None:
        self._deaf = True
        for exchange in self._pending:
            if exchange.cancel is not None:
                exchange.cancel()
                exchange.cancel = None  # a reference cycle, which would keep the request's arrays for long
        self._pending.clear()
        self._waiting.clear()
        self._body.clear()

    def pause_writing(self) -> None:
        self._writes_paused_since_s = self._time()
        self._pace()

    def resume_writing(self) -> None:
        self._writes_paused_since_s = 0.0
        self._flush()
        self._pace()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if not self._partial:
            end = data.find(b"\r\n\r\n", 0, _MAX_CACHED_HEAD_BYTES) + 4
            head = self._host.heads.get(data[:end])
            if head is not None and len(data) == end + head.length:
                self._exchanges += 1
                self._take(
                    Exchange(
                        self, head.method, head.target, head.match, head.fields, data[end:], self._time(), head.extra
                    )
                )
                if self._pending:
                    self._pace()
                return
            exchanges = self._exchanges
            self._parse(data)
            if end > 3 and self._exchanges == exchanges + 1 and not self._partial and not self._deaf:
                self._remember(data[:end], len(data) - end)
        else:
            self._parse(data)

    def _remember(self, head: bytes, length: int) -> None:
        """Keep the head of a request that was read whole, alone, in one read: it means the same the next time."""
        if self._refusal is not None or not _NOT_CACHED.isdisjoint(self._fields):
            return
        if int(self._fields.get(b"content-length", b"0")) != length:
            return
        heads = self._host.heads
        if len(heads) >= _MAX_CACHED_HEADS:
            heads.clear()
        heads[head] = Head(self._method(), self._target, self._match, self._fields, length, self._extra)

    def _parse(self, data: bytes) -> None:
        self._corked = True
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
        self._corked = False
        if self._pending:
            self._flush()
        self._pace()

    def _check_framing(self, read_bytes: int) -> None:
        self._wire_bytes += read_bytes
        limit = self._limits.max_header_bytes
        if not self._in_head:
            limit = 2 * limit + _MAX_FRAMING_RATIO * self._body_bytes
        if self._wire_bytes > limit:
            self._refuse_head()

    # The parser's side

    def on_message_begin(self) -> None:
        self._begin()
        self._partial = True
        self._since_s = self._time()

    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > MAX_TARGET_BYTES:
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
            self._flush()

    def on_body(self, part: bytes) -> None:
        self._body_bytes += len(part)
        if self._body_bytes > self._limits.max_body_bytes:
            self._refuse_body("more")
            raise _Stop
        if self._refusal is None:
            self._body.append(part)

    def on_message_complete(self) -> None:
        self._partial = False
        self._continue_due = False
        self._exchanges += 1
        parts = self._body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._body = []
        exchange = Exchange(
            self, self._method(), self._target, self._match, self._fields, body, self._time(), self._extra
        )
        if self._parser.should_upgrade() or not self._parser.should_keep_alive():
            exchange.close = True
            self._deaf = True
        if self._refusal is None:
            self._take(exchange)
        else:
            self._pending.append(exchange)
            exchange.fail(self._refusal)

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
        if is_old and self._parser.should_keep_alive():
            self._extra = b"connection: keep-alive\r\n"
        self._host.guard.check_host(host)
        match = self._host.router.find(self._target)
        method = self._method()
        origin = fields.get(b"origin")
        if origin is not None and self._host.guard.check_origin(origin, host):
            self._extra += cors_fields(origin)
        if method not in match.handlers and method != b"OPTIONS":
            names = allowed(match)
            raise HttpError(
                405,
                f"{method.decode()} is not for '{self._target[:200].decode('latin-1')}'; use {names.decode()}",
                fields=b"allow: " + names + b"\r\n",
            )
        if b"expect" in fields and not is_old and fields[b"expect"].lower() != b"100-continue":
            raise HttpError(417, f"unknown expectation '{fields[b'expect'][:50].decode('latin-1')}'")
        if b"expect" in fields and is_old:
            del fields[b"expect"]  # RFC 9110, 10.1.1: an HTTP/1.0 client does not understand 100
        if self._parser.should_upgrade() and (b"content-length" in fields or b"transfer-encoding" in fields):
            raise HttpError(501, "protocol upgrades are not supported; send plain HTTP/1.1")
        self._match = match

    # Answering

    def _take(self, exchange: Exchange) -> None:
        """Hand a request to its handler, or keep it where the connection has enough in flight: one read may hold
        thousands, whose answers would be made, and kept in memory, faster than they are read."""
        self._pending.append(exchange)
        if len(self._pending) > MAX_PIPELINED or self._waiting:
            self._waiting.append(exchange)
        else:
            exchange.attempt(self._handle, exchange)

    def _room(self) -> int:
        """How many more requests may be with handlers."""
        return MAX_PIPELINED - (len(self._pending) - len(self._waiting))

    def _advance(self) -> None:
        """Hand on requests that were kept, a turn's worth."""
        self._advance_due = False
        self._corked = True
        for _ in range(self._room()):
            if not self._waiting or self._writes_paused_since_s:
                break
            exchange = self._waiting.popleft()
            exchange.attempt(self._handle, exchange)
        self._corked = False
        self._flush()

    def _handle(self, exchange: Exchange) -> None:
        coding = exchange.fields.get(b"content-encoding")
        if coding is not None:
            exchange.body = decompress(exchange.body, coding, self._limits.max_body_bytes)
        handler = exchange.match.handlers.get(exchange.method)
        if handler is not None:
            handler(exchange)
        else:
            answer_options(exchange)

    def answered(self, exchange: Exchange) -> None:
        """Write the answer now if it is the only one; else with the others of this turn of the loop."""
        if self._corked or self._transport is None:
            return
        if len(self._pending) == 1:
            self._flush()
        elif not self._flush_due and self._pending and self._pending[0].answer is not None:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Write every answer whose turn it is, in one write."""
        self._flush_due = False
        transport = self._transport
        if transport is None:
            return
        pending = self._pending
        out: list[bytes | memoryview] = []
        last = False
        while pending and pending[0].answer is not None and not last:
            exchange = pending.popleft()
            last = exchange.close or (self._host.draining and not pending and not self._partial)
            write_answer(exchange, last, self._host.date_line, out)
        if self._continue_due and not pending and not last:
            self._continue_due = False
            out.append(_CONTINUE)
        if len(out) == 1:
            transport.write(out[0])
        elif out:
            transport.writelines(out)
        if last:
            self._shut(transport)
        elif not pending and not self._partial:
            self._since_s = self._time()
        if self._waiting and not (self._advance_due or last or self._writes_paused_since_s or self._room() < 1):
            self._advance_due = True
            asyncio.get_running_loop().call_soon(self._advance)
        if self._reads_paused:
            self._pace()

    # Ending

    def _refuse(self, error: SalverError) -> None:
        """Answer with an error, after the answers that come first, and listen no more."""
        exchange = Exchange(self, b"", self._target, NO_MATCH, {}, b"", self._time())
        exchange.close = True
        self._deaf = True
        self._partial = False
        self._continue_due = False
        self._body.clear()
        self._pending.append(exchange)
        exchange.fail(error)

    def _refuse_head(self) -> None:
        self._host.limit_hit("max_header_bytes")
        limit = self._limits.max_header_bytes
        self._refuse(HttpError(431, f"the request's header fields are larger than {limit} bytes (max_header_bytes)"))

    def _refuse_body(self, size: str) -> None:
        self._host.limit_hit("max_body_bytes")
        limit = self._limits.max_body_bytes
        self._refuse(TooLarge(f"the body has {size}, over the limit of {limit} bytes (max_body_bytes)"))

    def _shut(self, transport: asyncio.Transport) -> None:
        """Say that no more comes, and linger until the client closes too, at most `LINGER_S`."""
        self._deaf = True
        self._closing_since_s = self._time()
        if self._reads_paused:
            self._reads_paused = False
            transport.resume_reading()
        with contextlib.suppress(OSError):  # the client may be gone already
            transport.write_eof()

    def _pace(self) -> None:
        """Read no more from a client that has enough in flight, or does not read its answers."""
        transport = self._transport
        if transport is None or self._closing_since_s:
            return
        stop = len(self._pending) >= MAX_PIPELINED or self._writes_paused_since_s > 0
        if stop != self._reads_paused:
            self._reads_paused = stop
            if stop:
                transport.pause_reading()
            else:
                if not self._pending:
                    self._since_s = self._time()
                transport.resume_reading()

    def check(self, now_s: float) -> None:
        """Cut off a client that idles, stalls or lingers for too long. Called about once a second."""
        patience_s = self._limits.idle_timeout_s
        if self._closing_since_s:
            if now_s - self._closing_since_s > min(LINGER_S, patience_s):
                self.abort()
        elif self._writes_paused_since_s:
            if now_s - self._writes_paused_since_s > patience_s:
                self._host.limit_hit("idle_timeout_s")
                self.abort()
        elif self._partial and not self._reads_paused:
            if now_s - self._since_s > patience_s + self._body_bytes / MIN_BODY_BYTES_S:
                self._host.limit_hit("idle_timeout_s")
                self._refuse(HttpError(408, f"the request did not arrive in time (idle_timeout_s is {patience_s:g})"))
        elif not self._pending and now_s - self._since_s > patience_s:
            self.close()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being read or answered."""
        return not self._pending and not self._partial

    def close(self) -> None:
        """End an idle connection."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()


def _parse_error(error: Any) -> SalverError:
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return HttpError(501, "unknown HTTP method")
    return InvalidArgument(f"malformed HTTP request: {error or type(error).__name__}")
