"""How much Python a request is: bytecodes and calls of Salver's own code, per function, counted while it serves.

    python benchmarks/bytecodes.py [JSON|binary|gRPC ...] [--functions 20] [--seconds 2]

Counts do not depend on how busy a machine is, as times do: they tell what a change of the request path saves where
times would say nothing. What C code does between two bytecodes (numpy, ONNX Runtime, the event loop, the kernel) is not
in them. A tiny network, one row a request, 32 requests in flight over real sockets; the server on this thread, the load
on another.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import networks
from load import WIRES, Load

import salver
from salver.server import _loop
from salver.server.app import Server
from salver.server.engine import served
from salver.server.settings import ServeSettings

OURS = str(Path(salver.__file__).parent)


class Counts:
    """Counts what this thread runs of Salver's while it is entered."""

    def __init__(self) -> None:
        self.bytecodes: Counter[CodeType] = Counter()
        self.calls: Counter[CodeType] = Counter()

    def __enter__(self) -> Counts:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if event == "call":
            if not code.co_filename.startswith(OURS):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self.calls[code] += 1
        elif event == "opcode":
            self.bytecodes[code] += 1
        return self._trace


async def count(load: Load, seconds: float) -> tuple[Counts, int]:
    """Load this process; what it ran, and the number of requests."""
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, load.run, 0.3)
    with Counts() as counts:
        done = await loop.run_in_executor(None, load.run, seconds)
    return counts, done


def show(wire: str, counts: Counts, requests: int, functions: int) -> None:
    bytecodes, calls = counts.bytecodes.total() / requests, counts.calls.total() / requests
    print(f"{wire}: {bytecodes:.0f} bytecodes and {calls:.1f} calls a request")
    for code, number in counts.bytecodes.most_common(functions):
        place = f"{Path(code.co_filename).relative_to(OURS)}:{code.co_firstlineno}"
        print(f"{number / requests:9.1f} {counts.calls[code] / requests:6.2f}  {code.co_qualname}  ({place})")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wires", nargs="*", default=list(WIRES))
    parser.add_argument("--functions", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    served.INLINE_S = 1.0  # traced runs are slow, and must not leave the event loop for it
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "mlp.onnx"
        networks.mlp(model)
        server = Server(ServeSettings(sources=(str(model),), http="127.0.0.1:0", grpc="127.0.0.1:0"))
        ready = asyncio.Event()
        running = asyncio.ensure_future(server.run(ready.set))
        await ready.wait()
        http, grpc = (int(port) for port in re.findall(r":(\d+)\b", " ".join(server.http.addresses)))
        for wire in options.wires:
            load = await asyncio.to_thread(WIRES[wire], http, grpc)
            counts, requests = await count(load, options.seconds)
            load.close()
            show(wire, counts, requests, options.functions)
        server.request_stop()
        await running


if __name__ == "__main__":
    loop = _loop.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
