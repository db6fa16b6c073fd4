"""One stream: its state and its windows (RFC 9113, 5.1 and 5.2)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

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


class Stream:
    """One request and its answer. Plain slots: one is made for every request.

    Args:
        id: its number.
        send_window: bytes that may be sent.
        expected: bytes of the body that are to come, by ``content-length``; -1 where that is not known.
        is_remote_open: whether the peer may send more.
    """

    __slots__ = (
        "expected",
        "final",
        "held",
        "id",
        "is_local_open",
        "is_remote_open",
        "owed",
        "queue",
        "queued_bytes",
        "receiver",
        "send_window",
    )

    def __init__(self, id: int, send_window: int, expected: int, is_remote_open: bool) -> None:
        self.id = id
        self.send_window = send_window
        self.expected = expected
        self.is_remote_open = is_remote_open
        self.is_local_open = True
        self.receiver: Receiver | None = None
        self.owed = 0
        """Bytes that came and were not given back as window."""
        self.held = False
        """Whether window is given back only when the receiver has room again."""
        self.queue: deque[Data] | None = None
        self.queued_bytes = 0
        self.final: bytes | None = None
        """What ends the stream after the queue: trailers, or nothing but the flag."""
