"""Bytes to and from a running server, past any client library: HTTP/1.1, HTTP/2 frames and protobuf fields."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hpack
import onnx
from onnx import TensorProto, helper

from salver.server import Server, ServeSettings

INFER = "/v2/models/text/infer"
RPC = "/inference.GRPCInferenceService/"
ACK, END_STREAM, END_HEADERS = 1, 1, 4
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
STATUSES = {
    "3": "INVALID_ARGUMENT",
    "4": "DEADLINE_EXCEEDED",
    "7": "PERMISSION_DENIED",
    "8": "RESOURCE_EXHAUSTED",
    "9": "FAILED_PRECONDITION",
    "16": "UNAUTHENTICATED",
}
ERRORS = {1: "PROTOCOL_ERROR", 7: "REFUSED_STREAM", 11: "ENHANCE_YOUR_CALM"}
CALL = {"content_type": "application/grpc", "te": "trailers"}


def write_text_model(folder: Path) -> Path:
    """A folder with the model ``text``, which gives its strings back."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "text",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ("batch",))],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ("batch",))],
    )
    (folder / "text" / "1").mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "text" / "1" / "model.onnx")
    return folder


@contextlib.contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Server]:
    given = {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "log_level": "error", **settings}
    with Server(ServeSettings(sources=(str(folder),), **given)) as server:
        yield server


def connect(server: Server) -> socket.socket:
    if server.url.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(server.url.removeprefix("unix:"))
        return sock
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


class Http1:
    """A connection over which bytes are sent as they are."""

    def __init__(self, server: Server) -> None:
        self.sock = connect(server)

    def __enter__(self) -> Http1:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def outcome(self, data: bytes) -> str:
        """Status of the first answer, or ``closed``."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)
        try:
            head = self.sock.recv(1 << 16)
        except ConnectionResetError:
            return "closed"
        return head.split(b" ")[1].decode() if head else "closed"


def http1(server: Server, path: str, body: bytes, method: str = "POST", **fields: str) -> str:
    lines = {"Host": "localhost", "Content-Length": str(len(body))}
    lines |= {name.replace("_", "-"): value for name, value in fields.items()}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
    with Http1(server) as connection:
        return connection.outcome(head.encode() + body)


class Http2:
    """A connection that speaks frames, and does not mind what the server allows."""

    def __init__(self, server: Server) -> None:
        self.sock = connect(server)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.rest = b""
        self.out = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.send(SETTINGS, 0, 0, b"")

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.out += len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload

    def request(self, stream: int, path: str, body: bytes | None, method: str = "POST", **fields: str) -> None:
        """Send a request; None leaves it open."""
        lines = [(":method", method), (":scheme", "http"), (":authority", "localhost"), (":path", path)]
        block = self.encoder.encode([*lines, *((k.replace("_", "-"), v) for k, v in fields.items())])
        self.send(HEADERS, 0, stream, block[:16_384])
        for at in range(16_384, len(block), 16_384):
            self.send(CONTINUATION, 0, stream, block[at : at + 16_384])
        self.send(CONTINUATION, END_HEADERS, stream, b"")
        if body is not None:
            for at in range(0, len(body), 16_384):
                self.send(DATA, 0, stream, body[at : at + 16_384])
            self.send(DATA, END_STREAM, stream, b"")

    def frame(self) -> tuple[int, int, int, bytes] | None:
        """Kind, flags, stream and payload of the next frame; None at the end."""
        while len(self.rest) < 9 or len(self.rest) < 9 + int.from_bytes(self.rest[:3], "big"):
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.rest += data
        size = 9 + int.from_bytes(self.rest[:3], "big")
        frame, self.rest = self.rest[:size], self.rest[size:]
        return frame[3], frame[4], int.from_bytes(frame[5:9], "big"), frame[9:]

    def outcome(self) -> str:
        """Send all that is to be sent; the first status, reset or end that comes."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(self.out)
        self.out.clear()
        while (frame := self.frame()) is not None:
            kind, _, _, payload = frame
            if kind == HEADERS:
                fields = dict(self.decoder.decode(payload))
                if fields[":status"] != "100":
                    return STATUSES.get(fields.get("grpc-status", ""), fields[":status"])
            if kind == RST_STREAM and payload != bytes(4):  # NO_ERROR: answered before the request was complete
                return ERRORS.get(int.from_bytes(payload, "big"), payload.hex())
            if kind == GOAWAY and payload[4:8] != bytes(4):
                return ERRORS.get(int.from_bytes(payload[4:8], "big"), payload.hex())
        return "closed"


def http2(server: Server, path: str, body: bytes | None, method: str = "POST", **fields: str) -> str:
    with Http2(server) as connection:
        connection.request(1, path, body, method, **fields)
        return connection.outcome()


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))
