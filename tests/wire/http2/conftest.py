"""A server's or client's state machine, and everything that it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from salver.wire.http2 import PREFACE, Bounds, Connection, ErrorCode, Head, Stream, encode_block
from salver.wire.http2 import frames as f

REQUEST = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x"), (b":authority", b"a")]
BLOCK = encode_block(REQUEST)
NAMES = {
    0: "DATA", 1: "HEADERS", 2: "PRIORITY", 3: "RST_STREAM", 4: "SETTINGS", 5: "PUSH_PROMISE", 6: "PING", 7: "GOAWAY",
    8: "WINDOW_UPDATE", 9: "CONTINUATION",
}  # fmt: skip


class Log:
    """A receiver that writes down what it hears."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.heads: list[tuple[dict[bytes, bytes], bool]] = []
        self.data = b""
        self.pieces: list[tuple[bytes, bool]] = []
        self.ended = False
        self.reset: tuple[int, str] | None = None
        self.sent = 0

    def on_headers(self, stream: Stream, head: Head, end: bool) -> None:
        assert not self.ended
        self.heads.append((head.mapping, end))
        self.ended = self.ended or end

    def on_data(self, stream: Stream, data: Any, end: bool) -> None:
        assert not self.ended
        self.data += bytes(data)
        self.pieces.append((bytes(data), end))
        self.ended = end

    def on_reset(self, stream: Stream, error: int, message: str) -> None:
        assert self.reset is None
        self.reset = (error, message)

    def on_sent(self, stream: Stream) -> None:
        self.sent += 1


def parse_frames(data: bytes) -> Iterator[tuple[str, int, int, bytes]]:
    """Type, flags, stream and payload of each frame."""
    data = data.removeprefix(PREFACE)
    while data:
        length = int.from_bytes(data[:3], "big")
        assert len(data) >= 9 + length
        yield NAMES[data[3]], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + length]
        data = data[9 + length :]


class Side:
    """One machine, with its streams and its output."""

    def __init__(self, is_server: bool = True, **bounds: int) -> None:
        self.streams: dict[int, Stream] = {}
        self.logs: dict[int, Log] = {}
        self.machine = Connection(Bounds(**bounds), self._open if is_server else None)

    def _open(self, stream: Stream, head: Head, body: bytes | None) -> None:
        log = Log()
        log.head = head
        if body:
            log.on_data(stream, body, True)
        log.ended = body is not None
        self.streams[stream.id] = stream
        self.logs[stream.id] = log
        stream.receiver = log

    def take(self) -> bytes:
        data = b"".join(self.machine.out)
        self.machine.out.clear()
        return data

    def frames(self) -> list[tuple[str, int, int, bytes]]:
        return list(parse_frames(self.take()))

    def kinds(self) -> list[str]:
        return [kind for kind, *_ in self.frames()]

    def hear(self, *data: bytes) -> Side:
        self.machine.receive(b"".join(data))
        return self

    @property
    def error(self) -> ErrorCode | None:
        """Why the connection ended; it was told so."""
        fault = self.machine.fault
        if fault is None:
            return None
        kind, _, _, payload = self.frames()[-1]
        assert kind == "GOAWAY"
        assert int.from_bytes(payload[4:8], "big") == fault.error
        return fault.error


def headers(stream_id: int, end: bool = False, block: bytes = BLOCK, flags: int = f.END_HEADERS) -> bytes:
    return f.frame(f.HEADERS, flags | (f.END_STREAM if end else 0), stream_id, block)


def data(stream_id: int, body: bytes, end: bool = False, flags: int = 0) -> bytes:
    return f.frame(f.DATA, flags | (f.END_STREAM if end else 0), stream_id, body)


SETTINGS = f.frame(f.SETTINGS, 0, 0, b"")


@pytest.fixture
def server() -> Side:
    """A server that has greeted and been greeted."""
    return greeted()


@pytest.fixture
def greet() -> Any:
    """A server with bounds of its own: ``greet(max_streams=1)``."""
    return greeted


def greeted(**bounds: int) -> Side:
    side = Side(**bounds)
    side.hear(PREFACE, SETTINGS)
    assert side.machine.fault is None
    side.take()
    return side


class Wire:
    """The frames a test writes by hand."""

    headers = staticmethod(headers)
    data = staticmethod(data)
    BLOCK = BLOCK
    REQUEST = REQUEST
    SETTINGS = SETTINGS
    Side = Side
    Log = Log
    parse_frames = staticmethod(parse_frames)


@pytest.fixture(scope="session")
def wire() -> type[Wire]:
    return Wire
