"""One HTTP/2 connection as a state machine (RFC 9113): bytes in, calls to receivers, bytes out. No socket, no clock."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from salver.core.errors import Unavailable
from salver.wire.http2 import frames
from salver.wire.http2._hpack import HeaderDecoder
from salver.wire.http2.frames import (
    ACK,
    BEFORE_ID,
    END_STREAM,
    HEAD_BYTES,
    MAX_WINDOW,
    PADDED,
    PREFACE,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    goaway_frame,
    reset_frame,
    unpad,
    window_frame,
)
from salver.wire.http2.headers import REQUEST, RESPONSE, TRAILERS, Head
from salver.wire.http2.reader import FrameReader
from salver.wire.http2.sender import Envelope, Sender
from salver.wire.http2.settings import (
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    Bounds,
    parse_settings,
    settings_frame,
)
from salver.wire.http2.stream import Data, Receiver, Stream

Open = Callable[[Stream, Head, bytes | None], None]
"""A server's: a request began; sets the stream's receiver. Its body, where all of it is there, else None."""

MAX_QUEUED_BYTES: Final = 64 << 20
"""Of answers that the peer gives no window for; with more, new streams are refused."""

_DRAIN_PING: Final = b"draining"
_NOT_SMALL_DATA: Final = ~(0xFFF << 8)
"""Bits of a frame's first word that DATA of less than 4 KiB does not have."""


@lru_cache(256)
def _unpack_request(length: int) -> Callable[[bytes, int], tuple[bytes, int, bytes, int, int, int]]:
    """Reads the heads of HEADERS, ``length`` bytes, and of the frame behind them. Streams with the reserved bit set are
    negative."""
    return struct.Struct(f">{BEFORE_ID}si{length}sIBi").unpack_from


class Connection(FrameReader):
    """Either side of a connection.

    Bytes to be written collect in `out`; the owner takes them after `receive` and after it has sent something. When
    `fault` is set the peer has broken the protocol: what is in `out`, GOAWAY at its end, is written and the connection
    closed.

    Args:
        bounds: what the peer may do.
        open: a server's handler of new streams; None for a client.
    """

    def __init__(self, bounds: Bounds, open: Open | None = None) -> None:
        super().__init__(bounds, open is not None)
        self.sender = Sender()
        self.streams: dict[int, Stream] = {}
        self.fault: ConnectionFault | None = None
        self.goaway: tuple[int, int] | None = None
        """Last stream and error code of the peer's GOAWAY."""
        self.max_streams = 1 << 31
        """Streams that the peer lets this side open."""
        self.out: list[Data] = self.sender.out
        """What is to be written; the owner clears it."""
        self._open = open
        self._decoder = HeaderDecoder(bounds.max_header_bytes)
        self._seen = self._decoder.seen
        self._owed = 0  # bytes that came and were not given back as window
        self._last_id = 0
        self._next_id = 1
        self._drain_step = 0
        if open is None:
            self.out.append(PREFACE)
        self.out.append(settings_frame(bounds, open is None))
        self.out.append(window_frame(0, bounds.window_bytes - frames.DEFAULT_WINDOW))

    # What the peer sends

    def receive(self, data: bytes) -> None:
        """Take what came. A fault of the peer ends the connection; see `fault`."""
        if self.fault is None:
            try:
                self._read(data)
            except ConnectionFault as fault:
                self.fault = fault
                self.out.append(goaway_frame(self._last_id, fault.error, fault.message))
                self.close(fault.message)

    def _on_data(self, stream_id: int, flags: int, payload: Data) -> None:
        stream = self._account(stream_id, len(payload))
        if flags == END_STREAM:  # the only frame of most requests
            if stream is not None:
                self._deliver(stream, payload, True)
            return
        if flags & PADDED:
            payload = unpad(flags, bytes(payload))
        end = flags & END_STREAM != 0
        if not payload and not end:
            self.floods.count_idle()
        elif stream is not None:
            self._deliver(stream, payload, end)

    def _account(self, stream_id: int, length: int) -> Stream | None:
        bounds = self.bounds
        self._owed += length
        if self._owed * 2 > bounds.window_bytes:
            if self._owed > bounds.window_bytes:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
            self.out.append(window_frame(0, self._owed))
            self._owed = 0
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id, "DATA")
            self.floods.count_idle()
            return None
        if not stream.is_remote_open:
            self._end_stream(stream, StreamFault(ErrorCode.STREAM_CLOSED, "DATA after the stream's end"))
            return None
        stream.owed += length
        if stream.owed * 2 > bounds.stream_window_bytes:
            if stream.owed > bounds.stream_window_bytes:
                fault = StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
                self._end_stream(stream, fault)
                return None
            if not stream.held:
                self.release(stream)
        return stream

    def _deliver(self, stream: Stream, data: Data, end: bool) -> None:
        if stream.expected >= 0:
            stream.expected -= len(data)
            if stream.expected < 0 or (end and stream.expected):
                fault = StreamFault(ErrorCode.PROTOCOL_ERROR, "the body is not as long as content-length says")
                self._end_stream(stream, fault)
                return
        self.floods.useful += 1
        if end:
            stream.is_remote_open = False
        if stream.receiver is not None:
            stream.receiver.on_data(stream, data, end)
        if end and not stream.is_local_open:
            self._finish(stream)

    def release(self, stream: Stream) -> None:
        """Let the peer send on again, after ``stream.held`` was set."""
        stream.held = False
        if stream.owed and stream.is_remote_open and stream.id in self.streams:
            self.out.append(window_frame(stream.id, stream.owed))
            stream.owed = 0

    def _on_requests(self, data: bytes, at: int, length: int) -> int:
        sender, streams, seen, open = self.sender, self.streams, self._seen, self._open
        if open is None or self._drain_step == 2:
            return at
        lead = data[at : at + BEFORE_ID]
        unpack = _unpack_request(length)
        heads_bytes = length + 2 * HEAD_BYTES
        size = len(data)
        owed, may_owe = self._owed, self.bounds.window_bytes // 2
        most = self.bounds.max_streams
        taken = 0
        # What is not as usual, breaks a rule or is at a limit is left to the ways that know all cases.
        while (start := at + heads_bytes) <= size and len(streams) < most:
            begin, stream_id, block, word, flags, same_id = unpack(data, at)
            end = start + (word >> 8)
            due = owed + (word >> 8)
            head = seen.get(block)
            if (
                head is None
                or not head.is_plain
                or stream_id <= self._last_id
                or stream_id != same_id
                or flags != END_STREAM
                or word & _NOT_SMALL_DATA
                or end > size
                or begin != lead
                or not stream_id & 1
                or due > may_owe
                or sender.queued_bytes > MAX_QUEUED_BYTES
            ):
                break
            self._last_id = stream_id
            owed = due
            streams[stream_id] = stream = Stream(stream_id, sender.initial_window, -1, False)
            taken += 2
            open(stream, head, data[start:end])
            at = end
        self._owed = owed
        self.floods.useful += taken
        return at

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        head = self._seen.get(block)
        if head is None:
            try:
                head = self._decoder.decode(block)
            except ConnectionFault as fault:
                if fault.error is ErrorCode.ENHANCE_YOUR_CALM:
                    self.floods.refuse("max_header_bytes")
                raise
        stream = self.streams.get(stream_id)
        if stream is None:
            self._begin(stream_id, head, flags & END_STREAM != 0)
            return
        try:
            self._more_headers(stream, head, flags & END_STREAM != 0)
        except StreamFault as fault:
            self._end_stream(stream, fault)

    def _begin(self, stream_id: int, head: Head, end: bool) -> None:
        if stream_id <= self._last_id or self._open is None or stream_id & 1 == 0:
            self._check_known(stream_id, "HEADERS")
            self.floods.count_idle()
            return
        self._last_id = stream_id
        self.floods.useful += 1
        if self._drain_step == 2:
            return
        try:
            if head.kind != REQUEST:
                head.check(REQUEST)
            if len(self.streams) >= self.bounds.max_streams:
                self.floods.refuse("max_streams")
                raise StreamFault(ErrorCode.REFUSED_STREAM, "as many streams are open as may be")
            if self.sender.queued_bytes > MAX_QUEUED_BYTES:
                self.floods.refuse("queued_bytes")
                raise StreamFault(ErrorCode.REFUSED_STREAM, "too much waits for the peer's windows")
            if end and head.length > 0:
                raise StreamFault(ErrorCode.PROTOCOL_ERROR, "the body is shorter than content-length says")
        except StreamFault as fault:
            self.out.append(reset_frame(stream_id, fault.error))
            return
        stream = Stream(stream_id, self.sender.initial_window, head.length, not end)
        self.streams[stream_id] = stream
        self._open(stream, head, b"" if end else None)

    def _more_headers(self, stream: Stream, head: Head, end: bool) -> None:
        if not stream.is_remote_open:
            raise StreamFault(ErrorCode.STREAM_CLOSED, "HEADERS after the stream's end")
        if self._open is not None:
            if not end:
                raise StreamFault(ErrorCode.PROTOCOL_ERROR, "trailers that do not end the stream")
            if stream.expected > 0:
                raise StreamFault(ErrorCode.PROTOCOL_ERROR, "the body is shorter than content-length says")
        head.check(RESPONSE if b":status" in head.mapping else TRAILERS)
        if end:
            stream.is_remote_open = False
        if stream.receiver is not None:
            stream.receiver.on_headers(stream, head, end)
        if end and not stream.is_local_open:
            self._finish(stream)

    def _on_window(self, stream_id: int, increment: int) -> None:
        self.floods.count_idle()
        sender = self.sender
        steps = sender.steps
        if not stream_id:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            sender.widen(increment)
        else:
            stream = self.streams.get(stream_id)
            if stream is None:
                self._check_known(stream_id, "WINDOW_UPDATE")
                return
            stream.send_window += increment
            if not increment or stream.send_window > MAX_WINDOW:
                error = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
                self._end_stream(stream, StreamFault(error, f"WINDOW_UPDATE of {increment}"))
                return
            if stream.queue is not None:
                sender.pump_stream(stream)
        self.floods.useful += sender.steps - steps  # DATA that waited for it
        if sender.sent:
            self._tell_sent()

    def _on_control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == frames.RST_STREAM:
            self._on_reset(stream_id, payload)
            return
        if kind == frames.PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")
        self.floods.count_idle()
        if kind in _OF_CONNECTION:
            if stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a frame of type {kind} on a stream")
            _OF_CONNECTION[kind](self, flags, payload)
        elif kind == frames.PRIORITY:
            self._on_priority(stream_id, payload)

    def _on_priority(self, stream_id: int, payload: bytes) -> None:
        """Deprecated, and ignored but for its form."""
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            message = f"PRIORITY of {len(payload)} bytes"
            stream = self.streams.get(stream_id)
            if stream is None:  # it may be idle, and no RST_STREAM may name it then (RFC 9113, 5.1)
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, message)
            self._end_stream(stream, StreamFault(ErrorCode.FRAME_SIZE_ERROR, message))

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"RST_STREAM of {len(payload)} bytes")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id, "RST_STREAM")
            self.floods.count_idle()
            return
        if self._open is not None:
            self.floods.count_reset()
        self._lose(stream, int.from_bytes(payload), "reset by the peer")

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a SETTINGS acknowledgment with a payload")
            return
        for number, value in parse_settings(payload):
            if number == INITIAL_WINDOW_SIZE:
                self.sender.change_initial_window(value, self.streams.values())
            elif number == MAX_FRAME_SIZE:
                self.sender.max_frame_bytes = value
            elif number == MAX_CONCURRENT_STREAMS:
                self.max_streams = value
        self.out.append(frames.frame(frames.SETTINGS, ACK, 0, b""))
        self._tell_sent()

    def _on_ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"PING of {len(payload)} bytes")
        if not flags & ACK:
            self.out.append(frames.frame(frames.PING, ACK, 0, payload))
        elif payload == _DRAIN_PING and self._drain_step == 1:
            self.finish_drain()

    def _on_goaway(self, flags: int, payload: bytes) -> None:
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
        last, error = int.from_bytes(payload[:4]) & MAX_WINDOW, int.from_bytes(payload[4:8])
        self.goaway = (last, error)
        if self._open is None:
            for stream in [s for s in self.streams.values() if s.id > last]:
                self._lose(stream, ErrorCode.REFUSED_STREAM, "the server is going away")

    def _check_known(self, stream_id: int, what: str) -> None:
        """Refuse frames on streams that were never opened; those of streams that are gone are ignored, as the peer may
        have sent them before it knew."""
        last = self._last_id if self._open is not None else self._next_id - 2
        if stream_id > last or stream_id & 1 == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which is not open")

    # Ends

    @property
    def last_id(self) -> int:
        """Of the last stream that the peer opened; 0 before the first."""
        return self._last_id

    @property
    def is_draining(self) -> bool:
        """Whether the peer was asked to open no more streams."""
        return self._drain_step > 0

    @property
    def is_drained(self) -> bool:
        """Whether it knows, and which stream was the last."""
        return self._drain_step > 1

    def replenish(self) -> None:
        """Forgive what counts against the bounds on floods; called about once a second."""
        self.floods.replenish()

    def close(self, message: str = "the connection is gone") -> None:
        """Tell all receivers that their streams are gone."""
        for stream in list(self.streams.values()):
            self._lose(stream, ErrorCode.CANCEL, message)
        self._rest = b""
        self._body = None
        if self._open is not None:
            self._open = _nobody  # the owner, which knows this: neither would be freed before garbage is collected

    def _lose(self, stream: Stream, error: int, message: str) -> None:
        self.streams.pop(stream.id, None)
        self.sender.forget(stream)
        stream.is_remote_open = False
        receiver, stream.receiver = stream.receiver, None
        if receiver is not None:
            receiver.on_reset(stream, error, message)

    def _end_stream(self, stream: Stream, fault: StreamFault) -> None:
        self.out.append(reset_frame(stream.id, fault.error))
        self._lose(stream, fault.error, fault.message)

    def _tell_sent(self) -> None:
        """What waited has been sent: forget streams that ended with it, and tell the receivers."""
        sent, self.sender.sent = self.sender.sent, []
        for stream in sent:
            receiver = stream.receiver
            if not stream.is_local_open:
                self._finish(stream)
            if receiver is not None:
                receiver.on_sent(stream)

    def _finish(self, stream: Stream) -> None:
        """This side of a stream has ended: forget it when the other has too. A server that has answered wants no more
        of the request."""
        if stream.is_remote_open:
            if self._open is None:
                return
            self.out.append(reset_frame(stream.id, ErrorCode.NO_ERROR))
            stream.is_remote_open = False
        self.streams.pop(stream.id, None)
        stream.receiver = None

    # What this side sends

    def request(self, block: bytes, receiver: Receiver, end: bool) -> Stream:
        """A client's: open a stream.

        Raises:
            Unavailable: the connection ends, or has as many streams as the server allows.
        """
        if self.fault is not None or self.goaway is not None or self._next_id > MAX_WINDOW:
            raise Unavailable("the connection is closing; open another")
        if len(self.streams) >= self.max_streams:
            raise Unavailable(f"{len(self.streams)} requests are open on the connection, as many as the server allows")
        stream = Stream(self._next_id, self.sender.initial_window, -1, True)
        stream.receiver = receiver
        self._next_id += 2
        self.streams[stream.id] = stream
        self.sender.headers(stream, block, end)
        return stream

    def send_headers(self, stream: Stream, block: bytes, end: bool = False) -> None:
        """Send a header list: of the answer, or trailers, which end the stream."""
        if stream.is_local_open and self.sender.headers(stream, block, end):
            self._finish(stream)

    def send_data(self, stream: Stream, data: Data, end: bool = False) -> None:
        """Send a piece of a body, which waits where the peer gives no window."""
        if stream.is_local_open:
            self.floods.useful += 1
            if self.sender.data(stream, data, end):
                self._finish(stream)
            if self.sender.sent:
                self._tell_sent()

    def send_answer(self, stream: Stream, envelope: Envelope, data: bytes) -> None:
        """Send headers, a body in one piece, and trailers."""
        if stream.is_local_open:
            self.floods.useful += 1
            if self.sender.answer(stream, envelope, data):
                if stream.is_remote_open:
                    self._finish(stream)
                else:
                    self.streams.pop(stream.id, None)
                    stream.receiver = None
            elif self.sender.sent:
                self._tell_sent()

    def reset(self, stream: Stream, error: ErrorCode = ErrorCode.CANCEL) -> None:
        """End a stream without an answer; its receiver hears nothing more."""
        if self.streams.pop(stream.id, None) is not None:
            stream.receiver = None
            stream.is_remote_open = False
            self.sender.forget(stream)
            self.out.append(reset_frame(stream.id, error))

    def pause(self) -> None:
        """The transport takes no more for now; bodies wait."""
        self.sender.paused = True

    def resume(self) -> None:
        """The transport takes more."""
        self.sender.paused = False
        self.sender.pump()
        self._tell_sent()

    def ping(self, payload: bytes) -> None:
        """Send PING with 8 bytes."""
        self.out.append(frames.frame(frames.PING, 0, 0, payload))

    def drain(self) -> None:
        """Ask the peer to open no more streams (RFC 9113, 6.8): first GOAWAY that refuses nothing yet and PING, and,
        when that is answered, GOAWAY with the last stream that was taken."""
        if self._drain_step == 0:
            self._drain_step = 1
            self.out.append(goaway_frame(MAX_WINDOW, ErrorCode.NO_ERROR, "draining"))
            self.ping(_DRAIN_PING)

    def finish_drain(self) -> None:
        """The second step, when PING was answered or it takes too long."""
        if self._drain_step == 1:
            self._drain_step = 2
            self.out.append(goaway_frame(self._last_id, ErrorCode.NO_ERROR, "draining"))


def _nobody(stream: Stream, head: Head, body: bytes | None) -> None:
    """Takes streams of a connection that is gone."""


_OF_CONNECTION: Final[dict[int, Callable[[Connection, int, bytes], None]]] = {
    frames.SETTINGS: Connection._on_settings,
    frames.PING: Connection._on_ping,
    frames.GOAWAY: Connection._on_goaway,
}
