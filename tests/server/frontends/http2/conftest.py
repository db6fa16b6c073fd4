"""A server over a small frontend of its own, which shows what the transport does."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from salver.core import errors
from salver.server.frontends import Frontend, Route
from salver.server.frontends.base import Method
from salver.server.frontends.grpc.call import Call
from salver.server.frontends.http.exchange import JSON, Exchange
from salver.wire.http2 import PREFACE, Bounds, Connection, encode_block


class Probe(Frontend):
    """Echoes, fails, hangs and streams, over gRPC and HTTP."""

    name = "probe"
    cancelled: list[str] = []
    seen: list[Any] = []
    held: list[Any] = []

    def methods(self) -> Sequence[Method]:
        def method(name: str, handle: Any, streaming: bool = False) -> Method:
            return Method(f"/test.Probe/{name}", handle, "infer", streaming=streaming)

        return (
            method("Echo", self.echo),
            method("Fail", self.fail),
            method("Hang", self.hang),
            method("Make", lambda call: call.respond(bytes(int(call.message)))),
            method("Metadata", self.metadata),
            method("Chat", self.chat, True),
            method("Deaf", self.deaf, True),
            method("Pour", self.pour, True),
            method("Refuse", self.refuse, True),
        )

    def routes(self) -> Sequence[Route]:
        return (
            Route("POST", "/echo", lambda e: e.respond(e.body, b"content-type: text/plain\r\n"), "infer"),
            Route("GET", "/make/{size}", lambda e: e.respond(b"x" * int(e.match.params[0]), JSON), "infer"),
            Route("GET", "/pieces", lambda e: e.respond([b"a" * 3000, b"b" * 100_000, b"c"], JSON), "infer"),
            Route("GET", "/none", lambda e: e.respond(b"", b"", 204), "infer"),
            Route("GET", "/empty", lambda e: e.respond(b"", b""), "infer"),
            Route("GET", "/hang", self.hang, "infer"),
            Route("GET", "/stream/{count}", self.stream, "infer"),
            Route("GET", "/broken", self.broken, "infer"),
            Route("GET", "/endless", self.endless, "infer"),
        )

    def echo(self, call: Call) -> None:
        self.seen.append(call)
        call.respond(call.message)

    def fail(self, call: Call) -> None:
        name = call.message.decode()
        raise getattr(errors, name)(f"näme: {name}\n100%", retry_after_s=0.25)

    def hang(self, reply: Any) -> None:
        self.held.append(reply)
        reply.cancel = lambda: self.cancelled.append("cancelled")

    def metadata(self, call: Call) -> None:
        call.respond(call.metadata.get(b"x-test-bin", b"") + b"|" + call.metadata[b"x-test"])

    def chat(self, call: Call) -> None:
        call.on_message = lambda message: call.send(message * 2)
        call.on_end = call.finish

    def deaf(self, call: Call) -> None:
        """Takes messages and answers none until it is told to."""
        got: list[bytes] = []
        self.held.append((call, got))
        call.on_message = got.append
        call.on_end = call.finish
        call.cancel = lambda: self.cancelled.append("cancelled")

    def pour(self, call: Call) -> None:
        """Sends more than anyone reads."""

        def flood(_: bytes) -> None:
            for _ in range(2000):
                call.send(bytes(100_000))

        call.on_message = flood
        call.cancel = lambda: self.cancelled.append("cancelled")

    def refuse(self, call: Call) -> None:
        """Answers once, then fails."""

        def once(message: bytes) -> None:
            call.send(message)
            raise errors.NotFound("no more")

        call.on_message = once

    def stream(self, exchange: Exchange) -> None:
        exchange.begin(b"content-type: text/event-stream\r\n")
        for number in range(int(exchange.match.params[0])):
            exchange.send(b"data: %d\n\n" % number)
        exchange.end()

    def broken(self, exchange: Exchange) -> None:
        exchange.begin(b"content-type: text/event-stream\r\n")
        exchange.send(b"data: 1\n\n")
        raise errors.Internal("on purpose")

    def endless(self, exchange: Exchange) -> None:
        exchange.cancel = lambda: self.cancelled.append("cancelled")
        exchange.begin(b"content-type: text/event-stream\r\n")
        for _ in range(2000):
            exchange.send(bytes(100_000))


@pytest.fixture
def probe(serve: Any, engine: Any) -> Iterator[Callable[..., contextlib.AbstractContextManager[Any]]]:
    """Run a server over the probe and the REST frontends: ``with probe(max_streams=1) as server``."""

    @contextlib.contextmanager
    def run(**settings: Any) -> Iterator[Any]:
        for kept in (Probe.cancelled, Probe.seen, Probe.held):
            kept.clear()
        with serve(engine, (Probe, "oip-rest", "metrics"), **{"grpc": "127.0.0.1:0", **settings}) as running:
            running.probe = Probe
            yield running
            Probe.held.clear()

    return run


class RawClient:
    """A client of its own state machine on a blocking socket, or of none at all."""

    def __init__(self, address: Any) -> None:
        self.sock = socket.create_connection(address, timeout=10)
        self.machine = Connection(Bounds(stream_window_bytes=65_535, window_bytes=65_535 * 4))
        self.answers: dict[int, dict[str, Any]] = {}
        self.is_closed = False

    def send(self, *data: bytes) -> None:
        """Bytes that the machine does not know of."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(b"".join(data))

    def greet(self) -> RawClient:
        """Preface and settings; the server's are read."""
        self.flush()
        self.pump(lambda: not self.machine._is_expecting_settings)
        return self

    def flush(self) -> None:
        self.send(*(bytes(piece) for piece in self.machine.out))
        self.machine.out.clear()

    def ask(self, path: str, body: bytes = b"", end: bool = True, **fields: str) -> int:
        """Open a stream; its number."""
        head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"localhost")]
        head += [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
        stream = self.machine.request(encode_block(head), self, end and not body)
        self.answers[stream.id] = {"heads": [], "body": b"", "ended": False, "reset": None, "stream": stream}
        if body:
            self.machine.send_data(stream, body, end)
        self.flush()
        return stream.id

    def call(self, method: str, message: bytes = b"", end: bool = True, **fields: str) -> int:
        """Open a gRPC call with one message."""
        body = b"\0" + len(message).to_bytes(4, "big") + message
        return self.ask(f"/test.Probe/{method}", body, end, **{"content_type": "application/grpc", **fields})

    def wait(self, stream_id: int) -> dict[str, Any]:
        """The answer of a stream, when it has ended or was reset."""
        answer = self.answers[stream_id]
        self.pump(lambda: answer["ended"] or answer["reset"] is not None)
        return answer

    def pump(self, until: Callable[[], Any]) -> None:
        """Read, and answer what HTTP/2 wants answered, until that holds or the server closes."""
        while not until() and not self.is_closed:
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionError:
                data = b""
            if not data:
                self.is_closed = True
                self.machine.close("closed")
                return
            self.machine.receive(data)
            self.flush()

    def read_error(self) -> int | None:
        """The code of the server's GOAWAY, after which it closed."""
        self.pump(lambda: False)
        return None if self.machine.goaway is None else self.machine.goaway[1]

    def on_headers(self, stream: Any, head: Any, end: bool) -> None:
        self.answers[stream.id]["heads"].append(head.mapping)
        self.answers[stream.id]["ended"] = end

    def on_data(self, stream: Any, data: Any, end: bool) -> None:
        self.answers[stream.id]["body"] += bytes(data)
        self.answers[stream.id]["ended"] = end

    def on_reset(self, stream: Any, error: int, message: str) -> None:
        self.answers[stream.id]["reset"] = int(error)

    def on_sent(self, stream: Any) -> None:
        pass

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()


@pytest.fixture
def raw() -> Callable[[Any], RawClient]:
    """A client that may do anything: ``with raw(server.address) as client``."""
    return RawClient


@pytest.fixture
def preface() -> bytes:
    return PREFACE
