"""Unary gRPC calls as streams of an HTTP/2 connection
(https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md)."""

from __future__ import annotations

from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Final

from salver.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    SalverError,
    TooLarge,
    Unimplemented,
)
from salver.server.frontends.base import Method
from salver.server.frontends.grpc.call import Call
from salver.server.frontends.grpc.codes import ACCEPTED, CODED_HEADERS, HEADERS, OK, error_trailers
from salver.server.frontends.grpc.messages import CODINGS, PREFIX_BYTES, MessageReader, frame_compressed, frame_message
from salver.server.frontends.grpc.timeouts import parse_timeout
from salver.server.frontends.http.coding import MIN_COMPRESS_BYTES
from salver.server.frontends.http.shared import MIN_BODY_BYTES_S
from salver.server.frontends.lookup import Lookup
from salver.wire.http2 import Data, ErrorCode, Head, Stream, encode_block

if TYPE_CHECKING:
    from salver.server.frontends.http.guard import Guard
    from salver.server.frontends.http2.connection import Http2Connection

MAX_QUEUED_BYTES: Final = 64 << 20
"""Messages of one streaming call that the client does not read; with more the call is cut off."""

"""Requests that are still coming in hold that many times `max_body_bytes` at most, on one connection."""

_COPY_BYTES: Final = 1 << 16

# What stands before a message that is not compressed: the flag is 0, so that flag and length are as one number.
_PREFIXES: Final[Lookup[int, bytes]] = Lookup(lambda size: size.to_bytes(PREFIX_BYTES), 4096)


def _nowhere(call: Call) -> None:
    raise Unimplemented(f"no method '{call.path[:200].decode('latin-1')}' is served here")


_NOWHERE: Final = Method("", _nowhere, "open", streaming=True)


class _UnknownCoding(Unimplemented):
    """Answered with the codings that are known."""


class Plan:
    """What the header list of a call decides; kept with it."""

    __slots__ = (
        "answer_coding",
        "coding",
        "error",
        "is_open",
        "is_plain",
        "max_bytes",
        "metadata",
        "method",
        "path",
        "timeout_s",
    )

    def __init__(self, head: Head, connection: Http2Connection) -> None:
        self.metadata = head.mapping
        self.path = self.metadata[b":path"]
        self.method = connection.methods.get(self.path, _NOWHERE)
        self.is_open = self.method.scope in connection.guard.anonymous
        """Whether everybody may call it, so that callers need not be checked."""
        self.coding = self.metadata.get(b"grpc-encoding", b"identity")
        accepted = {name.strip() for name in self.metadata.get(b"grpc-accept-encoding", b"").split(b",")}
        self.answer_coding = self.coding if self.coding in CODINGS & accepted else b""
        self.timeout_s: float | None = None
        self.error: SalverError | None = None
        """Why the call is refused, whatever its method."""
        try:
            self._check(connection.guard)
        except SalverError as error:
            self.error = error.with_traceback(None)  # kept; its frames must not be
        self.max_bytes = connection.limits.max_body_bytes
        self.is_plain = self.is_open and self.error is None and self.timeout_s is None and not self.method.streaming
        """Whether nothing is to be done when the call opens, but to wait for its message."""

    def only_message(self, data: Data) -> bytes | None:
        """The message of a body that is one, not compressed and not too large; else None."""
        size = len(data) - PREFIX_BYTES
        if 0 <= size <= self.max_bytes and data[:PREFIX_BYTES] == _PREFIXES[size]:
            message = data[PREFIX_BYTES:]
            return message if type(message) is bytes else bytes(message)
        return None

    def _check(self, guard: Guard) -> None:
        host = self.metadata.get(b":authority")
        guard.check_host(host)
        origin = self.metadata.get(b"origin")
        if origin is not None:
            guard.check_origin(origin, host)
        timeout = self.metadata.get(b"grpc-timeout")
        if timeout is not None:
            self.timeout_s = parse_timeout(timeout)
        if self.coding != b"identity" and self.coding not in CODINGS:
            raise _UnknownCoding(
                f"grpc-encoding '{self.coding[:50].decode('latin-1')}' is not known; use identity, gzip or deflate"
            )


class StreamCall(Call, eq=False, kw_only=True):
    """A call and the stream that carries it; its handler gets one message.

    Args:
        connection, stream: which carry it.
        plan: what its header list decides.
        incoming: what came of a message that did not come at once.
        is_begun: whether the headers of the answer were sent.
    """

    connection: Http2Connection
    stream: Stream
    plan: Plan
    incoming: _Incoming | None = None
    is_begun: bool = False

    def open(self) -> None:
        """Refuse the call, or wait for its message."""
        plan = self.plan
        connection = self.connection
        if plan.timeout_s is not None:
            self.deadline_s = monotonic() + plan.timeout_s
        error = plan.error
        if error is None and not plan.is_open:
            try:
                connection.guard.check_access(plan.metadata, plan.method.scope, connection.peer)
            except SalverError as refusal:
                error = refusal
        if error is not None:
            self.fail(error)
        elif self.deadline_s is not None:
            connection.watch(self.deadline_s)

    # The request

    def on_data(self, stream: Stream, data: Data, end: bool) -> None:
        """A piece of the request."""
        if self.code:
            return
        if end and self.incoming is None and (message := self.plan.only_message(data)) is not None:
            self.message = message
            self.started_s = perf_counter()
            self.attempt(self.plan.method.handle, self)
        else:
            self.attempt(partial(self._take, end), data)

    def on_headers(self, stream: Stream, head: Head, end: bool) -> None:
        """Trailers of the request, which mean nothing but its end."""
        self.on_data(stream, b"", True)

    def _take(self, end: bool, data: Data) -> None:
        incoming = self._receive(data)
        reader = incoming.reader
        expected = reader.expected()
        if expected is not None and reader.size > expected:
            raise Unimplemented("the method takes one request message; this call has more")
        if not end:
            return
        message = reader.read()
        if message is None:
            raise incomplete() if reader.size else Unimplemented("the call has no request message")
        self._account(incoming)
        self.message = message
        self.started_s = perf_counter()
        self.plan.method.handle(self)

    def _receive(self, data: Data) -> _Incoming:
        if self.incoming is None:
            self.incoming = _Incoming(self.plan, self.connection)
        incoming = self.incoming
        incoming.reader.feed(data)
        self._account(incoming)
        self.connection.check_intake()
        return incoming

    def _account(self, incoming: _Incoming) -> None:
        """Keep book of what incomplete messages hold."""
        size = incoming.reader.size
        self.connection.hold(size - incoming.held_bytes)
        incoming.held_bytes = size

    def _forget(self) -> None:
        if self.incoming is not None:
            self.connection.hold(-self.incoming.held_bytes)
            self.incoming = None

    def check(self, now_s: float, patience_s: float) -> None:
        """Cut off a client that sends its message too slowly. Called about once a second."""
        if self.started_s or self.code:
            return
        if self.incoming is None:
            self.incoming = _Incoming(self.plan, self.connection)
        if not self.incoming.since_s:
            self.incoming.since_s = now_s
        elif now_s - self.incoming.since_s > patience_s + self.incoming.held_bytes / MIN_BODY_BYTES_S:
            self.connection.limit_hit("idle_timeout_s")
            self.fail(DeadlineExceeded(f"the message did not arrive in time (idle_timeout_s is {patience_s:g})"))

    # The answer

    def respond(self, message: bytes) -> None:
        """As `Call.respond`, in one step."""
        if not self.code:
            self.code = "OK"
            self.cancel = None
            connection = self.connection
            if len(message) < MIN_COMPRESS_BYTES:
                connection.machine.send_answer(self.stream, OK, message)
            else:
                self.put(message)
                connection.machine.send_headers(self.stream, OK.trailers, True)
            connection.wrote()

    def put(self, message: bytes) -> None:
        """Send a message, after the headers where it is the first; compressed where the request was, it is large, and
        the client takes that."""
        machine = self.connection.machine
        coding = self.plan.answer_coding
        if not self.is_begun:
            self.is_begun = True
            machine.send_headers(self.stream, CODED_HEADERS[coding] if coding else OK.headers)
        if coding and len(message) >= MIN_COMPRESS_BYTES:
            machine.send_data(self.stream, frame_compressed(message, coding))
        elif len(message) < _COPY_BYTES:
            machine.send_data(self.stream, frame_message(message))
        else:
            machine.send_data(self.stream, b"\x00" + len(message).to_bytes(4))
            machine.send_data(self.stream, message)
        if self.stream.queued_bytes > MAX_QUEUED_BYTES and not self.code:
            self.connection.limit_hit("queued_bytes")
            machine.reset(self.stream, ErrorCode.ENHANCE_YOUR_CALM)
            self.on_reset(self.stream, ErrorCode.ENHANCE_YOUR_CALM, "")

    def end(self, error: SalverError | None) -> None:
        """Send the status."""
        self._forget()
        block = OK.trailers if self.is_begun else OK.headers + OK.trailers  # no message: one header list is all
        if error is not None:
            if isinstance(error, TooLarge) and error.limit:
                self.connection.limit_hit(error.limit)
            trailers = error_trailers(error)
            if isinstance(error, _UnknownCoding):
                trailers.append(ACCEPTED)
            block = encode_block(trailers if self.is_begun else [*HEADERS, *trailers])
        self.connection.machine.send_headers(self.stream, block, True)

    # Ends

    def expire(self) -> None:
        """The deadline passed."""
        cancel, self.cancel = self.cancel, None
        if cancel is not None:
            cancel()
        self.fail(
            DeadlineExceeded("the deadline that the client set (grpc-timeout) passed before the answer was there")
        )

    def on_reset(self, stream: Stream, error: int, message: str) -> None:
        """The client went away."""
        self._forget()
        if not self.code:
            self.code = Cancelled.code.value
            cancel, self.cancel = self.cancel, None
            if cancel is not None:
                cancel()

    def on_sent(self, stream: Stream) -> None:
        """Nothing waits for it."""


class _Incoming:
    """A message while it is coming in, for the calls whose message does not come in one piece."""

    __slots__ = ("held_bytes", "reader", "since_s")

    def __init__(self, plan: Plan, connection: Http2Connection) -> None:
        limits = connection.limits
        self.reader = MessageReader(plan.coding, limits.max_body_bytes, limits.max_decompressed_bytes)
        self.held_bytes = 0
        self.since_s = 0.0


def incomplete() -> SalverError:
    """The request ended too early."""
    return InvalidArgument("the request ends within a message")
