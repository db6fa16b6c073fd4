"""Small networks for the tests of passes: a digits classifier trained here in a second, and a maker of others."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from salver.core.arrays import Array
from salver.core.model import Model
from salver.testing.passes import ArrayDataset, save_model


@functools.cache
def digits() -> tuple[Array, Array]:
    """1,797 images in [0, 1], fp32 ``[rows, 1, 8, 8]``, and their labels (scikit-learn's copy of the UCI set)."""
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels


@functools.cache
def _features() -> tuple[Array, Array, MLPClassifier]:
    """A fixed random convolution (a random-feature network), and the layers trained on top of it."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(0, 0.6, (12, 1, 3, 3)).astype(np.float32)
    bias = rng.normal(0, 0.2, 12).astype(np.float32)
    images, labels = digits()
    windows = np.lib.stride_tricks.sliding_window_view(images[:, 0], (3, 3), axis=(1, 2))
    maps = np.maximum(np.einsum("nhwij,oij->nohw", windows, kernel[:, 0]) + bias[:, None, None], 0)
    flat = maps.reshape(len(maps), 12, 3, 2, 3, 2).max(axis=(3, 5)).reshape(len(maps), -1)
    net = MLPClassifier((48,), random_state=0)
    for _ in range(60):
        net.partial_fit(flat[:1200], labels[:1200], classes=np.unique(labels))
    return kernel, bias, net


def cnn_graph() -> ModelProto:
    """Conv, BatchNormalization, Relu, MaxPool, Flatten, Gemm (bias ``[1, N]``), Relu, MatMul, Add."""
    kernel, bias, net = _features()
    weights = {
        "kernel": kernel,
        "kernel_bias": bias,
        "bn_scale": np.ones(12, np.float32),
        "bn_bias": np.zeros(12, np.float32),
        "bn_mean": np.zeros(12, np.float32),
        "bn_var": np.ones(12, np.float32) - np.float32(1e-5),
        "hidden": net.coefs_[0].astype(np.float32),
        "hidden_bias": net.intercepts_[0].astype(np.float32)[None],
        "output": net.coefs_[1].astype(np.float32),
        "output_bias": net.intercepts_[1].astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "kernel_bias"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "bn_scale", "bn_bias", "bn_mean", "bn_var"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("MaxPool", ["r"], ["m"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["m"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "hidden", "hidden_bias"], ["h"], name="hidden"),
        helper.make_node("Relu", ["h"], ["a"], name="relu2"),
        helper.make_node("MatMul", ["a", "output"], ["o"], name="output"),
        helper.make_node("Add", ["o", "output_bias"], ["logits"], name="bias"),
    ]
    return graph(nodes, weights, {"image": (TensorProto.FLOAT, ["batch", 1, 8, 8])}, {"logits": ["batch", 10]})


def graph(
    nodes: list[NodeProto],
    weights: dict[str, Array],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, list[int | str]],
    opset: int = 17,
) -> ModelProto:
    """A model of fp32 outputs."""
    body = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def recurrent_graph() -> ModelProto:
    """Gather (an embedding), LSTM, Gather (the last step), Gemm: ``ids [batch, 6] -> scores``."""
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.normal(size=(40, 8)).astype(np.float32),
        "w": rng.normal(0, 0.3, (1, 64, 8)).astype(np.float32),
        "r": rng.normal(0, 0.3, (1, 64, 16)).astype(np.float32),
        "dense": rng.normal(0, 0.3, (5, 16)).astype(np.float32),
        "first": np.array(0, np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("Transpose", ["e"], ["t"], name="time-first", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r"], ["", "last"], name="lstm", hidden_size=16),
        helper.make_node("Gather", ["last", "first"], ["s"], name="direction"),
        helper.make_node("Gemm", ["s", "dense"], ["scores"], name="dense", transB=1),
    ]
    return graph(nodes, weights, {"ids": (TensorProto.INT64, ["batch", 6])}, {"scores": ["batch", 5]})


def cnn(folder: Path) -> Model:
    """The digits classifier in a file."""
    return save_model(cnn_graph(), folder / "cnn.onnx")


def examples(first: int = 0, rows: int = 64) -> ArrayDataset:
    """Digits for the classifier."""
    return ArrayDataset({"image": digits()[0][first : first + rows]})
