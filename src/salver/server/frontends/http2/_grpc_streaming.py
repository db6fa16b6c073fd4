"""gRPC calls with any number of messages either way, and what keeps client and handler from outrunning each other."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from salver.core.errors import SalverError
from salver.server.frontends.grpc.messages import MessageReader
from salver.server.frontends.http2._grpc import Plan, StreamCall, incomplete
from salver.wire.http2 import Data, Stream

if TYPE_CHECKING:
    from salver.server.frontends.http2.connection import Http2Connection

MAX_UNANSWERED: Final = 64
"""Messages that are with the handler and not answered; more are not read."""

_FULL_BYTES: Final = 1 << 20


class StreamingCall(StreamCall):
    """A call whose handler is there before its messages.

    No more messages are read while `MAX_UNANSWERED` of them wait for an answer (each is expected to get at least one),
    or while the client leaves much of the answers unread; then it gets no window either.
    """

    __slots__ = ("_is_advancing", "_is_ended", "_unanswered")

    def __init__(self, connection: Http2Connection, stream: Stream, plan: Plan) -> None:
        super().__init__(connection, stream, plan)
        self._unanswered = 0
        self._is_ended = False
        self._is_advancing = False

    def open(self) -> None:
        """Refuse the call, or hand it to its handler."""
        super().open()
        if not self.code:
            self.started_s = perf_counter()
            self.attempt(self._plan.method.handle, self)

    def on_data(self, stream: Stream, data: Data, end: bool) -> None:
        """A piece of the request."""
        if not self.code:
            self._is_ended = end
            self.attempt(self._feed, data)

    def fail(self, error: SalverError) -> None:
        """As `Call.fail`; and earlier messages are given up, whose answers nobody will get."""
        cancel, self.cancel = self.cancel, None
        super().fail(error)
        if cancel is not None:
            cancel()

    def on_sent(self, stream: Stream) -> None:
        """The client reads again."""
        self._go_on()

    def put(self, message: bytes) -> None:
        """As `StreamCall.put`; then the handler may have another message."""
        super().put(message)
        self._unanswered = max(0, self._unanswered - 1)
        self._go_on()

    def _go_on(self) -> None:
        if self.stream.held and not self._is_advancing and not self.code and self._incoming is not None:
            self.attempt(self._advance, self._incoming.reader)

    def _feed(self, data: Data) -> None:
        self._advance(self._receive(data).reader)

    def _advance(self, reader: MessageReader) -> None:
        """Give the messages that are there to the handler, as far as it, and the client, keep up."""
        self._is_advancing = True
        while not self.code:
            if self._unanswered >= MAX_UNANSWERED or self.stream.queued_bytes > _FULL_BYTES:
                self.stream.held = True
                break
            message = reader.read()
            if self._incoming is not None:
                self._account(self._incoming)
            if message is None:
                self._caught_up(reader)
                break
            self._unanswered += 1
            if self.on_message is not None:
                self.on_message(message)
        self._is_advancing = False

    def _caught_up(self, reader: MessageReader) -> None:
        if self.stream.held:
            self._connection.machine.release(self.stream)
            self._connection.wrote()
        if self._is_ended:
            if reader.size:
                raise incomplete()
            on_end, self.on_end = self.on_end, None
            if on_end is not None:
                on_end()
