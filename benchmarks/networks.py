"""Networks that benchmarks serve, written with random weights: what a run costs depends on shapes and not on values.

    python benchmarks/networks.py minilm minilm.onnx

| name | input | output | a stand-in for |
|---|---|---|---|
| `mlp` | `x` FP32 [batch, 64] | `y` FP32 [batch, 10] | the smallest of networks: what is measured is the server |
| `minilm` | `x` INT64 [batch, 32] | `y` FP32 [batch, 384] | all-MiniLM-L6-v2: 6 layers, hidden size 384, 12 heads |
| `resnet50` | `x` FP32 [batch, 3, 224, 224] | `y` FP32 [batch, 1000] | ResNet-50, from the onnx package |
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET: Final = 17
MLP_SIZES: Final = (64, 64, 32, 10)
TOKENS: Final = 32
_VOCABULARY, _HIDDEN, _HEADS, _WIDE, _LAYERS = 30522, 384, 12, 1536, 6
_LIGHT_RESNET = "backend/test/data/light/light_resnet50.onnx"


class _Graph:
    """Nodes and weights, as they are added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._rng = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        """Random values that keep the size of what they are multiplied with."""
        return self.constant((self._rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32))

    def constant(self, values: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        name = to or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def linear(self, x: str, given: int, gives: int) -> str:
        return self.add("Add", self.add("MatMul", x, self.weight(given, gives)), self.weight(gives))

    def normalize(self, x: str) -> str:
        scale, shift = np.ones(_HIDDEN, np.float32), np.zeros(_HIDDEN, np.float32)
        return self.add("LayerNormalization", x, self.constant(scale), self.constant(shift), axis=-1)

    def save(self, name: str, path: Path, x: tuple[int, list[Any]], y: list[Any]) -> None:
        inputs = [helper.make_tensor_value_info("x", x[0], ["batch", *x[1]])]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *y])]
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.weights)
        opset = [helper.make_opsetid("", OPSET)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def mlp(path: Path) -> None:
    """Two hidden layers."""
    graph, last = _Graph(), "x"
    for given, gives in itertools.pairwise(MLP_SIZES):
        ends = gives == MLP_SIZES[-1]
        last = graph.add("MatMul", last, graph.weight(given, gives), to="y" if ends else "")
        if not ends:
            last = graph.add("Relu", last)
    graph.save("mlp", path, (TensorProto.FLOAT, [MLP_SIZES[0]]), [MLP_SIZES[-1]])


def minilm(path: Path) -> None:
    """Token ids to a sentence's embedding: encoder, mean over tokens, unit length."""
    graph = _Graph()
    words = graph.add("Gather", graph.weight(_VOCABULARY, _HIDDEN), "x")
    x = graph.normalize(graph.add("Add", words, graph.weight(TOKENS, _HIDDEN)))
    for _ in range(_LAYERS):
        x = graph.normalize(graph.add("Add", x, _attention(graph, x)))
        wide = graph.linear(x, _HIDDEN, _WIDE)
        half = graph.constant(np.array(2**-0.5, np.float32))
        curve = graph.add(
            "Add", graph.add("Erf", graph.add("Mul", wide, half)), graph.constant(np.array(1, np.float32))
        )
        bent = graph.add("Mul", graph.add("Mul", wide, curve), graph.constant(np.array(0.5, np.float32)))
        x = graph.normalize(graph.add("Add", x, graph.linear(bent, _WIDE, _HIDDEN)))
    mean = graph.add("ReduceMean", x, axes=[1], keepdims=0)
    graph.add("LpNormalization", mean, to="y", axis=1, p=2)
    graph.save("minilm", path, (TensorProto.INT64, [TOKENS]), [_HIDDEN])


def _attention(graph: _Graph, x: str) -> str:
    size = _HIDDEN // _HEADS
    apart = graph.constant(np.array([0, 0, _HEADS, size], np.int64))
    together = graph.constant(np.array([0, 0, _HIDDEN], np.int64))
    query, key, value = (graph.add("Reshape", graph.linear(x, _HIDDEN, _HIDDEN), apart) for _ in range(3))
    query = graph.add("Transpose", query, perm=[0, 2, 1, 3])
    key = graph.add("Transpose", key, perm=[0, 2, 3, 1])
    value = graph.add("Transpose", value, perm=[0, 2, 1, 3])
    scale = graph.constant(np.array(size**-0.5, np.float32))
    weights = graph.add("Softmax", graph.add("Mul", graph.add("MatMul", query, key), scale), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", weights, value), perm=[0, 2, 1, 3])
    return graph.linear(graph.add("Reshape", mixed, together), _HIDDEN, _HIDDEN)


def resnet50(path: Path) -> None:
    """The onnx package's own network, whose weights are constants of one value, with random ones and any batch."""
    model = onnx.load(Path(onnx.__file__).parent / _LIGHT_RESNET)
    graph, rng = model.graph, np.random.default_rng(0)
    known = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    filled, nodes = {}, []
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in known:
            filled[node.output[0]] = _fill(rng, node.output[0], tuple(map(int, known[node.input[0]])))
        else:
            nodes.append(node)
    for node in nodes:
        if node.op_type == "Reshape":
            shape = known[node.input[1]].copy()
            shape[0], shape[1:] = (0, shape[1:]) if -1 in shape[1:] else (-1, shape[1:])
            known[node.input[1]] = shape
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = {"gpu_0/data_0": "x", "gpu_0/softmax_1": "y"}.get(name, name)
    used = {name for node in nodes for name in node.input}
    made = _Graph()
    made.nodes = nodes
    made.weights = [numpy_helper.from_array(v, k) for k, v in {**known, **filled}.items() if k in used]
    made.save("resnet50", path, (TensorProto.FLOAT, [3, 224, 224]), [1000])


def _fill(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) > 1:
        return (rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
    value = 1.0 if name.endswith("_riv_0") else 0.5 if name.endswith("_s_0") else 0.0  # variance and scale; else 0
    return np.full(shape, value, np.float32)


NETWORKS: Final[dict[str, Callable[[Path], None]]] = {"mlp": mlp, "minilm": minilm, "resnet50": resnet50}


def write(name: str, folder: Path) -> Path:
    """A network as a file, made where it is not there yet; a path of a file stands for itself."""
    if name not in NETWORKS:
        return Path(name)
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        NETWORKS[name](path)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NETWORKS)
    parser.add_argument("path", type=Path)
    told = parser.parse_args()
    NETWORKS[told.name](told.path)
