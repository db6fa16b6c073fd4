"""SETTINGS: what each side tells the other (RFC 9113, 6.5), and what Salver tells."""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from salver.wire.http2.frames import (
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    MIN_FRAME_BYTES,
    SETTINGS,
    ConnectionFault,
    ErrorCode,
    frame,
)

ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

_ENTRY: Final = struct.Struct(">HI")


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What one side takes from the other.

    Args:
        max_streams: streams that the peer may have open.
        max_header_bytes: decoded header list, each field counted as RFC 9113, 6.5.2 does.
        max_frame_bytes: payload of a DATA frame.
        stream_window_bytes: data a peer may send on one stream before it is told to go on; at least 65,535, which it
            may send before it has read this.
        window_bytes: the same for the whole connection.
    """

    max_streams: int = 1024
    max_header_bytes: int = 64 << 10
    max_frame_bytes: int = 1 << 20
    stream_window_bytes: int = 1 << 20
    window_bytes: int = 16 << 20


def settings_frame(bounds: Bounds, is_client: bool) -> bytes:
    """The first SETTINGS of a connection."""
    entries = [
        (INITIAL_WINDOW_SIZE, bounds.stream_window_bytes),
        (MAX_FRAME_SIZE, bounds.max_frame_bytes),
        (MAX_HEADER_LIST_SIZE, bounds.max_header_bytes),
        (ENABLE_PUSH, 0) if is_client else (MAX_CONCURRENT_STREAMS, bounds.max_streams),
    ]
    return frame(SETTINGS, 0, 0, b"".join(_ENTRY.pack(*entry) for entry in entries))


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Number and value of each setting, in order.

    Raises:
        ConnectionFault: the length is none, or a value is outside its range.
    """
    if len(payload) % _ENTRY.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    entries = list(_ENTRY.iter_unpack(payload))
    for number, value in entries:
        if number == ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH is {value}")
        if number == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE is {value}")
        if number == MAX_FRAME_SIZE and not MIN_FRAME_BYTES <= value <= MAX_FRAME_BYTES:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE is {value}")
    return entries
