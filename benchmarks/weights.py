"""What another process costs in memory, and how fast it runs, with weights of its own and with shared ones.

    python benchmarks/weights.py [model.onnx ...] --processes 3

Without a model it makes one of twelve dense layers, 192 MiB. Each process loads the model as a worker does and runs it;
then the proportional set size of all is read, less what it was before the load. "mapped, packed" is
`salver serve --share-weights`; "mapped, not packed" is what ONNX Runtime shares with `session.disable_prepacking`, for
comparison. Speeds are medians, and ratios to private weights of the same run; processes are timed one after another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from salver.backends import Session, SessionOptions, open_session
from salver.core.arrays import Array
from salver.core.model import Model
from salver.server.engine.memory import give_back
from salver.server.engine.repository import open_model

KINDS = ("private", "mapped, packed", "mapped, not packed")
BATCHES = (1, 8)
RUNS = 15
TEXT_LENGTH = 32


class Unpacked:
    """The file that shared weights are mapped from, without its packed weights."""

    def __init__(self, model: Model, folder: Path) -> None:
        open_session(model, SessionOptions(shared_weights=str(folder))).close()
        (path,) = folder.glob("*/model.onnx")
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.add_session_config_entry("session.disable_prepacking", "1")
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def run(self, inputs: dict[str, Array]) -> list[Any]:
        return list(self._session.run(None, inputs))


def make_model(path: Path) -> Path:
    size, layers = 2048, 12
    random = np.random.default_rng(0)
    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", size])],
        [
            numpy_helper.from_array((random.normal(size=(size, size)) / size**0.5).astype(np.float32), f"w{i}")
            for i in range(layers)
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def inputs_of(model: Model, rows: int) -> dict[str, Array]:
    made: dict[str, Array] = {}
    for spec in model.signature.inputs:
        shape = [rows, *(dim if isinstance(dim, int) else TEXT_LENGTH for dim in spec.shape[1:])]
        made[spec.name] = np.ones(shape, spec.dtype)
    return made


def pss_mib() -> float:
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(text.split("\nPss:", 1)[1].split()[0]) / 1024


def median_ms(session: Session | Unpacked, inputs: dict[str, Array]) -> float:
    session.run(inputs)
    laps = []
    for _ in range(RUNS):
        started = time.perf_counter()
        session.run(inputs)
        laps.append(time.perf_counter() - started)
    return statistics.median(laps) * 1e3


def worker(path: Path, kind: str, folder: Path) -> None:
    """One process: loads and times on the first line that comes, says its memory on the second, ends with the third."""
    model = open_model(path, path.stem).model
    give_back()
    before = pss_mib()
    session: Session | Unpacked
    sys.stdin.readline()
    started = time.perf_counter()
    if kind == "mapped, not packed":
        session = Unpacked(model, folder)
    else:
        session = open_session(model, SessionOptions(shared_weights=str(folder) if kind == "mapped, packed" else ""))
    load_s = time.perf_counter() - started
    times = [median_ms(session, inputs_of(model, rows)) for rows in BATCHES]
    print(json.dumps({"load_s": load_s, "times": times}), flush=True)
    sys.stdin.readline()
    give_back()
    print(pss_mib() - before, flush=True)
    sys.stdin.readline()


def measure(path: Path, kind: str, folder: Path, processes: int) -> dict[str, Any]:
    command = [sys.executable, __file__, str(path), "--worker", kind, "--folder", str(folder)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]

    def ask(process: subprocess.Popen[str]) -> Any:
        if process.stdin is None or process.stdout is None:
            raise SystemExit("a worker has no pipes")
        print(file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    try:
        found = [ask(process) for process in started]
        memory = [ask(process) for process in started]
    finally:
        for process in started:
            process.communicate("\n")
    return {
        "mib": statistics.mean(memory),
        "load_s": statistics.median(one["load_s"] for one in found[1:] or found),
        "times": [statistics.median(one["times"][i] for one in found) for i in range(len(BATCHES))],
    }


def show(path: Path, processes: int) -> None:
    print(f"{path.name}, {path.stat().st_size / (1 << 20):.0f} MiB, {processes} processes")
    print(f"{'weights':20} {'MiB each':>9} {'load s':>7}" + "".join(f"  {f'batch {rows}':>17}" for rows in BATCHES))
    base: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            found = measure(path, kind, Path(folder) / "weights", processes)
            base = base or found["times"]
            cells = "".join(
                f"  {ms:8.2f} ms {first / ms:4.2f}x" for ms, first in zip(found["times"], base, strict=True)
            )
            print(f"{kind:20} {found['mib']:9.0f} {found['load_s']:7.2f}{cells}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--worker", default="", choices=("", *KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=Path(), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.models[0], given.worker, given.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in given.models or [make_model(Path(folder) / "dense.onnx")]:
            show(path, given.processes)


if __name__ == "__main__":
    main()
