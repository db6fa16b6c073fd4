"""Streamed answers over HTTP/1.1 and HTTP/1.0."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from salver.core.errors import Internal
from salver.server.frontends import Frontend, Route
from salver.server.frontends.http.exchange import Exchange

EVENTS = b"content-type: text/event-stream\r\n"


class Streams(Frontend):
    """Streams at once, piece by piece when told to, without end, or until it fails."""

    name = "streams"
    open: list[Exchange] = []
    cancelled: list[Exchange] = []

    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", "/count/{n}", self.count, "infer"),
            Route("GET", "/open", self.keep, "infer"),
            Route("GET", "/broken", self.broken, "infer"),
            Route("GET", "/endless", self.endless, "infer"),
            Route("GET", "/plain", lambda e: e.respond(b"plain"), "infer"),
        )

    def count(self, exchange: Exchange) -> None:
        exchange.begin(EVENTS)
        for n in range(int(exchange.match.params[0])):
            exchange.send(b"data: %d\n\n" % n)
        exchange.send(b"")
        exchange.end()

    def keep(self, exchange: Exchange) -> None:
        exchange.cancel = lambda: self.cancelled.append(exchange)
        exchange.begin(EVENTS)
        self.open.append(exchange)

    def broken(self, exchange: Exchange) -> None:
        exchange.begin(EVENTS)
        exchange.send(b"data\n\n")
        raise Internal("on purpose")

    def endless(self, exchange: Exchange) -> None:
        exchange.cancel = lambda: self.cancelled.append(exchange)
        exchange.begin(EVENTS)
        for _ in range(2000):
            exchange.send(bytes(100_000))


@pytest.fixture
def server(serve: Any, engine: Any) -> Iterator[Any]:
    Streams.open.clear()
    Streams.cancelled.clear()
    with serve(engine, (Streams,)) as running:
        yield running


def ask(path: str, version: str = "1.1", method: str = "GET", **fields: str) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "localhost", **fields}.items())
    return f"{method} {path} HTTP/{version}\r\n{lines}\r\n".encode()


def unchunk(body: bytes) -> tuple[bytes, bytes]:
    """The body of a chunked answer, and what follows it."""
    whole = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        whole += body[:length]
        assert body[length : length + 2] == b"\r\n"
        body = body[length + 2 :]
        if not length:
            return whole, body


def test_chunks(server: Any) -> None:
    head, _, body = server.raw(ask("/count/3", Connection="close")).partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert b"content-length" not in head
    assert b"content-type: text/event-stream" in head
    assert unchunk(body) == (b"data: 0\n\ndata: 1\n\ndata: 2\n\n", b"")


def test_old_clients_read_to_the_end(server: Any) -> None:
    head, _, body = server.raw(ask("/count/2", "1.0", Connection="keep-alive")).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"connection: close" in head
    assert body == b"data: 0\n\ndata: 1\n\n"


def test_what_old_clients_ask_behind_a_stream_is_given_up(server: Any) -> None:
    """The stream ends with the connection."""
    sent = ask("/count/1", "1.0", Connection="keep-alive") + ask("/open") + ask("/plain")
    _, _, body = server.raw(sent).partition(b"\r\n\r\n")
    assert body == b"data: 0\n\n"
    assert Streams.cancelled == Streams.open
    assert len(Streams.open) == 1


def test_head_has_no_body(server: Any) -> None:
    sent = ask("/count/2", method="HEAD") + ask("/plain", Connection="close")
    head, _, rest = server.raw(sent).partition(b"\r\n\r\n")
    assert b"chunked" in head
    assert rest.startswith(b"HTTP/1.1 200")
    assert rest.endswith(b"plain")


def test_answers_behind_a_stream_wait(server: Any) -> None:
    data = server.raw(ask("/count/2") + ask("/count/1") + ask("/plain", Connection="close"))
    _, _, body = data.partition(b"\r\n\r\n")
    first, rest = unchunk(body)
    second, rest = unchunk(rest.partition(b"\r\n\r\n")[2])
    assert (first, second) == (b"data: 0\n\ndata: 1\n\n", b"data: 0\n\n")
    assert rest.endswith(b"plain")


def test_pieces_arrive_as_they_are_made(server: Any, until: Any) -> None:
    with server.connect() as sock:
        sock.sendall(ask("/open") + ask("/plain"))
        until(lambda: Streams.open)
        exchange = Streams.open[0]
        assert sock.recv(1000).endswith(b"\r\n\r\n")
        server.call(exchange.send, b"one")
        assert sock.recv(1000) == b"3\r\none\r\n"
        server.call(exchange.end)
        data = b""
        while not data.endswith(b"plain"):
            data += sock.recv(1000)
        assert data.startswith(b"0\r\n\r\nHTTP/1.1 200")


def test_broken_stream_has_no_end(server: Any) -> None:
    data = server.raw(ask("/broken"))
    assert b"0\r\n\r\n" not in data


def test_client_that_leaves(server: Any, until: Any) -> None:
    with server.connect() as sock:
        sock.sendall(ask("/open"))
        until(lambda: Streams.open)
    until(lambda: Streams.cancelled)
    server.call(Streams.open[0].send, b"to nobody")
    server.call(Streams.open[0].end)
    assert b"plain" in server.raw(ask("/plain", Connection="close"))


def test_client_that_reads_nothing(server: Any, until: Any) -> None:
    with server.connect() as sock, contextlib.suppress(ConnectionError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(ask("/endless"))
        until(lambda: Streams.cancelled)
        assert server.metrics.limits["queued_bytes"] >= 1


def test_stream_behind_another_is_bounded(server: Any, until: Any) -> None:
    with server.connect() as sock, contextlib.suppress(ConnectionError):
        sock.sendall(ask("/open") + ask("/endless"))
        until(lambda: len(Streams.cancelled) == 2)


def test_drain_waits_for_a_stream(server: Any, until: Any) -> None:
    with server.connect() as sock:
        sock.sendall(ask("/open"))
        until(lambda: Streams.open)
        task: list[Any] = []
        server.call(lambda: task.append(server.loop.create_task(server.server.drain(5.0))))
        until(lambda: server.server.draining)
        server.call(Streams.open[0].send, b"last")
        server.call(Streams.open[0].end)
        data = b""
        while part := sock.recv(1000):
            data += part
        assert data.endswith(b"4\r\nlast\r\n0\r\n\r\n")


def test_grpc_over_http_1_is_told_what_is_wrong(server: Any) -> None:
    data = server.raw(
        b"POST /inference.GRPCInferenceService/ModelInfer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/grpc\r\nContent-Length: 0\r\n\r\n"
    )
    assert data.startswith(b"HTTP/1.1 415")
    assert b"HTTP/2 only" in data
