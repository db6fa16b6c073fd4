"""The sending half of a connection: what the peer's windows let out, and what waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from salver.wire.http2.frames import (
    BEFORE_ID,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_WINDOW,
    MIN_FRAME_BYTES,
    ConnectionFault,
    ErrorCode,
    header_frames,
    pack_head,
)
from salver.wire.http2.stream import Data, Stream

_MAX_SIZES: Final = 256


class Envelope:
    """Headers and trailers that many answers share, as frames around a small body.

    Args:
        headers, trailers: header blocks.
        prefix: what stands before a body of so many bytes, as part of it.
    """

    __slots__ = ("close", "headers", "lead", "middles", "prefix", "trailers")

    def __init__(self, headers: bytes, trailers: bytes, prefix: Callable[[int], bytes] = lambda _: b"") -> None:
        self.headers = headers
        self.trailers = trailers
        self.prefix = prefix
        self.lead = pack_head(len(headers) << 8 | HEADERS, END_HEADERS, 0)[:BEFORE_ID]
        """All before the first number of the stream; the second stands behind what is in `middles`."""
        self.close = pack_head(len(trailers) << 8 | HEADERS, END_HEADERS | END_STREAM, 0)[:BEFORE_ID]
        """All between the body and the last."""
        self.middles: dict[int, tuple[bytes, bytes, int]] = {}
        """Size of a body -> what stands before the second number, and behind it, and the size of its DATA; as far as it
        was asked for."""

    def make_middle(self, size: int) -> tuple[bytes, bytes, int]:
        """As `middles`, of a size that is not there yet."""
        if len(self.middles) >= _MAX_SIZES:
            self.middles.clear()
        prefix = self.prefix(size)
        whole = len(prefix) + size
        head = pack_head(whole << 8 | DATA, 0, 0)[:BEFORE_ID]
        middle = self.middles[size] = self.headers + head, prefix, whole
        return middle


class Sender:
    """Frames on their way out, in `out`, which the owner writes and clears."""

    def __init__(self) -> None:
        self.out: list[Data] = []
        self.window = DEFAULT_WINDOW
        self.initial_window = DEFAULT_WINDOW
        self.max_frame_bytes = MIN_FRAME_BYTES
        self.queued_bytes = 0
        self.steps = 0
        """Counts frames of bodies that waited."""
        self.paused = False
        """Whether the transport takes no more: bodies wait, as they do for a window."""
        self._waiting: dict[int, Stream] = {}
        self.sent: list[Stream] = []
        """Streams whose queues have emptied; the owner takes them."""

    def headers(self, stream: Stream, block: bytes, end: bool) -> bool:
        """Send a header block, which ends this side of the stream where ``end``; after what waits before it.

        Returns:
            Whether this side of the stream has ended.
        """
        if stream.queue is not None:
            if end:
                stream.final = block
            return False
        self.out.append(header_frames(stream.id, block, end, self.max_frame_bytes))
        if end:
            stream.is_local_open = False
        return end

    def data(self, stream: Stream, data: Data, end: bool) -> bool:
        """Send a piece of a body, now or when there is window for it.

        Returns:
            Whether this side of the stream has ended.
        """
        size = len(data)
        if stream.queue is None:
            if size <= self.window and size <= stream.send_window and size <= self.max_frame_bytes and not self.paused:
                self.window -= size
                stream.send_window -= size
                self._put(stream, data, end)
                return end
            stream.queue = deque()
            self._waiting[stream.id] = stream
        if size:
            stream.queue.append(data)
            stream.queued_bytes += size
            self.queued_bytes += size
        if end:
            stream.final = b""
        self.pump_stream(stream)
        return not stream.is_local_open

    def answer(self, stream: Stream, envelope: Envelope, data: bytes) -> bool:
        """Send a whole answer, in one piece where nothing stands in its way.

        Returns:
            Whether this side of the stream has ended.
        """
        middle, prefix, size = envelope.middles.get(len(data)) or envelope.make_middle(len(data))
        if (
            size <= self.window
            and size <= stream.send_window
            and size <= self.max_frame_bytes
            and not self.paused
            and stream.queue is None
        ):
            self.window -= size
            stream.is_local_open = False
            number = stream.id.to_bytes(4)
            parts = envelope.lead, number, middle, number, prefix, data, envelope.close, number, envelope.trailers
            self.out.append(b"".join(parts))
            return True
        self.headers(stream, envelope.headers, False)
        self.data(stream, prefix + data, False)
        return self.headers(stream, envelope.trailers, True)

    def pump(self) -> None:
        """Send what waits as far as the windows let it, a frame of each stream in turn."""
        turn = list(self._waiting.values())
        while turn and not self.paused:
            turn = [stream for stream in turn if self._step(stream)]

    def pump_stream(self, stream: Stream) -> None:
        """Send what waits of one stream as far as the windows let it."""
        while not self.paused and self._step(stream):
            pass

    def _step(self, stream: Stream) -> bool:
        """Send one frame of a stream that waits; whether it may have another."""
        queue = stream.queue
        if queue:
            size = min(len(queue[0]), self.window, stream.send_window, self.max_frame_bytes)
            if size <= 0:
                return False
            data = queue[0]
            if size == len(data):
                queue.popleft()
            else:
                view = memoryview(data)
                queue[0] = view[size:]
                data = view[:size]
            self.steps += 1
            self.window -= size
            stream.send_window -= size
            stream.queued_bytes -= size
            self.queued_bytes -= size
            self._put(stream, data, not queue and stream.final == b"")
        if not queue:
            self._finish(stream)
        return stream.queue is not None

    def _finish(self, stream: Stream) -> None:
        del self._waiting[stream.id]
        stream.queue = None
        if stream.final is not None and stream.is_local_open:
            if stream.final:
                self.headers(stream, stream.final, True)
            else:
                self._put(stream, b"", True)
        self.sent.append(stream)

    def _put(self, stream: Stream, data: Data, end: bool) -> None:
        size = len(data)
        head = pack_head(size << 8 | DATA, END_STREAM if end else 0, stream.id)
        if size < MIN_FRAME_BYTES:
            self.out.append(head + data)
        else:
            self.out.append(head)
            self.out.append(data)
        if end:
            stream.is_local_open = False

    def forget(self, stream: Stream) -> None:
        """Drop what waits of a stream that was reset."""
        stream.is_local_open = False
        if self._waiting.pop(stream.id, None) is not None:
            self.queued_bytes -= stream.queued_bytes
            stream.queued_bytes = 0
            stream.queue = None

    # What the peer says

    def widen(self, increment: int) -> None:
        """WINDOW_UPDATE of the connection."""
        was_open = self.window > 0
        self.window += increment
        if self.window > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is over 2^31 - 1")
        if self._waiting and not was_open:
            self.pump()

    def change_initial_window(self, size: int, streams: Iterable[Stream]) -> None:
        """SETTINGS_INITIAL_WINDOW_SIZE, which moves the windows of open streams too, below zero if need be."""
        change, self.initial_window = size - self.initial_window, size
        for stream in streams:
            stream.send_window += change
            if stream.send_window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is over 2^31 - 1")
        self.pump()
