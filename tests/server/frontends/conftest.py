"""A real server on a real socket, in a thread of its own, over small models made on the spot."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import uvloop
from onnx import TensorProto, helper

from salver.backends import open_session
from salver.backends._onnxruntime import OnnxRuntimeBackend
from salver.core.model import Blob, Model
from salver.server.engine.base import Engine
from salver.server.frontends import Frontend, Services
from salver.server.frontends.http.server import HttpServer
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import ServeSettings
from salver.testing.frontends import InlineEngine, SessionModel

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def write_identity(path: Path, datatype: str, shape: tuple[int | str, ...]) -> Path:
    """A model that gives its input back."""
    kind = ONNX_TYPES[datatype]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    return save(path, graph)


def write_linear(path: Path, seed: int = 1) -> Path:
    """``scores = softmax(x @ w)``, 4 in, 3 out."""
    w = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["scores"], axis=-1)],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 4))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ("batch", 3))],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    return save(path, graph)


def write_pair(path: Path) -> Path:
    """``total = a + b`` (FP32) and ``whole = a`` (INT64): two inputs, two outputs, a ragged dimension."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["a", "b"], ["total"]),
            helper.make_node("Cast", ["a"], ["whole"], to=TensorProto.INT64),
        ],
        "pair",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ("batch", "width")) for n in ("a", "b")],
        [
            helper.make_tensor_value_info("total", TensorProto.FLOAT, ("batch", "width")),
            helper.make_tensor_value_info("whole", TensorProto.INT64, ("batch", "width")),
        ],
    )
    return save(path, graph)


def save(path: Path, graph: onnx.GraphProto) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def served(name: str, path: Path, version: str = "1", labels: tuple[str, ...] = ()) -> SessionModel:
    blob = Blob.of(path)
    model = SessionModel(
        name, open_session(Model(format="onnx", signature=OnnxRuntimeBackend().describe(blob), blobs=(blob,))), version
    )
    if labels:
        outputs = tuple(msgspec.structs.replace(o, labels=labels) for o in model.signature.outputs)
        model.signature = msgspec.structs.replace(model.signature, outputs=outputs)
    return model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[SessionModel]:
    """``linear`` (labels), ``pair``, and ``id-<datatype>`` for every datatype."""
    folder = tmp_path_factory.mktemp("models")
    made = [
        served("linear", write_linear(folder / "linear.onnx"), labels=("cat", "dog", "bird")),
        served("linear", write_linear(folder / "linear2.onnx", 2), "2", labels=("cat", "dog", "bird")),
        served("pair", write_pair(folder / "pair.onnx")),
    ]
    for datatype in ONNX_TYPES:
        name = f"id-{datatype.lower()}"
        made.append(served(name, write_identity(folder / f"{name}.onnx", datatype, ("batch", "width"))))
    return made


@pytest.fixture
def engine(models: list[SessionModel]) -> InlineEngine:
    """One for each test, over sessions shared by all; whatever a test unloaded is back."""
    for model in models:
        model.state, model.reason = "READY", ""
    return InlineEngine(models)


@pytest.fixture
def services(engine: InlineEngine) -> Services:
    return Services(engine, Metrics(engine.models), ServeSettings())


class Answer:
    def __init__(self, status: int, fields: dict[str, str], body: bytes) -> None:
        self.status, self.fields, self.body = status, fields, body

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        message = self.json()
        assert list(message) == ["error"]
        return str(message["error"])


def read_all(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(1 << 16):
            data += part
    return data


def read_answer(sock: socket.socket, method: str = "POST", rest: bytes = b"") -> tuple[Answer, bytes]:
    """One answer from a connection that stays open, and what follows it."""
    data = rest
    while b"\r\n\r\n" not in data:
        part = sock.recv(1 << 16)
        assert part, f"closed after {data!r}"
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    answer = _head(head)
    length = 0 if method == "HEAD" else int(answer.fields.get("content-length", "0"))
    while len(body) < length:
        part = sock.recv(1 << 16)
        assert part, "closed inside a body"
        body += part
    answer.body = body[:length]
    return answer, body[length:]


def parse_answers(data: bytes, methods: list[str]) -> list[Answer]:
    answers = []
    for method in methods:
        head, blank, data = data.partition(b"\r\n\r\n")
        assert blank, f"no answer in {head!r}"
        answer = _head(head)
        length = 0 if method == "HEAD" else int(answer.fields.get("content-length", "0"))
        answer.body, data = data[:length], data[length:]
        assert len(answer.body) == length
        answers.append(answer)
    assert not data, f"left over: {data!r}"
    return answers


def _head(head: bytes) -> Answer:
    first, *lines = head.decode("latin-1").split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version == "HTTP/1.1"
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(status), fields, b"")


class Running:
    """A server in a thread."""

    read_answer = staticmethod(read_answer)
    parse_answers = staticmethod(parse_answers)

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop, metrics: Metrics) -> None:
        self.server = server
        self.loop = loop
        self.metrics = metrics
        self.address = server.address
        self.grpc_address = server.addresses[-1]

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function on the server's loop."""

        async def run() -> Any:
            result = function(*args)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def connect(self, timeout_s: float = 10) -> socket.socket:
        return socket.create_connection(self.address, timeout=timeout_s)

    def raw(self, data: bytes, timeout_s: float = 10) -> bytes:
        """Send bytes on a new connection; all that comes back until the server closes."""
        with self.connect(timeout_s) as sock:
            sock.sendall(data)
            return read_all(sock)

    def ask(self, method: str, path: str, body: bytes = b"", **fields: str) -> Answer:
        """One request on a connection of its own."""
        lines = {"Host": "127.0.0.1", "Connection": "close", **{k.replace("_", "-"): v for k, v in fields.items()}}
        if body or method == "POST":
            lines.setdefault("Content-Length", str(len(body)))
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
        return parse_answers(self.raw(head.encode() + body), [method])[0]


@contextlib.contextmanager
def run_server(
    engine: Engine, frontends: Sequence[str | type[Frontend]] | None = None, **settings: Any
) -> Iterator[Running]:
    metrics = Metrics(engine.models)
    server = HttpServer(frontends)
    ready: list[Any] = []
    started = threading.Event()
    stop: list[asyncio.Event] = []

    async def main() -> None:
        stop.append(asyncio.Event())
        try:
            await server.start(engine, metrics, ServeSettings(**{"http": "127.0.0.1:0", **settings}))
            ready.append(asyncio.get_running_loop())
        finally:
            started.set()
        await stop[0].wait()
        await server.drain(1.0)

    thread = threading.Thread(target=uvloop.run, args=(main(),))
    thread.start()
    assert started.wait(10)
    assert ready
    try:
        yield Running(server, ready[0], metrics)
    finally:
        ready[0].call_soon_threadsafe(stop[0].set)
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def serve() -> Callable[..., contextlib.AbstractContextManager[Running]]:
    """Run a server over an engine of one's own: ``with serve(engine, max_body_bytes=100) as server``."""
    return run_server


@pytest.fixture
def start(engine: InlineEngine) -> Callable[..., contextlib.AbstractContextManager[Running]]:
    """Start a server with settings of its own: ``with start(max_body_bytes=100) as server``."""
    return lambda **settings: run_server(engine, **settings)


@pytest.fixture
def server(engine: InlineEngine) -> Iterator[Running]:
    with run_server(engine) as running:
        yield running


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], None]:
    """Wait for something that happens on another thread."""

    def wait(condition: Callable[[], Any]) -> None:
        event = threading.Event()
        for _ in range(500):
            if condition():
                return
            event.wait(0.02)
        raise AssertionError("it did not happen within 10 s")

    return wait
