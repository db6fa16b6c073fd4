"""gRPC calls with any number of messages either way, and what keeps client and handler from outrunning each other."""

from __future__ import annotations

from time import perf_counter
from typing import Final

from salver.core.errors import SalverError
from salver.server.frontends.grpc.messages import MessageReader
from salver.server.frontends.http2._grpc import StreamCall, incomplete
from salver.wire.http2 import Data, Stream

MAX_UNANSWERED: Final = 64
"""Messages that are with the handler and not answered; more are not read."""

_FULL_BYTES: Final = 1 << 20


class StreamingCall(StreamCall, eq=False):
    """A call whose handler is there before its messages.

    No more messages are read while `MAX_UNANSWERED` of them wait for an answer (each is expected to get at least one),
    or while the client leaves much of the answers unread; then it gets no window either.
    """

    unanswered: int = 0
    is_ended: bool = False
    is_advancing: bool = False

    def open(self) -> None:
        """Refuse the call, or hand it to its handler."""
        super().open()
        if not self.code:
            self.started_s = perf_counter()
            self.attempt(self.plan.method.handle, self)

    def on_data(self, stream: Stream, data: Data, end: bool) -> None:
        """A piece of the request."""
        if not self.code:
            self.is_ended = end
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
        self.unanswered = max(0, self.unanswered - 1)
        self._go_on()

    def _go_on(self) -> None:
        if self.stream.held and not self.is_advancing and not self.code and self.incoming is not None:
            self.attempt(self._advance, self.incoming.reader)

    def _feed(self, data: Data) -> None:
        self._advance(self._receive(data).reader)

    def _advance(self, reader: MessageReader) -> None:
        """Give the messages that are there to the handler, as far as it, and the client, keep up."""
        self.is_advancing = True
        while not self.code:
            if self.unanswered >= MAX_UNANSWERED or self.stream.queued_bytes > _FULL_BYTES:
                self.stream.held = True
                break
            message = reader.read()
            if self.incoming is not None:
                self._account(self.incoming)
            if message is None:
                self._caught_up(reader)
                break
            self.unanswered += 1
            if self.on_message is not None:
                self.on_message(message)
        self.is_advancing = False

    def _caught_up(self, reader: MessageReader) -> None:
        if self.stream.held:
            self.connection.machine.release(self.stream)
            self.connection.wrote()
        if self.is_ended:
            if reader.size:
                raise incomplete()
            on_end, self.on_end = self.on_end, None
            if on_end is not None:
                on_end()
