"""From bytes to frames: the receiving half of a connection, as far as it knows no streams."""

from __future__ import annotations

import abc
import struct
from typing import Final

from salver.wire.http2 import frames
from salver.wire.http2.floods import Floods
from salver.wire.http2.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HAS_PRIORITY,
    HEAD_BYTES,
    HEADERS,
    MAX_WINDOW,
    PADDED,
    PREFACE,
    ConnectionFault,
    ErrorCode,
    unpad,
)
from salver.wire.http2.settings import Bounds
from salver.wire.http2.stream import Data, Stream

_VIEW_BYTES: Final = 4096
_MAX_CONTROL_BYTES: Final = frames.MIN_FRAME_BYTES
_UNUSUAL: Final = END_HEADERS | PADDED | HAS_PRIORITY
_unpack_head: Final = struct.Struct(">IBI").unpack_from
_unpack_increment: Final = struct.Struct(">I").unpack_from


class FrameReader(abc.ABC):
    """Cuts what comes into frames, puts header blocks together, and hands on bodies before their frames are whole.

    Args:
        bounds: what the peer may do.
        is_server: whether the peer begins with the preface.
    """

    def __init__(self, bounds: Bounds, is_server: bool) -> None:
        self.bounds = bounds
        self.floods = Floods()
        self._rest = b""
        self._is_server = is_server
        self._is_expecting_preface = is_server
        self._is_unusual = True  # the next frame must be SETTINGS, or CONTINUATION
        self._is_expecting_settings = True
        self._body: tuple[Stream | None, int, bool] | None = None  # a DATA frame of which a part is still to come
        self._block = bytearray()  # of a HEADERS frame whose continuation is still to come
        self._block_of: tuple[int, int] | None = None

    @abc.abstractmethod
    def _on_data(self, stream_id: int, flags: int, payload: Data) -> None:
        """A whole DATA frame."""

    @abc.abstractmethod
    def _account(self, stream_id: int, length: int) -> Stream | None:
        """Take a DATA frame's length from the windows; the stream, unless it is gone."""

    @abc.abstractmethod
    def _deliver(self, stream: Stream, data: Data, end: bool) -> None:
        """A piece of a body."""

    @abc.abstractmethod
    def _on_requests(self, data: bytes, at: int, length: int) -> int:
        """A server's: HEADERS with ``length`` bytes begin at ``at``, as requests mostly do. Takes the requests that lie
        there whole, one behind the other.

        Returns:
            Where the first frame begins that was not taken; ``at`` for none.
        """

    @abc.abstractmethod
    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        """A whole header block."""

    @abc.abstractmethod
    def _on_window(self, stream_id: int, increment: int) -> None:
        """WINDOW_UPDATE; every call of a gRPC client brings two."""

    @abc.abstractmethod
    def _on_control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Any other frame."""

    @property
    def is_partial(self) -> bool:
        """Whether a frame or a header block has begun to come in."""
        return bool(self._rest) or self._block_of is not None or self._body is not None

    def _read(self, data: bytes) -> None:
        """Take what came.

        Raises:
            ConnectionFault: the peer broke the protocol.
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at = 0
        size = len(data)
        if self._is_expecting_preface:
            if not data.startswith(PREFACE[:size]):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the connection does not begin with HTTP/2's preface")
            if size < len(PREFACE):
                self._rest = data
                return
            self._is_expecting_preface = False
            at = len(PREFACE)
        if self._body is not None:
            at = self._go_on(data, size)
        while size - at >= HEAD_BYTES:
            word, flags, stream_id = _unpack_head(data, at)
            length = word >> 8
            kind = word & 0xFF
            stream_id &= MAX_WINDOW
            if self._is_unusual or length > _MAX_CONTROL_BYTES:
                self._check_frame(kind, flags, stream_id, length)
            start = at + HEAD_BYTES
            at = start + length
            if at > size:
                if kind == DATA and not flags & PADDED:
                    self._begin_body(stream_id, flags, data, start, length)
                    return
                at = start - HEAD_BYTES
                break
            if kind == DATA:
                # A view keeps the whole read alive: only where it is most of it.
                is_most = length >= _VIEW_BYTES and length * 2 > size
                self._on_data(stream_id, flags, memoryview(data)[start:at] if is_most else data[start:at])
            elif kind == HEADERS:
                begin = start - HEAD_BYTES
                if flags == END_HEADERS and self._is_server and (end := self._on_requests(data, begin, length)) > begin:
                    at = end
                elif flags & _UNUSUAL == END_HEADERS:
                    self._on_block(stream_id, flags, data[start:at])
                else:
                    self._on_odd_headers(stream_id, flags, data[start:at])
            elif kind == frames.WINDOW_UPDATE:
                if length != 4:
                    raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"WINDOW_UPDATE of {length} bytes")
                self._on_window(stream_id, _unpack_increment(data, start)[0] & MAX_WINDOW)
            elif kind == frames.CONTINUATION:
                self._on_continuation(flags, data[start:at])
            else:
                self._on_control(kind, flags, stream_id, data[start:at])
        if at < size:
            self._rest = data[at:]

    def _check_frame(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """What a frame's head alone decides, in the cases that are not the usual one."""
        if self._is_expecting_settings:
            if kind != frames.SETTINGS or flags & ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._is_expecting_settings = self._is_unusual = False
        if self._block_of is not None and (kind != frames.CONTINUATION or stream_id != self._block_of[0]):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted by another frame")
        if length > self.bounds.max_frame_bytes:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
        if length > _MAX_CONTROL_BYTES and kind != DATA:
            if kind not in (HEADERS, frames.CONTINUATION):
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"a frame of type {kind} with {length} bytes")
            self._check_block(length)

    def _check_block(self, length: int) -> None:
        limit = self.bounds.max_header_bytes
        if len(self._block) + length > limit:
            self.floods.refuse("max_header_bytes")
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"a header block of more than {limit} bytes")

    def _begin_body(self, stream_id: int, flags: int, data: bytes, start: int, length: int) -> None:
        """Deliver what is there of a DATA frame, rather than keep it until all of it is."""
        self._body = (self._account(stream_id, length), length, flags & END_STREAM != 0)
        if start < len(data):
            self._go_on(memoryview(data)[start:], len(data) - start)

    def _go_on(self, data: Data, size: int) -> int:
        """Deliver more of a DATA frame that began in an earlier read; how many bytes were of it."""
        if self._body is None:
            return 0
        stream, left, end = self._body
        took = min(left, size)
        self._body = None if took == left else (stream, left - took, end)
        if stream is not None and stream.is_remote_open:
            self._deliver(stream, memoryview(data)[:took], end and took == left)
        return took

    def _on_odd_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        """HEADERS that are padded, have a priority, or go on in CONTINUATION."""
        block = unpad(flags, payload)
        if flags & HAS_PRIORITY:
            if len(block) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for their priority")
            block = block[5:]
        if flags & END_HEADERS:
            self._on_block(stream_id, flags, block)
            return
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        self._block = bytearray(block)
        self._block_of = (stream_id, flags)
        self._is_unusual = True

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if self._block_of is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._check_block(len(payload))
        self.floods.count_idle()
        self._block += payload
        if flags & END_HEADERS:
            stream_id, flags = self._block_of
            block = bytes(self._block)
            self._block = bytearray()
            self._block_of = None
            self._is_unusual = False
            self._on_block(stream_id, flags, block)
