"""What the wire costs: CPU per request of parsing, checking, encoding and HTTP, without sockets and without a model.

    python benchmarks/codec_cost.py [--rounds 15] [--requests 4000]

The yardstick is a bare prototype written inline: httptools, msgspec, no checks, no limits, no metrics, no routes. Both
answer the same bytes for a small network: 64 floats in, 10 out, one row. Rounds of both alternate, so that
the machine's own drift cancels; read the ratios, not the microseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

import httptools
import msgspec
import numpy as np

from salver.core.tensors import Signature, TensorSpec
from salver.server.engine.base import Engine, InferRequest, ServedModel, Timing
from salver.server.frontends import FRONTENDS, Services
from salver.server.frontends.http._connection import Connection
from salver.server.frontends.http.guard import Guard
from salver.server.frontends.http.router import Router
from salver.server.frontends.http.shared import Limits
from salver.server.frontends.oip.codec import ModelCodec
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import ServeSettings

IN, OUT = 64, 10
X = np.random.default_rng(1).random((1, IN), dtype=np.float32)
Y = np.random.default_rng(2).random((1, OUT), dtype=np.float32)
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=("batch", IN)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch", OUT)),),
)


# The prototype


class Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[float | int] | None = None
    parameters: dict[str, Any] | None = None


class Request(msgspec.Struct):
    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None


DECODER = msgspec.json.Decoder(Request)
ENCODER = msgspec.json.Encoder()


def bare_parse(body: bytes, header_length: int) -> tuple[Any, bool]:
    if header_length:
        tensor = DECODER.decode(body[:header_length]).inputs[0]
        return np.frombuffer(body, np.float32, offset=header_length).reshape(tensor.shape), True
    tensor = DECODER.decode(body).inputs[0]
    return np.array(tensor.data, np.float32).reshape(tensor.shape), False


def bare_reply(y: Any, binary: bool) -> tuple[bytes, int]:
    described: dict[str, Any] = {"name": "y", "shape": list(y.shape), "datatype": "FP32"}
    if not binary:
        described["data"] = y.ravel().tolist()
        return ENCODER.encode({"model_name": "mlp", "outputs": [described]}), 0
    raw = y.tobytes()
    described["parameters"] = {"binary_data_size": len(raw)}
    head = ENCODER.encode({"model_name": "mlp", "outputs": [described]})
    return head + raw, len(head)


class BareProtocol:
    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body: list[bytes] = []
        self.header_length = 0

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.body = []
        self.header_length = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 31 and name.lower() == b"inference-header-content-length":
            self.header_length = int(value)

    def on_body(self, part: bytes) -> None:
        self.body.append(part)

    def on_message_complete(self) -> None:
        body = self.body[0] if len(self.body) == 1 else b"".join(self.body)
        _, binary = bare_parse(body, self.header_length)
        out, length = bare_reply(Y, binary)
        kind = (
            b"application/octet-stream\r\ninference-header-content-length: %d" % length
            if length
            else b"application/json"
        )
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(out), out)
        )


# Ours, with an engine that has the answer at hand


class Model(ServedModel):
    name, version, state, reason, tested, platform = "mlp", "1", "READY", "", True, "onnx_onnxv1"

    def __init__(self) -> None:
        self.signature = SIGNATURE
        self.metadata = {}


class ReadyEngine(Engine):
    def __init__(self) -> None:
        self.model = Model()
        self.answer = {"y": Y}
        self.timing = Timing(0.0, 0.0, 1)

    def find(self, name: str, version: str | None = None) -> ServedModel:
        return self.model

    def models(self) -> tuple[ServedModel, ...]:
        return (self.model,)

    def submit(self, model: ServedModel, request: InferRequest) -> None:
        request.done(self.answer, self.timing)

    def cancel(self, model: ServedModel, request: InferRequest) -> None: ...

    @property
    def ready(self) -> bool:
        return True


class Host:
    def __init__(self) -> None:
        engine = ReadyEngine()
        self.router = Router()
        self.services = Services(engine, Metrics(engine.models), ServeSettings())
        for route in FRONTENDS.get("oip-rest")(self.services).routes():
            self.router.add(route.method, route.path, route.handle, route.scope)
        self.guard = Guard(True, (), ())
        self.limits = Limits(
            max_body_bytes=64 << 20,
            max_decompressed_bytes=64 << 20,
            max_header_bytes=64 << 10,
            max_streams=1024,
            idle_timeout_s=75.0,
        )
        self.methods: dict[bytes, Any] = {}
        self.heads: dict[bytes, Any] = {}
        self.draining = False
        self.date_line = b"date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        self.time = time.monotonic

    def opened(self, connection: Connection) -> int:
        return 0

    def closed(self, connection: Connection) -> None: ...

    def limit_hit(self, name: str) -> None: ...

    def hand_over(self, connection: Connection, transport: Any, data: bytes) -> None: ...


class Sink:
    """A transport that throws away what is written."""

    last = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: bytes) -> None:
        self.last = data


def http(body: bytes, header_length: int = 0) -> bytes:
    more = b"inference-header-content-length: %d\r\n" % header_length if header_length else b""
    return (
        b"POST /v2/models/mlp/infer HTTP/1.1\r\nhost: 127.0.0.1:8080\r\nuser-agent: h2load nghttp2/1.52.0\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b" % (len(body), more, body)
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--requests", type=int, default=4000)
    options = arguments.parse_args()

    described = {"name": "x", "shape": [1, IN], "datatype": "FP32"}
    text = msgspec.json.encode({"inputs": [{**described, "data": X.ravel().tolist()}]})
    head = msgspec.json.encode(
        {
            "inputs": [{**described, "parameters": {"binary_data_size": X.nbytes}}],
            "parameters": {"binary_data_output": True},
        }
    )
    binary = head + X.tobytes()
    codec = ModelCodec("mlp", "1", SIGNATURE)
    host = Host()

    def connection() -> tuple[Connection, Sink]:
        sink, made = Sink(), Connection(host)
        made.connection_made(sink)  # type: ignore[arg-type]
        return made, sink

    ours, sink = connection()
    uncached, _ = connection()
    bare = BareProtocol(Sink())
    heads = host.heads

    def forgetting(data: bytes) -> None:
        heads.clear()
        uncached.data_received(data)

    def our_codec(body: bytes, header_length: int | None) -> None:
        decoded = codec.decode(body, header_length)
        codec.encode(decoded, {"y": Y})

    def bare_codec(body: bytes, header_length: int) -> None:
        _, is_binary = bare_parse(body, header_length)
        bare_reply(Y, is_binary)

    cells: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "JSON decode": (lambda: bare_parse(text, 0), lambda: codec.decode(text, None)),
        "JSON codec": (lambda: bare_codec(text, 0), lambda: our_codec(text, None)),
        "JSON over HTTP": (lambda: bare.data_received(http_text), lambda: ours.data_received(http_text)),
        "JSON over HTTP, new head": (lambda: bare.data_received(http_text), lambda: forgetting(http_text)),
        "binary codec": (lambda: bare_codec(binary, len(head)), lambda: our_codec(binary, len(head))),
        "binary over HTTP": (lambda: bare.data_received(http_binary), lambda: ours.data_received(http_binary)),
    }
    http_text, http_binary = http(text), http(binary, len(head))
    ours.data_received(http_text)
    if b" 200 OK" not in sink.last or b'"model_name":"mlp"' not in sink.last:
        raise SystemExit(f"wrong answer: {sink.last!r}")

    print(f"{'CPU µs a request (best of rounds)':34} {'bare':>7} {'ours':>7} {'ratio, median (range)':>26}")
    for name, (theirs, own) in cells.items():
        pairs = [(measure(theirs, options.requests), measure(own, options.requests)) for _ in range(options.rounds)]
        ratios = sorted(b / a for a, b in pairs)
        least_bare, least_own = min(a for a, _ in pairs), min(b for _, b in pairs)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{name:34} {least_bare:7.2f} {least_own:7.2f} {spread:>26}")


def measure(function: Callable[[], Any], count: int) -> float:
    """CPU microseconds a call."""
    start = time.process_time()
    for _ in range(count):
        function()
    return (time.process_time() - start) / count * 1e6


if __name__ == "__main__":

    async def run() -> None:
        main()

    asyncio.run(run())
