"""ONNX -> TensorFlow Lite by onnx2tf, with the layout of inputs and outputs kept."""

from __future__ import annotations

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import onnx
import onnx2tf
import tensorflow as tf
from onnx import helper


def convert(source: str, output: str) -> dict[str, str]:
    """Write ``output``; gives library -> version.

    Raises:
        NotImplementedError: for operators that the converter lacks, by name.
    """
    model = onnx.load(source)
    kinds = {node.op_type for node in model.graph.node}
    if lacking := sorted(kind for kind in kinds if find_spec(f"onnx2tf.ops.{kind}") is None):
        raise NotImplementedError(f"onnx2tf has no conversion of {', '.join(lacking)}")
    weights = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in weights]
    _pin_outputs(model.graph)
    with tempfile.TemporaryDirectory() as folder:
        onnx2tf.convert(
            onnx_graph=model,
            output_folder_path=folder,
            keep_shape_absolutely_input_names=names,
            output_signaturedefs=True,
            copy_onnx_input_output_names_to_tflite=True,
            non_verbose=True,
        )
        (made,) = Path(folder).glob("*_float32.tflite")
        shutil.move(str(made), output)
    return {"onnx2tf": onnx2tf.__version__, "tensorflow": tf.__version__}


def _pin_outputs(graph: onnx.GraphProto) -> None:
    """Reshape outputs to what they are: before that, the converter undoes its change of layout."""
    for value in graph.output:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if len(dims) < 3 or 0 in dims[1:]:
            continue
        inner, shape = f"{value.name}_inner", f"{value.name}_shape"
        for node in graph.node:
            for listed in (node.input, node.output):
                listed[:] = [inner if name == value.name else name for name in listed]
        graph.initializer.append(helper.make_tensor(shape, onnx.TensorProto.INT64, [len(dims)], [-1, *dims[1:]]))
        graph.node.append(helper.make_node("Reshape", [inner, shape], [value.name], name=f"{value.name}_reshape"))
