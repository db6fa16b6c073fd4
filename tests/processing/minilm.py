"""all-MiniLM-L6-v2 twice, from its safetensors: as an ONNX graph, and in numpy as its paper says it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEADS = 12
LAYERS = 6
WIDTH = 384
_EPSILON = 1e-12


def run_numpy(weights: Mapping[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """The mean over tokens, of length one, of a single text without padding, in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items() if array.dtype.kind == "f"}
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = _normalize(x + w["embeddings.token_type_embeddings.weight"][0], w, "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        heads = [
            (x @ w[f"{at}attention.self.{part}.weight"].T + w[f"{at}attention.self.{part}.bias"])
            .reshape(len(ids), HEADS, -1)
            .transpose(1, 0, 2)
            for part in ("query", "key", "value")
        ]
        scores = heads[0] @ heads[1].transpose(0, 2, 1) / np.sqrt(WIDTH / HEADS)
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (powers / powers.sum(axis=-1, keepdims=True) @ heads[2]).transpose(1, 0, 2).reshape(len(ids), WIDTH)
        mixed = mixed @ w[f"{at}attention.output.dense.weight"].T + w[f"{at}attention.output.dense.bias"]
        x = _normalize(x + mixed, w, f"{at}attention.output.LayerNorm")
        inner = x @ w[f"{at}intermediate.dense.weight"].T + w[f"{at}intermediate.dense.bias"]
        inner = inner * 0.5 * (1 + _erf(inner / np.sqrt(2)))
        x = _normalize(
            x + inner @ w[f"{at}output.dense.weight"].T + w[f"{at}output.dense.bias"], w, f"{at}output.LayerNorm"
        )
    mean = x.mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


def _normalize(x: np.ndarray, w: Mapping[str, np.ndarray], at: str) -> np.ndarray:
    centered = x - x.mean(axis=-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + _EPSILON)
    return np.asarray(scaled * w[f"{at}.weight"] + w[f"{at}.bias"])


def _erf(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.vectorize(math.erf)(x))


class _Graph:
    """Nodes and constants of a graph that is being made."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def node(self, kind: str, *inputs: str, output: str = "", **settings: Any) -> str:
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **settings))
        return output

    def dense(self, x: str, at: str) -> str:
        made = self.node("MatMul", x, self.constant(f"{at}.weight", self.weights[f"{at}.weight"].T))
        return self.node("Add", made, self.constant(f"{at}.bias", self.weights[f"{at}.bias"]))

    def norm(self, x: str, at: str, output: str = "") -> str:
        parts = [self.constant(f"{at}.{part}", self.weights[f"{at}.{part}"]) for part in ("weight", "bias")]
        return self.node("LayerNormalization", x, *parts, axis=-1, epsilon=_EPSILON, output=output)

    def heads(self, x: str, at: str, order: list[int]) -> str:
        split = self.constant("split", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
        return self.node("Transpose", self.node("Reshape", self.dense(x, at), split), perm=order)


def write_onnx(weights: Mapping[str, np.ndarray], path: Path) -> Path:
    """``input_ids`` and ``attention_mask`` INT64 [batch, tokens] -> ``last_hidden_state`` [batch, tokens, 384]."""
    g = _Graph(weights)
    x = g.node("Gather", g.constant("words", weights["embeddings.word_embeddings.weight"]), "input_ids")
    length = g.node("Gather", g.node("Shape", "input_ids"), g.constant("at", np.array(1)), axis=0)
    places = g.node("Range", g.constant("zero", np.array(0)), length, g.constant("step", np.array(1)))
    x = g.node(
        "Add", x, g.node("Gather", g.constant("at_place", weights["embeddings.position_embeddings.weight"]), places)
    )
    x = g.node("Add", x, g.constant("kind", weights["embeddings.token_type_embeddings.weight"][0]))
    x = g.norm(x, "embeddings.LayerNorm")
    mask = g.node(
        "Cast", g.node("Unsqueeze", "attention_mask", g.constant("axes", np.array([1, 2]))), to=TensorProto.FLOAT
    )
    mask = g.node("Mul", g.node("Sub", mask, g.constant("one", np.float32(1))), g.constant("far", np.float32(1e9)))
    root = g.constant("root", np.float32(np.sqrt(WIDTH / HEADS)))
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        query = g.heads(x, f"{at}attention.self.query", [0, 2, 1, 3])
        key = g.heads(x, f"{at}attention.self.key", [0, 2, 3, 1])
        value = g.heads(x, f"{at}attention.self.value", [0, 2, 1, 3])
        scores = g.node("Add", g.node("Div", g.node("MatMul", query, key), root), mask)
        mixed = g.node("Transpose", g.node("MatMul", g.node("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
        mixed = g.node("Reshape", mixed, g.constant("join", np.array([0, 0, WIDTH], np.int64)))
        x = g.norm(g.node("Add", x, g.dense(mixed, f"{at}attention.output.dense")), f"{at}attention.output.LayerNorm")
        inner = g.node("Gelu", g.dense(x, f"{at}intermediate.dense"))
        last = "last_hidden_state" if layer == LAYERS - 1 else ""
        x = g.norm(g.node("Add", x, g.dense(inner, f"{at}output.dense")), f"{at}output.LayerNorm", last)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", WIDTH])]
    graph = helper.make_graph(g.nodes, "minilm", inputs, outputs, list(g.constants.values()))
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path
