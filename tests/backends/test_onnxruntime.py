"""ONNX Runtime passes the suite on every datatype, and says clearly what it cannot run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from salver.backends import SessionOptions, find_backend
from salver.backends._onnxruntime import OnnxRuntimeBackend
from salver.core.errors import CorruptArtifact, Unimplemented
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec
from salver.testing.backends import BackendConformance, Case

KINDS = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def write(path: Path, nodes: list, inputs: list, outputs: list, weights: tuple = ()) -> Blob:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        list(weights),
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return Blob.of(path)


def identity(folder: Path, datatype: str) -> Case:
    shape = ["batch", 3]
    kind = KINDS[datatype]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    blob = write(folder / f"{datatype}.onnx", nodes, [("x", kind, shape)], [("y", kind, shape)])
    specs = [TensorSpec(name=n, datatype=datatype, shape=("batch", 3)) for n in "xy"]
    values = np.array([[0, 1, 2], [3, 4, 5], [1, 0, 1], [7, 7, 7]])
    if datatype == "BYTES":
        array = np.array([[f"naïve {v}" for v in row] for row in values], dtype=object)
    else:
        array = values.astype(specs[0].dtype)
    signature = Signature(inputs=(specs[0],), outputs=(specs[1],))
    model = Model(format="onnx", signature=signature, blobs=(blob,))
    return Case(model=model, inputs={"x": array}, expected={"y": array})


def two_outputs(folder: Path) -> Case:
    weights = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
    ]
    outputs = [("scores", TensorProto.FLOAT, ["batch", 5]), ("best", TensorProto.INT64, ["batch"])]
    initializers = (numpy_helper.from_array(weights, "w"),)
    blob = write(folder / "two.onnx", nodes, [("x", TensorProto.FLOAT, ["batch", 3])], outputs, initializers)
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=("batch", 3)),),
        outputs=(
            TensorSpec(name="scores", datatype="FP32", shape=("batch", 5)),
            TensorSpec(name="best", datatype="INT64", shape=("batch",)),
        ),
    )
    x = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    expected = {"scores": x @ weights, "best": (x @ weights).argmax(1)}
    model = Model(format="onnx", signature=signature, blobs=(blob,))
    return Case(model=model, inputs={"x": x}, expected=expected, atol=1e-5)


class TestOnnxRuntime(BackendConformance):
    backend = OnnxRuntimeBackend

    @pytest.fixture
    def cases(self, tmp_path: Path) -> list[Case]:
        return [two_outputs(tmp_path), *(identity(tmp_path, datatype) for datatype in KINDS)]


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], name="f0")]
    shape = ["batch", 3]
    blob = write(tmp_path / "m.onnx", nodes, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)])
    with pytest.raises((Unimplemented, CorruptArtifact), match="Frobnicate"):
        OnnxRuntimeBackend().describe(blob)


def test_external_data_is_found_wherever_the_blobs_lie(tmp_path: Path) -> None:
    case = two_outputs(tmp_path)
    proto = onnx.load(case.model.path)
    home = tmp_path / "external"
    home.mkdir()
    onnx.save(proto, home / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    beside = (Blob.of(home / "m.onnx"), Blob.of(home / "weights.bin"))
    (tmp_path / "elsewhere").write_bytes(b"xx" + (home / "weights.bin").read_bytes())
    apart = Blob(
        name="weights.bin",
        path=tmp_path / "elsewhere",
        offset=2,
        size_bytes=beside[1].size_bytes,
        digest=beside[1].digest,
    )
    for blobs in (beside, (beside[0], apart)):
        model = Model(format="onnx", signature=case.model.signature, blobs=blobs)
        with OnnxRuntimeBackend().load(model, SessionOptions()) as session:
            np.testing.assert_allclose(session.run(case.inputs)["scores"], case.expected["scores"], atol=1e-5)


def test_no_backend_for_a_format_names_those_installed() -> None:
    with pytest.raises(Unimplemented, match="onnxruntime"):
        find_backend("caffe")
