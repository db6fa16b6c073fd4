"""What a request costs the server: Salver beside FastAPI tuned by hand, in one run.

    pip install fastapi 'uvicorn[standard]' orjson    # the peer
    apt-get install nghttp2-client                    # h2load, the load
    python benchmarks/serve_overhead.py

A tiny network (64-64-32-10), one row of JSON a request, 32 connections. Rounds alternate between the servers. The
figure is CPU time of the server process per completed request (user and system, from /proc), which does not depend on
how deep the queue is; cold start is from process start to the first right answer; memory is the proportional set size.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

TICK = os.sysconf("SC_CLK_TCK")
HERE = Path(__file__).resolve().parent


def write_model(path: Path) -> None:
    """A multi-layer perceptron with random weights."""
    rng, sizes, nodes, weights, name = np.random.default_rng(0), (64, 64, 32, 10), [], [], "x"
    for i, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        last = i == len(sizes) - 2
        weights.append(numpy_helper.from_array(rng.normal(0, rows**-0.5, (rows, columns)).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{i}"], ["y" if last else f"m{i}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"]))
        name = f"r{i}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "mlp", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


class Server:
    """One server process, started and asked until it gives the right answer."""

    def __init__(self, name: str, model: Path, body: bytes, expected: np.ndarray[Any, Any]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v2/models/mlp/infer"
        command = {
            "salver": [*("-m", "salver", "serve", model), *("--name", "mlp", "--http", f"127.0.0.1:{port}")],
            "fastapi": [
                *("-m", "uvicorn", "fastapi_peer:app", "--port", port, "--loop", "uvloop", "--http", "httptools"),
                "--no-access-log",
                "--log-level",
                "warning",
                "--app-dir",
                HERE,
            ],
        }[name]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, "BENCH_MODEL": str(model)},
            stderr=subprocess.DEVNULL,
        )
        while True:
            try:
                with urllib.request.urlopen(urllib.request.Request(self.url, data=body), timeout=5) as answer:
                    got = np.array(json.loads(answer.read())["outputs"][0]["data"])
                break
            except (urllib.error.URLError, ConnectionError) as error:
                if self.process.poll() is not None or time.perf_counter() - began > 60:
                    sys.exit(f"{name} did not start: {error}")
                time.sleep(0.01)
        self.cold_s = time.perf_counter() - began
        if not np.allclose(got, expected.ravel(), atol=1e-4):
            sys.exit(f"{name} gave a wrong answer")

    def cpu_s(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def pss_mib(self) -> float:
        """Proportional set size."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
        return int(found[1]) / 1024 if found else float("nan")

    def load(self, body: Path, requests: int, connections: int) -> float:
        """CPU microseconds per request."""
        before = self.cpu_s()
        command = ["h2load", "--h1", "-t1", f"-n{requests}", f"-c{connections}", "-d", str(body), self.url]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        done = re.search(r"(\d+) 2xx", shown)
        if not done or int(done[1]) != requests:
            sys.exit(f"not every request was answered with 200:\n{shown}")
        return (self.cpu_s() - before) / requests * 1e6

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(20)


def main() -> None:
    """Run the rounds and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    if shutil.which("h2load") is None:
        sys.exit("h2load is missing: apt-get install nghttp2-client")
    found: dict[str, dict[str, list[float]]] = {n: {"cpu": [], "cold": [], "pss": []} for n in ("salver", "fastapi")}
    with tempfile.TemporaryDirectory() as scratch:
        model, body = Path(scratch) / "mlp.onnx", Path(scratch) / "body.json"
        write_model(model)
        x = np.random.default_rng(1).random((1, 64)).round(4).astype(np.float32)
        tensor = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [round(float(v), 4) for v in x.ravel()]}
        body.write_text(json.dumps({"inputs": [tensor]}, separators=(",", ":")))
        expected = ort.InferenceSession(model).run(None, {"x": x})[0]
        for _ in range(options.rounds):
            for name, figures in found.items():
                server = Server(name, model, body.read_bytes(), expected)
                server.load(body, options.requests // 5, options.connections)
                figures["cpu"].append(server.load(body, options.requests, options.connections))
                figures["cold"].append(server.cold_s)
                figures["pss"].append(server.pss_mib())
                server.stop()
    print("| | CPU per request, us | cold start, s | PSS, MiB |\n|---|---|---|---|")
    medians = {n: {k: statistics.median(v) for k, v in figures.items()} for n, figures in found.items()}
    for name, row in medians.items():
        print(f"| {name} | {row['cpu']:.1f} | {row['cold']:.2f} | {row['pss']:.0f} |")
    ratio = {k: medians["salver"][k] / medians["fastapi"][k] for k in ("cpu", "cold", "pss")}
    print(f"| **ratio** | **{ratio['cpu']:.2f}** | **{ratio['cold']:.2f}** | **{ratio['pss']:.2f}** |")


if __name__ == "__main__":
    main()
