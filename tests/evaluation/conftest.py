"""Small real models on the real runtime: a dense network, its dynamic int8 twin, and versions with awkward batches."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model
from onnxruntime.quantization import quantize_dynamic

from salver.backends import find_backend, open_session
from salver.core.dataset import Batch, Dataset, cut
from salver.core.model import Blob, Model
from salver.core.tensors import TensorSpec, to_datatype

FEATURES, CLASSES = 2, 4


class Rows(Dataset):
    """Examples held in memory."""

    def __init__(self, inputs, labels=None):
        self._whole = Batch(inputs=inputs, labels=labels, rows=len(next(iter(inputs.values()))))

    @property
    def columns(self):
        return tuple(
            TensorSpec(name=k, datatype=to_datatype(v.dtype), shape=("batch", *v.shape[1:]))
            for k, v in self._whole.inputs.items()
        )

    label_spec = None
    digest = "sha256:0"
    source = "memory"

    def __len__(self):
        return self._whole.rows

    def batches(self, size):
        for start in range(0, len(self), size):
            rows = cut(self._whole, start, min(start + size, len(self)))
            yield Batch(inputs=rows.inputs, labels=rows.labels, rows=len(next(iter(rows.inputs.values()))))


def make_network(batch, features=(FEATURES,), out=(CLASSES,), op="identity"):
    """x -> two dense layers -> y; ``batch`` is the leading dimension of both, None for none."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=s).astype(np.float32) for s in ((FEATURES, 16), (16, CLASSES))]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["y" if op == "identity" else "c"]),
    ]
    if op != "identity":
        nodes.append(helper.make_node(op, ["c"], ["y"]))
    lead = () if batch is None else (batch,)
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*lead, *features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*lead, *out])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def open_network(tmp_path):
    def open_(batch="batch", *, int8=False, op="identity"):
        path = tmp_path / f"network-{batch}-{op}.onnx"
        save_model(make_network(batch, op=op), path)
        if int8:
            logging.disable(logging.WARNING)  # its advice goes to the root logger
            quantize_dynamic(path, path.with_suffix(".int8.onnx"))
            logging.disable(logging.NOTSET)
            path = path.with_suffix(".int8.onnx")
        blob = Blob.of(path)
        signature = find_backend("onnx").describe(blob)
        return open_session(Model(format="onnx", signature=signature, blobs=(blob,)))

    return open_


@pytest.fixture
def rows():
    rng = np.random.default_rng(1)
    return Rows({"x": rng.normal(size=(53, FEATURES)).astype(np.float32)}, rng.integers(0, CLASSES, 53))
