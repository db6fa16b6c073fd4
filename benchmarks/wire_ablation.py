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
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import networks
import numpy as np
from load import WIRES, cost_us

from salver.core.arrays import Array
from salver.server import _loop, app, launch
from salver.server.engine import served
from salver.server.frontends.http import _reader
from salver.server.frontends.http.guard import Guard
from salver.server.frontends.http.shared import NO_HEAD
from salver.server.frontends.http2 import connection as http2_connection
from salver.server.frontends.http2.connection import Http2Connection
from salver.server.frontends.lookup import Lookup
from salver.server.frontends.oip import grpc_shortcut, shortcut
from salver.server.frontends.oip.codec import ModelCodec
from salver.server.frontends.oip.grpc_shortcut import Templates
from salver.wire.http2 import Envelope, Stream, _hpack, reader
from salver.wire.http2.sender import Sender


def undo_heads() -> None:
    _reader._MAX_CACHED_HEAD_BYTES = 0


def undo_last_head() -> None:
    _reader.RequestReader._head = property(lambda _: NO_HEAD, lambda *_: None)


def undo_open_scopes() -> None:
    Guard.anonymous = property(lambda _: frozenset(), lambda *_: None)


def undo_lines() -> None:
    Lookup.__missing__ = lambda self, key: self._make(key)


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
        self.data(stream, envelope.prefix(len(data)) + data, False)
        return self.headers(stream, envelope.trailers, True)

    Sender.answer = answer


def undo_turn() -> None:
    def kick_soon(self: served.LoadedModel) -> None:
        self._dispatch()

    served.LoadedModel._kick_soon = kick_soon


def undo_gathering() -> None:
    def kick(self: served.LoadedModel) -> None:
        self._kicked = False
        self._dispatch()

    served.LoadedModel._kick = kick


def undo_packed() -> None:
    def array(dtype: np.dtype, shape: tuple[int, ...], data: bytes) -> Array:
        return np.ndarray(shape, dtype, data)

    shortcut.Packed = grpc_shortcut.Packed = array


def try_writelines() -> None:
    http2_connection._JOIN_BYTES = 0


def try_no_gc() -> None:
    gc.set_threshold = lambda *_: gc.disable()


def try_no_copy() -> None:
    """Parts of a read as views rather than bytes, from the smallest on."""
    reader._VIEW_BYTES = 0


HTTP, GRPC = ("JSON", "binary"), ("gRPC",)
VARIANTS: dict[str, tuple[str, Callable[[], None], tuple[str, ...], tuple[str, ...]]] = {
    "as-it-is": ("everything", lambda: None, (), (*HTTP, *GRPC)),
    "heads": ("request heads seen before are looked up, not parsed", undo_heads, (), HTTP),
    "last-head": ("a head like the connection's last one is compared, not looked up", undo_last_head, (), HTTP),
    "open-scopes": ("where everybody may call, callers are not checked", undo_open_scopes, (), (*HTTP, *GRPC)),
    "lines": ("header lines with lengths are made once per length", undo_lines, (), HTTP),
    "typed-json": ("common JSON and binary requests are decoded in one typed pass", undo_shortcut, (), HTTP),
    "header-blocks": ("HPACK blocks seen before are looked up", undo_blocks, (), GRPC),
    "messages": ("protobuf around the tensor seen before is compared, not parsed", undo_templates, (), GRPC),
    "one-write": ("HTTP/2 answers of one turn of the loop leave in one write", undo_one_write, (), GRPC),
    "joined-answer": ("headers, message and trailers are one piece", undo_joined_answer, (), GRPC),
    "inline": ("cheap batches run on the event loop", undo_inline, (), (*HTTP, *GRPC)),
    "turn": ("a batch begins when all that has come is read", undo_turn, (), (*HTTP, *GRPC)),
    "gathering": ("a batch waits a turn of the loop more while requests come", undo_gathering, (), (*HTTP, *GRPC)),
    "packed": ("small tensors stay bytes until their batch is made", undo_packed, (), (*HTTP, *GRPC)),
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


def measure(server: Server, wire: str, seconds: float) -> float:
    """Microseconds of the server's CPU per request."""
    load = WIRES[wire](server.http, server.grpc)
    cost = cost_us(load, server.process.pid, seconds)
    load.close()
    return cost


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
        launch.serve(options.model, http="127.0.0.1:0", grpc="127.0.0.1:0", log_level="error", **settings)
        return
    wanted = options.only.split(",") if options.only else list(ALL)
    names = ["as-it-is", *(name for name in ALL if name in wanted and name != "as-it-is")]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "mlp.onnx"
        networks.mlp(model)
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
