"""HTTP exchanges as streams of an HTTP/2 connection (RFC 9113, 8)."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from salver.core.errors import ResourceExhausted, SalverError, TooLarge
from salver.server.frontends.access import Peer
from salver.server.frontends.codes import HttpError
from salver.server.frontends.http.admission import admit, check_caller, check_method
from salver.server.frontends.http.answers import answer_options, compress_body
from salver.server.frontends.http.coding import decompress
from salver.server.frontends.http.exchange import NO_MATCH, Exchange, Match
from salver.server.frontends.http.headers import KNOWN
from salver.server.frontends.http.shared import MIN_BODY_BYTES_S
from salver.wire.http2 import Data, ErrorCode, Head, Pieces, Stream, encode_block

if TYPE_CHECKING:
    from salver.server.frontends.http2.connection import Http2Connection

MAX_QUEUED_BYTES: Final = 64 << 20
"""Of a streamed answer that the client does not read; with more the stream is cut off."""

_MAX_CACHED: Final = 256
_CONTINUE: Final = encode_block([(b":status", b"100")])
_LENGTHS: Final = b"\x0f\x0d"  # content-length, literal, not indexed


class Plan:
    """What the header list of a request decides; kept with it.

    Args:
        error: why it is refused, whatever its body.
    """

    __slots__ = ("error", "extra", "fields", "match", "method", "target")

    def __init__(self, head: Head, connection: Http2Connection) -> None:
        fields = head.mapping
        self.method = fields[b":method"]
        self.target = fields[b":path"]
        self.fields = {name: value for name, value in fields.items() if name in KNOWN}
        self.match: Match = NO_MATCH
        self.extra = b""
        self.error: SalverError | None = None
        host = fields.get(b":authority") or fields.get(b"host")
        if host is not None:
            self.fields[b"host"] = host
        try:
            if self.target in connection.methods:
                raise HttpError(415, "this is a gRPC method: call it with content-type application/grpc")
            self.match, self.extra = admit(connection.router, connection.guard, self.target, host, self.fields)
            check_method(self.match, self.method, self.target)
        except SalverError as error:
            self.error = error.with_traceback(None)  # kept; its frames must not be


class HttpStream:
    """One exchange and the stream that carries it."""

    __slots__ = ("_connection", "_opened_s", "_plan", "_stream", "body", "exchange", "peer")

    def __init__(self, connection: Http2Connection, stream: Stream, plan: Plan) -> None:
        self.peer: Peer = connection.peer
        self.body = Pieces()
        self.exchange: Exchange | None = None
        self._opened_s = connection.time()
        self._connection = connection
        self._stream = stream
        self._plan = plan

    def open(self, end: bool) -> None:
        """Refuse the request, answer it, or wait for its body."""
        plan = self._plan
        if plan.error is not None:
            self.refuse(plan.error)
            return
        limit = self._connection.limits.max_body_bytes
        try:
            check_caller(self._connection.guard, plan.match, plan.method, plan.fields, self.peer)
            if self._stream.expected > limit:
                raise TooLarge(
                    f"the body has {self._stream.expected} bytes, over the limit of {limit} bytes (max_body_bytes)",
                    limit="max_body_bytes",
                )
        except SalverError as error:
            self.refuse(error)
            return
        if end:
            self._run(b"")
        elif plan.fields.get(b"expect", b"").lower() == b"100-continue":
            self._connection.machine.send_headers(self._stream, _CONTINUE)

    def refuse(self, error: SalverError) -> None:
        """Answer with an error, whether the request is complete or not."""
        self._drop()
        self._exchange(b"").fail(error)

    def _drop(self) -> None:
        self._connection.hold(-self.body.size)
        self.body = Pieces()

    def _exchange(self, body: bytes) -> Exchange:
        plan = self._plan
        now_s = perf_counter()
        self.exchange = Exchange(self, plan.method, plan.target, plan.match, plan.fields, body, now_s, plan.extra)
        return self.exchange

    # The request

    def on_data(self, stream: Stream, data: Data, end: bool) -> None:
        """A piece of the body."""
        if self.exchange is not None:
            return
        self.body.add(data)
        connection = self._connection
        connection.hold(len(data))
        limit = connection.limits.max_body_bytes
        if self.body.size > limit:
            self.refuse(
                TooLarge(f"the body is over the limit of {limit} bytes (max_body_bytes)", limit="max_body_bytes")
            )
        elif end:
            connection.hold(-self.body.size)
            self._run(self.body.take(self.body.size))
        else:
            try:
                connection.check_intake()
            except ResourceExhausted as error:
                self.refuse(error)

    def check(self, now_s: float, patience_s: float) -> None:
        """Cut off a client that sends its body too slowly. Called about once a second."""
        if self.exchange is None and now_s - self._opened_s > patience_s + self.body.size / MIN_BODY_BYTES_S:
            self._connection.limit_hit("idle_timeout_s")
            self.refuse(HttpError(408, f"the request did not arrive in time (idle_timeout_s is {patience_s:g})"))

    def on_headers(self, stream: Stream, head: Head, end: bool) -> None:
        """Trailers, which mean nothing but the end."""
        self.on_data(stream, b"", True)

    def _run(self, body: bytes) -> None:
        exchange = self._exchange(body)
        exchange.attempt(self._handle, exchange)

    def _handle(self, exchange: Exchange) -> None:
        coding = exchange.fields.get(b"content-encoding")
        if coding is not None:
            exchange.body = decompress(exchange.body, coding, self._connection.limits.max_decompressed_bytes)
        handler = exchange.match.handlers.get(exchange.method)
        if handler is not None:
            handler(exchange)
        else:
            answer_options(exchange)

    # The answer

    def limit_hit(self, name: str) -> None:
        """A limit refused the request."""
        self._connection.limit_hit(name)

    def answered(self, exchange: Exchange) -> None:
        """The exchange has its answer, or more of it."""
        machine, stream = self._connection.machine, self._stream
        if exchange.chunks is None:
            self._write_whole(exchange)
        else:
            chunks, exchange.chunks = exchange.chunks, []
            is_full = stream.queued_bytes > MAX_QUEUED_BYTES  # before these
            if not exchange.is_begun:
                exchange.is_begun = True
                machine.send_headers(stream, self._block(exchange, b""), exchange.method == b"HEAD")
            for chunk in chunks:
                machine.send_data(stream, chunk, not chunk)
            if is_full:
                self._connection.limit_hit("queued_bytes")
                machine.reset(stream, ErrorCode.ENHANCE_YOUR_CALM)
                self.on_reset(stream, 0, "")
        self._connection.wrote()

    def cut(self, exchange: Exchange) -> None:
        """End the stream without the end of the answer."""
        self._connection.machine.reset(self._stream, ErrorCode.INTERNAL_ERROR)
        self._connection.wrote()

    def _write_whole(self, exchange: Exchange) -> None:
        machine, stream = self._connection.machine, self._stream
        pieces, size, coded = compress_body(exchange)
        if exchange.status == 204:
            machine.send_headers(stream, self._block(exchange, coded), True)
            return
        length = b"%d" % size
        block = self._block(exchange, coded) + _LENGTHS + bytes((len(length),)) + length
        if exchange.method == b"HEAD" or not size:
            machine.send_headers(stream, block, True)
            return
        machine.send_headers(stream, block)
        for at, piece in enumerate(pieces, 1):
            machine.send_data(stream, piece, at == len(pieces))

    def _block(self, exchange: Exchange, coded: bytes) -> bytes:
        fields = exchange.answer[0] if exchange.answer is not None else b""
        blocks = self._connection.blocks
        status = encode_block([(b":status", b"%d" % exchange.status)])
        return status + blocks.of(self._connection.date_line) + blocks.of(fields + exchange.extra + coded)

    # Ends

    def on_reset(self, stream: Stream, error: int, message: str) -> None:
        """The client went away."""
        self._drop()
        exchange = self.exchange
        if exchange is not None and exchange.cancel is not None:
            cancel, exchange.cancel = exchange.cancel, None
            cancel()

    def on_sent(self, stream: Stream) -> None:
        """Nothing waits for it."""


class Blocks:
    """Header lines as HTTP/1.1 has them -> header block, for the lines that come again and again."""

    def __init__(self) -> None:
        self._seen: dict[bytes, bytes] = {}

    def of(self, lines: bytes) -> bytes:
        """The block of lines that each end with CRLF."""
        block = self._seen.get(lines)
        if block is None:
            pairs = (line.partition(b": ") for line in lines.split(b"\r\n") if line)
            block = encode_block((name.lower(), value) for name, _, value in pairs)
            if len(self._seen) >= _MAX_CACHED:
                self._seen.clear()
            self._seen[lines] = block
        return block
