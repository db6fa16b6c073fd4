"""`salver serve` in a process tree of its own, over a folder of models that change while it runs."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import environments
import numpy as np
import onnx
import onnxruntime as ort
import process_tree
from environments import Command
from onnx import TensorProto, helper, numpy_helper

START_S = 120.0
LOAD_S = 120.0
MARK = "mark"


class Server(NamedTuple):
    """A running server."""

    process: environments.Process
    http: str
    grpc: str

    @property
    def pid(self) -> int:
        """Of the server, or of its supervisor."""
        return self.process.popen.pid

    def said(self) -> str:
        """All that it said."""
        return self.process.said.read_text(errors="replace")

    def ready_workers(self) -> set[int]:
        """Workers that said that they take requests, and live."""
        told = {int(pid) for pid in re.findall(r"\(process (\d+)\) takes requests", self.said())}
        return told & set(process_tree.workers(self.pid))

    def load(self, model: str) -> tuple[int, str]:
        """Ask it to take what the folder holds now; status and body of its answer."""
        return ask(self.http, f"/v2/repository/models/{model}/load", {}, LOAD_S)


def serve(stack: ExitStack, folder: Path, models: Path, arguments: Sequence[str]) -> Server:
    """Start a server over `models`; it ends with the stack.

    Args:
        folder: where it writes what it says.
    """
    ports = [environments.free_port(), environments.free_port()]
    line = [sys.executable, "-m", "salver", "serve", str(models), *arguments]
    line += ["--http", f"127.0.0.1:{ports[0]}", "--grpc", f"127.0.0.1:{ports[1]}"]
    process = stack.enter_context(environments.running(Command(line, {}), folder))
    end_s = time.monotonic() + START_S
    while "ready on" not in process.said.read_text(errors="replace"):
        if process.popen.poll() is not None or time.monotonic() > end_s:
            sys.exit(f"the server did not start: {process.last_words()}")
        time.sleep(0.02)
    return Server(process, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")


def ask(address: str, path: str, body: Any, timeout_s: float = 30.0) -> tuple[int, str]:
    """One request over a connection of its own; status and body."""
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        connection.request("POST", path, json.dumps(body), {"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def fetch(address: str, path: str) -> str:
    """What a GET gives."""
    with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
        return answer.read().decode()


class Swapped:
    """A model's folder, whose network is written anew: the same answers `y`, and another number in `mark`.

    Args:
        source: the network, with inputs and outputs whose first dimension is the batch.
        model: the folder to be.
    """

    def __init__(self, source: Path, model: Path) -> None:
        self.folder = model
        self.mark = 0
        self.version = 1
        self._network = onnx.load(source)
        self._source = source
        _add_mark(self._network.graph)
        (model / "1").mkdir(parents=True)
        self._write()

    def example(self, rows: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of its input `x`, whole numbers up to `most` where it takes such, and of its output `y` for them."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(self._source, options, providers=["CPUExecutionProvider"])
        given, rng = session.get_inputs()[0], np.random.default_rng(0)
        shape = [rows, *given.shape[1:]]
        x = rng.integers(0, most, shape) if "int" in given.type else rng.standard_normal(shape).astype(np.float32)
        return x, np.concatenate([session.run(["y"], {"x": row[None]})[0] for row in x])

    def replace(self) -> None:
        """The next contents: every other time in the same version, else as the next one."""
        self.mark += 1
        self.version += self.mark % 2
        (self.folder / str(self.version)).mkdir(exist_ok=True)
        self._write()

    def corrupt(self, bundle: bool = False) -> None:
        """A next version that no runtime reads, or a bundle that is none."""
        broken = self.folder / str(self.version + 1)
        broken.mkdir()
        name = "model.salver" if bundle else "model.onnx"
        (broken / name).write_bytes(self._network.SerializeToString()[:1000])

    def tidy(self) -> None:
        """Take all other versions away."""
        for each in self.folder.iterdir():
            if each.name.isdigit() and int(each.name) != self.version:
                shutil.rmtree(each)

    def _write(self) -> None:
        [value] = [each for each in self._network.graph.initializer if each.name == MARK + "_value"]
        value.CopyFrom(numpy_helper.from_array(np.array(self.mark, np.float32), value.name))
        fresh = self.folder.parent.parent / "model.onnx"
        onnx.save(self._network, fresh)
        fresh.replace(self.folder / str(self.version) / "model.onnx")


def _add_mark(graph: Any) -> None:
    """An output `mark` [batch, 1] that is one number, whatever the input."""
    value = numpy_helper.from_array(np.array(0, np.float32), MARK + "_value")
    zero = numpy_helper.from_array(np.array(0, np.float32), MARK + "_zero")
    one = numpy_helper.from_array(np.array([1], np.int64), MARK + "_axis")
    graph.initializer.extend([value, zero, one])
    graph.node.extend(
        [
            helper.make_node("Flatten", ["x"], [MARK + "_flat"], axis=1),
            helper.make_node("Cast", [MARK + "_flat"], [MARK + "_real"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", [MARK + "_real", one.name], [MARK + "_sum"], keepdims=1),
            helper.make_node("Mul", [MARK + "_sum", zero.name], [MARK + "_none"]),
            helper.make_node("Add", [MARK + "_none", value.name], [MARK]),
        ]
    )
    graph.output.append(helper.make_tensor_value_info(MARK, TensorProto.FLOAT, ["batch", 1]))
