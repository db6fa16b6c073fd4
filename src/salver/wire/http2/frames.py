"""Frames of HTTP/2 as bytes (RFC 9113, sections 4 and 6), and its error codes."""

from __future__ import annotations

import enum
import struct
from typing import Final

from salver.core.errors import InvalidArgument

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first."""

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

HEAD_BYTES: Final = 9
BEFORE_ID: Final = 5
"""Bytes of a frame's head before its stream."""
MAX_WINDOW: Final = (1 << 31) - 1
DEFAULT_WINDOW: Final = 65_535
MIN_FRAME_BYTES: Final = 16_384
MAX_FRAME_BYTES: Final = (1 << 24) - 1

pack_head: Final = struct.Struct(">IBI").pack
"""A frame's head from ``length << 8 | type``, flags and stream."""


class ErrorCode(enum.IntEnum):
    """Why a stream or a connection ended (RFC 9113, 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionFault(InvalidArgument):
    """The peer did what ends the connection.

    Args:
        error: told to the peer in GOAWAY.
    """

    def __init__(self, error: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.error = error


class StreamFault(InvalidArgument):
    """The peer did what ends one stream.

    Args:
        error: told to the peer in RST_STREAM.
    """

    def __init__(self, error: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.error = error


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """One frame."""
    return pack_head(len(payload) << 8 | kind, flags, stream_id) + payload


def reset_frame(stream_id: int, error: int) -> bytes:
    """RST_STREAM."""
    return frame(RST_STREAM, 0, stream_id, error.to_bytes(4))


def goaway_frame(last_stream_id: int, error: int, message: str = "") -> bytes:
    """GOAWAY, with a message for who reads the peer's log."""
    return frame(GOAWAY, 0, 0, last_stream_id.to_bytes(4) + error.to_bytes(4) + message.encode()[:256])


def window_frame(stream_id: int, increment: int) -> bytes:
    """WINDOW_UPDATE."""
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4))


def header_frames(stream_id: int, block: bytes, end: bool, max_frame_bytes: int) -> bytes:
    """HEADERS, and CONTINUATION where the block does not fit one frame."""
    flags = END_STREAM if end else 0
    if len(block) <= max_frame_bytes:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [block[at : at + max_frame_bytes] for at in range(0, len(block), max_frame_bytes)]
    frames = [frame(HEADERS, flags, stream_id, parts[0])]
    frames += [frame(CONTINUATION, 0, stream_id, part) for part in parts[1:-1]]
    frames.append(frame(CONTINUATION, END_HEADERS, stream_id, parts[-1]))
    return b"".join(frames)


def unpad(flags: int, payload: bytes) -> bytes:
    """The payload of DATA or HEADERS without padding (RFC 9113, 6.1).

    Raises:
        ConnectionFault: there is more padding than payload.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]
