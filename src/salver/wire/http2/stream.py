"""One stream: its state and its windows (RFC 9113, 5.1 and 5.2)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from salver.wire.http2.headers import Head

Data = bytes | memoryview


class Receiver(Protocol):
    """Who reads a stream. Called while bytes are received; may answer at once."""

    def on_headers(self, stream: Stream, head: Head, end: bool) -> None:
        """A client's: the response began, or its trailers came. A server's: the trailers of the request."""

    def on_data(self, stream: Stream, data: Data, end: bool) -> None:
        """A piece of the body; it may be empty, where it is the last. A view is of bytes that nobody changes."""

    def on_reset(self, stream: Stream, error: int, message: str) -> None:
        """The stream is gone: the peer reset it, broke its rules, or is gone itself. Nothing more can be sent."""

    def on_sent(self, stream: Stream) -> None:
        """What was queued for the peer has been written."""


class Stream(msgspec.Struct, eq=False):
    """One request and its answer. A struct: one is made for every request.

    Args:
        id: its number.
        send_window: bytes that may be sent.
        expected: bytes of the body that are to come, by ``content-length``; -1 where that is not known.
        is_remote_open: whether the peer may send more.
        is_local_open: whether this side may.
        receiver: who reads it.
        owed: bytes that came and were not given back as window.
        held: whether window is given back only when the receiver has room again.
        queue: what waits for a window.
        queued_bytes: of that.
        final: what ends the stream after the queue: trailers, or nothing but the flag.
    """

    id: int
    send_window: int
    expected: int
    is_remote_open: bool
    is_local_open: bool = True
    receiver: Receiver | None = None
    owed: int = 0
    held: bool = False
    queue: deque[Data] | None = None
    queued_bytes: int = 0
    final: bytes | None = None
