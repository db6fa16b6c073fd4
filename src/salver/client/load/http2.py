"""gRPC as a load generator speaks it: many calls in flight on a connection, all frames of one turn in one write.

Loaded only for gRPC.
"""

from __future__ import annotations

from typing import Any, Final, cast

from salver.client.http2 import call_block
from salver.client.load.link import Call, Link, Verdict
from salver.client.load.plan import CUT_OFF, OK
from salver.wire.grpc import GRPC_STATUS
from salver.wire.http2 import Bounds, Connection, Data, ErrorCode, Head, Stream

_BOUNDS: Final = Bounds(window_bytes=64 << 20, stream_window_bytes=16 << 20)
_MAX_CALLS: Final = 1 << 30  # numbers of streams run out at 2^31
_MAX_BLOCKS: Final = 256
_MAX_AT_ONCE: Final = 1 << 16
_NAMES: Final = {number: code.value for code, number in GRPC_STATUS.items()}
_PREFIX_BYTES: Final = 5


class _Running:
    """One call: a `salver.wire.http2.Receiver`."""

    __slots__ = ("call", "head", "link", "parts")

    def __init__(self, link: GrpcLink, call: Call) -> None:
        self.link = link
        self.call = call
        self.parts: list[bytes] | None = None
        self.head: Head | None = None

    def on_headers(self, stream: Stream, head: Head, end: bool) -> None:
        if end:
            self.link.finish(self, stream, head)
        else:
            self.head = head

    def on_data(self, stream: Stream, data: Data, end: bool) -> None:
        if self.link.keeps_bodies:
            if self.parts is None:
                self.parts = []
            self.parts.append(bytes(data))
        if end:
            self.link.finish(self, stream, self.head)

    def on_reset(self, stream: Stream, error: int, message: str) -> None:
        self.link.reset(self, stream, error)

    def on_sent(self, stream: Stream) -> None:
        """Nothing waits for it."""


class GrpcLink(Link):
    """A connection of gRPC."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._connection = Connection(_BOUNDS)
        self._blocks: dict[tuple[str, tuple[tuple[str, str], ...]], bytes] = {}
        self._waiting: list[Call] = []
        self._running: dict[int, _Running] = {}
        self._count = 0
        self.keeps_bodies = self._owner.keeps_bodies

    @property
    def room(self) -> int:
        connection = self._connection
        if self.is_gone or connection.fault or connection.goaway or self._count >= _MAX_CALLS:
            return 0
        # A stream is open until its receiver has heard of its end: `_running` may be ahead of the connection.
        return max(0, min(connection.max_streams, _MAX_AT_ONCE) - len(connection.streams) - len(self._waiting))

    @property
    def calls(self) -> int:
        return len(self._running) + len(self._waiting)

    def start(self, call: Call) -> None:
        if not self.is_ready:
            self._waiting.append(call)
            return
        request = call.request
        key = (request.path, request.fields)
        block = self._blocks.get(key) or self._encode(key)
        running = _Running(self, call)
        connection = self._connection
        stream = connection.request(block, running, end=False)
        self._running[stream.id] = running
        self._count += 1
        connection.send_data(stream, request.data, end=True)

    def _encode(self, key: tuple[str, tuple[tuple[str, str], ...]]) -> bytes:
        if len(self._blocks) >= _MAX_BLOCKS:
            self._blocks.clear()
        path, fields = key
        block = self._blocks[key] = call_block(self._endpoint, path, b"salver-bench", fields)
        return block

    def flush(self) -> None:
        out = self._connection.out
        if out and self.is_open:
            data = b"".join(out) if len(out) > 1 else bytes(out[0])
            out.clear()
            if not self._write(data):
                self._lose(True)
            elif self._unsent is not None:
                self._connection.pause()

    def _write_on(self) -> None:
        super()._write_on()
        if self._unsent is None and not self.is_gone:
            self._connection.resume()

    def give_up(self, before_s: float) -> list[Call]:
        lost = [call for call in self._waiting if call.due_s <= before_s]
        self._waiting = [call for call in self._waiting if call.due_s > before_s]
        for number, running in list(self._running.items()):
            if running.call.due_s > before_s:
                break  # they are in the order in which they were sent
            stream = self._connection.streams.get(number)
            del self._running[number]
            if stream is not None:
                stream.receiver = None
                self._connection.reset(stream)
            lost.append(running.call)
        return lost

    def _opened(self) -> None:
        self.flush()

    def _begin(self) -> None:
        """The server has said how many streams it takes, which is what it says first."""
        self._announce()
        waiting, self._waiting = self._waiting, []
        for call in waiting[self.room :]:
            self._owner.on_unsent(call)
        for call in waiting[: self.room]:
            self.start(call)

    def _take(self, data: bytes) -> None:
        connection = self._connection
        connection.receive(data)
        connection.replenish()
        if connection.fault is None and not self.is_ready:
            self._begin()
        if connection.fault is not None:
            self.flush()
            self._lose(True)
        elif connection.goaway is not None and not self._running:
            self._lose(True)

    def _ended(self, sent: bool) -> None:
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            self._owner.on_unsent(call)
        self._connection.close()

    def finish(self, running: _Running, stream: Stream, head: Head | None) -> None:
        """A call was answered."""
        del self._running[stream.id]
        verdict = _OK if head is not None and head.mapping.get(b"grpc-status") == b"0" else _verdict(running, head)
        if verdict.ok and self.keeps_bodies:
            verdict = verdict._replace(fields=dict(running.head.mapping) if running.head else {})
        body = b"".join(running.parts or ())[_PREFIX_BYTES:] if self.keeps_bodies else b""
        self._owner.on_end(self, running.call, verdict, body)

    def reset(self, running: _Running, stream: Stream, error: int) -> None:
        """A call was cut off, or refused before it was looked at (RFC 9113, 8.7)."""
        if self._running.pop(stream.id, None) is None:
            return
        if error == ErrorCode.REFUSED_STREAM:
            self._owner.on_unsent(running.call)
        else:
            self._owner.on_end(self, running.call, _CUT_OFF, b"")


_OK: Final = Verdict(OK, True, 0, {}, None)
_CUT_OFF: Final = Verdict(CUT_OFF, False, 14, {}, None)


def _verdict(running: _Running, trailers: Head | None) -> Verdict:
    fields = dict(running.head.mapping) if running.head else {}
    if trailers is not None:
        fields |= trailers.mapping
    status = fields.get(b"grpc-status", b"")
    if not status.isdigit():
        http = fields.get(b":status", b"?").decode("latin-1")
        return Verdict(f"HTTP {http} without grpc-status", False, 2, fields, None)
    number = int(status)
    pushback = fields.get(b"grpc-retry-pushback-ms", b"")
    after_s = float(pushback) / 1000 if pushback.isdigit() else None
    if not number:
        return Verdict(OK, True, 0, fields, None)
    return Verdict(_NAMES.get(number, f"gRPC {number}"), False, number, fields, after_s)


def make_link(*args: Any) -> Link:
    """A `GrpcLink`, for whom this file is loaded on demand."""
    return cast(Link, GrpcLink(*args))
