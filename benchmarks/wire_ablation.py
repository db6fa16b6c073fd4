"""What each optimization of the request path saves: the server as it is, and with one of them undone at a time; and
what others cost or save that were tried and dropped.

    python benchmarks/wire_ablation.py [--rounds 5] [--seconds 1] [--only NAME,...]

A tiny network, one row a request, 32 requests in flight over real sockets; the server's CPU per request (its process's
user and system time, from /proc), all variants in turn in each round, medians over rounds. `x` is the cost without the
optimization over the cost with it. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from salver.server import _loop, app
from salver.server.engine import served
from salver.server.frontends.http import _connection
from salver.server.frontends.http2 import connection as http2_connection
from salver.server.frontends.http2.connection import Http2Connection
from salver.server.frontends.oip.codec import ModelCodec
from salver.server.frontends.oip.grpc_shortcut import Templates
from salver.wire.http2 import Envelope, Stream, _hpack, encode_block, reader
from salver.wire.http2.frames import PREFACE, frame
from salver.wire.http2.sender import Sender
from salver.wire.protos import ProtoSet

IN_FLIGHT = 32
PATIENCE_S = 10.0
WIDTH, CLASSES = 64, 10
TICKS = os.sysconf("SC_CLK_TCK")


def undo_heads() -> None:
    _connection._MAX_CACHED_HEAD_BYTES = 0


def undo_shortcut() -> None:
    ModelCodec._choose_fast = lambda _: None


def undo_inline() -> None:
    served.INLINE_S = 0.0


def undo_gc() -> None:
    app._GC_THRESHOLDS = (700, 10, 10)
    gc.freeze = lambda: None


def undo_uvloop() -> None:
    _loop._make = asyncio.new_event_loop


def undo_blocks() -> None:
    _hpack._MAX_CACHED_BYTES = -1


def undo_templates() -> None:
    Templates.learn = lambda *_: None


def undo_one_write() -> None:
    Http2Connection.wrote = lambda self: None if self._is_corked else self._flush()


def undo_joined_answer() -> None:
    def answer(self: Sender, stream: Stream, envelope: Envelope, data: bytes) -> bool:
        self.headers(stream, envelope.headers, False)
        self.data(stream, data, False)
        return self.headers(stream, envelope.trailers, True)

    Sender.answer = answer


def undo_turn() -> None:
    def kick_soon(self: served.LoadedModel) -> None:
        self._kick()

    served.LoadedModel._kick_soon = kick_soon


def try_writelines() -> None:
    http2_connection._JOIN_BYTES = 0


def try_no_gc() -> None:
    gc.set_threshold = lambda *_: gc.disable()


def try_no_copy() -> None:
    """Parts of a read as views rather than bytes, from the smallest on."""
    reader._VIEW_BYTES = 0


HTTP, GRPC = ("json", "binary"), ("grpc",)
VARIANTS: dict[str, tuple[str, Callable[[], None], tuple[str, ...], tuple[str, ...]]] = {
    "as-it-is": ("everything", lambda: None, (), (*HTTP, *GRPC)),
    "heads": ("request heads seen before are looked up, not parsed", undo_heads, (), HTTP),
    "typed-json": ("common JSON and binary requests are decoded in one typed pass", undo_shortcut, (), HTTP),
    "header-blocks": ("HPACK blocks seen before are looked up", undo_blocks, (), GRPC),
    "messages": ("protobuf around the tensor seen before is compared, not parsed", undo_templates, (), GRPC),
    "one-write": ("HTTP/2 answers of one turn of the loop leave in one write", undo_one_write, (), GRPC),
    "joined-answer": ("headers, message and trailers are one piece", undo_joined_answer, (), GRPC),
    "inline": ("cheap batches run on the event loop", undo_inline, (), (*HTTP, *GRPC)),
    "turn": ("a batch begins when all that has come is read", undo_turn, (), (*HTTP, *GRPC)),
    "batching": ("what waits is one batch", lambda: None, ("--max-batch", "1"), (*HTTP, *GRPC)),
    "gc": ("what is loaded is not walked by the garbage collector", undo_gc, (), (*HTTP, *GRPC)),
    "uvloop": ("uvloop", undo_uvloop, (), (*HTTP, *GRPC)),
}
TRIED: dict[str, tuple[str, Callable[[], None], tuple[str, ...], tuple[str, ...]]] = {
    "writelines": ("HTTP/2 frames of a turn are handed on one by one, not joined", try_writelines, (), GRPC),
    "no-gc": ("no garbage collection at all", try_no_gc, (), (*HTTP, *GRPC)),
    "no-copy": ("HTTP/2 bodies are views of what was read, however small", try_no_copy, (), GRPC),
    "batch-128": ("batches of up to 128 rows", lambda: None, ("--max-batch", "128"), (*HTTP, *GRPC)),
}
"""What was tried, and is not in the server."""

ALL = VARIANTS | TRIED


def save_model(path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((WIDTH, CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


class Server:
    """A server process with one optimization undone."""

    def __init__(self, variant: str, model: Path) -> None:
        command = [sys.executable, __file__, "--serve", variant, "--model", str(model)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = ""
        while "ready on" not in line:
            line = self.process.stderr.readline()
            assert line, f"{variant}: the server did not start"
        self.http, self.grpc = (int(port) for port in re.findall(r":(\d+)\b", line)[-2:])

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


class HttpLoad:
    """One request in flight on each of several connections."""

    def __init__(self, server: Server, binary: bool) -> None:
        values = np.arange(WIDTH, dtype=np.float32) / 7
        given = {"name": "x", "shape": [1, WIDTH], "datatype": "FP32"}
        if binary:
            given["parameters"] = {"binary_data_size": values.nbytes}
            head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
            body, field = head + values.tobytes(), f"Inference-Header-Content-Length: {len(head)}\r\n"
        else:
            body, field = json.dumps({"inputs": [given | {"data": values.tolist()}]}).encode(), ""
        head = f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: localhost\r\n{field}Content-Length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self.sockets = [socket.create_connection(("127.0.0.1", server.http)) for _ in range(IN_FLIGHT)]
        for connected in self.sockets:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self, seconds: float) -> int:
        poll = select.epoll()
        by_number = {connected.fileno(): connected for connected in self.sockets}
        for number, connected in by_number.items():
            poll.register(number, select.EPOLLIN)
            connected.sendall(self.request)
        done, end, waiting = 0, time.monotonic() + seconds, IN_FLIGHT
        while waiting:
            events = poll.poll(PATIENCE_S)
            assert events, "the server does not answer"
            for number, _ in events:
                answer = by_number[number].recv(65536)
                assert answer.startswith(b"HTTP/1.1 200"), answer
                done += 1
                if time.monotonic() < end:
                    by_number[number].sendall(self.request)
                else:
                    waiting -= 1
        return done

    def close(self) -> None:
        for connected in self.sockets:
            connected.close()


class GrpcLoad:
    """Several requests in flight on one connection, as a channel of grpcio has them."""

    def __init__(self, server: Server) -> None:
        protos = ProtoSet("oip")
        message = protos.message("inference.ModelInferRequest")(model_name="tiny")
        message.inputs.add(name="x", datatype="FP32", shape=[1, WIDTH])
        message.raw_input_contents.append((np.arange(WIDTH, dtype=np.float32) / 7).tobytes())
        data = message.SerializeToString()
        self.body = b"\0" + len(data).to_bytes(4) + data
        self.block = encode_block(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
                (b":authority", b"localhost"),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"user-agent", b"wire-ablation"),
            ]
        )
        self.socket = socket.create_connection(("127.0.0.1", server.grpc), PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        window = (1 << 30).to_bytes(4)
        self.socket.sendall(PREFACE + frame(4, 0, 0, b"\x00\x04" + window) + frame(8, 0, 0, window))
        self.next_id = 1
        self.rest = b""

    def _requests(self, count: int) -> bytes:
        parts = []
        for _ in range(count):
            parts += (frame(1, 4, self.next_id, self.block), frame(0, 1, self.next_id, self.body))
            self.next_id += 2
        return b"".join(parts)

    def run(self, seconds: float) -> int:
        self.socket.sendall(self._requests(IN_FLIGHT))
        done, end, waiting = 0, time.monotonic() + seconds, IN_FLIGHT
        while waiting:
            ended = self._read()
            done += ended
            if time.monotonic() < end:
                self.socket.sendall(self._requests(ended))
            else:
                waiting -= ended
        return done

    def _read(self) -> int:
        data = self.rest + self.socket.recv(1 << 18)
        at = ended = 0
        while len(data) - at >= 9 and len(data) - at >= 9 + int.from_bytes(data[at : at + 3]):
            kind, flags = data[at + 3], data[at + 4]
            assert kind not in (3, 7), "the server reset a stream or went away"
            ended += kind == 1 and flags & 1
            at += 9 + int.from_bytes(data[at : at + 3])
        self.rest = data[at:]
        return ended

    def close(self) -> None:
        self.socket.close()


def measure(server: Server, wire: str, seconds: float) -> float:
    """Microseconds of the server's CPU per request."""
    load = GrpcLoad(server) if wire == "grpc" else HttpLoad(server, wire == "binary")
    load.run(0.2)
    began = server.cpu_s()
    done = load.run(seconds)
    spent = server.cpu_s() - began
    load.close()
    return spent / done * 1e6


@contextmanager
def serving(names: list[str], model: Path) -> Iterator[dict[str, Server]]:
    servers = {name: Server(name, model) for name in names}
    try:
        yield servers
    finally:
        for server in servers.values():
            server.process.terminate()
            server.process.wait()
            server.process.stderr.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _, undo, flags, _ = ALL[options.serve]
        undo()
        settings = {"max_batch": int(flags[1])} if flags else {}
        app.serve(options.model, http="127.0.0.1:0", grpc="127.0.0.1:0", log_level="error", **settings)
        return
    wanted = options.only.split(",") if options.only else list(ALL)
    names = ["as-it-is", *(name for name in ALL if name in wanted and name != "as-it-is")]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny.onnx"
        save_model(model)
        costs: dict[tuple[str, str], list[float]] = {}
        with serving(names, model) as servers:
            for _ in range(options.rounds):
                for name, server in servers.items():
                    for wire in ALL[name][3]:
                        costs.setdefault((name, wire), []).append(measure(server, wire, options.seconds))
    for heading, table in (("kept: the cost without it", VARIANTS), ("dropped: the cost with it", TRIED)):
        print(f"\n| {heading} | JSON, us | binary, us | gRPC, us |\n|---|---|---|---|")
        show([name for name in names if name in table], costs)


def show(names: list[str], costs: dict[tuple[str, str], list[float]]) -> None:
    base = {wire: statistics.median(costs["as-it-is", wire]) for wire in (*HTTP, *GRPC)}
    for name in names:
        cells = []
        for wire in (*HTTP, *GRPC):
            found = costs.get((name, wire))
            if found is None:
                cells.append("")
            else:
                cost = statistics.median(found)
                cells.append(f"{cost:.1f}" + ("" if name == "as-it-is" else f" (x{cost / base[wire]:.2f})"))
        print(f"| {'the server as it is' if name == 'as-it-is' else ALL[name][0]} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
