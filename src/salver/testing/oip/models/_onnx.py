"""ONNX models laid out ``<name>/1/model.onnx``, for Salver and for any server that runs ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from salver.testing.oip.models.specs import Model, Spec

_KINDS: Final[dict[str, Any]] = {
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
_MAX_BATCH: Final = 1024
_ROUNDS: Final = 150_000  # of 0.8 microseconds and more


def write(folder: Path, model: Model) -> None:
    """Write one model."""
    path = folder / model.name / "1"
    path.mkdir(parents=True, exist_ok=True)
    nodes, weights = {"identity": _identity, "sum": _sum, "slow": _slow}[model.kind](model)
    graph = helper.make_graph(
        nodes, model.name, [_value(s) for s in model.inputs], [_value(s) for s in model.outputs], weights
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, path / "model.onnx")
    if model.labels:
        (path.parent / "labels.txt").write_text("\n".join(model.labels) + "\n", encoding="utf-8")
        (path.parent / "config.pbtxt").write_text(_labelled(model.outputs[0]), encoding="utf-8")


def _labelled(spec: Spec) -> str:
    """Triton's configuration, the one place for labels beside an ONNX file."""
    dimensions = ", ".join(map(str, spec.shape[1:]))
    described = f'name: "{spec.name}" data_type: TYPE_{spec.datatype} dims: [{dimensions}] label_filename: "labels.txt"'
    return f'platform: "onnxruntime_onnx"\nmax_batch_size: {_MAX_BATCH}\noutput {{ {described} }}\n'


def _value(spec: Spec) -> Any:
    dimensions = [("batch" if i == 0 else "width") if n < 0 else n for i, n in enumerate(spec.shape)]
    return helper.make_tensor_value_info(spec.name, _KINDS[spec.datatype], dimensions)


def _identity(model: Model) -> tuple[list[Any], list[Any]]:
    return [helper.make_node("Identity", [model.inputs[0].name], [model.outputs[0].name])], []


def _sum(model: Model) -> tuple[list[Any], list[Any]]:
    names = [spec.name for spec in model.inputs]
    return [helper.make_node("Add", names, ["sum"]), helper.make_node("Sub", names, ["difference"])], []


def _slow(_: Model) -> tuple[list[Any], list[Any]]:
    """Multiply zero by itself many times, and add it to the input. What a round takes is the runtime's bookkeeping, in
    which processors differ less than in arithmetic."""
    state = helper.make_tensor_value_info("state_in", TensorProto.FLOAT, [])
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["state_in", "state_in"], ["state_out"]),
            helper.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            state,
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, []),
        ],
    )
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["zero", "mean"], ["state"]),
        helper.make_node("Loop", ["rounds", "go", "state"], ["nothing"], body=body),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array(_ROUNDS, np.int64), "rounds"),
        numpy_helper.from_array(np.array(True), "go"),
    ]
    return nodes, weights
