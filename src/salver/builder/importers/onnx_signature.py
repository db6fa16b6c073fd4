"""The signature of an ONNX graph, as the ONNX Runtime backend reads it."""

from __future__ import annotations

from typing import Final

import onnx
from onnx import TensorProto

from salver.core.errors import Unimplemented
from salver.core.tensors import ANY_RANK, NUMPY_DTYPES, Signature, TensorSpec

DATATYPES: Final[dict[int, str]] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.STRING: "BYTES",
}


def read_signature(graph: onnx.GraphProto) -> Signature:
    """Inputs and outputs of a graph whose initializers are not listed as inputs.

    Raises:
        Unimplemented: an input or output is no tensor of a known datatype.
    """
    return Signature(inputs=tuple(map(_spec, graph.input)), outputs=tuple(map(_spec, graph.output)))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or tensor.elem_type not in DATATYPES:
        kind = value.type.WhichOneof("value") or "value without a type"
        if kind == "tensor_type":
            kind = f"tensor of {TensorProto.DataType.Name(tensor.elem_type)}"
        raise Unimplemented(f"'{value.name}' is a {kind}; Salver serves tensors of {', '.join(NUMPY_DTYPES)}")
    return TensorSpec(name=value.name, datatype=DATATYPES[tensor.elem_type], shape=shape_of(value))


def shape_of(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """The shape with anonymous dimensions named ``?<tensor>_<axis>``."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return (ANY_RANK,)
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or f"?{value.name}_{i}"
        for i, d in enumerate(tensor.shape.dim)
    )


def set_shape(value: onnx.ValueInfoProto, shape: tuple[int | str, ...]) -> None:
    """Write a shape; names that begin with ``?`` become anonymous."""
    tensor = value.type.tensor_type
    del tensor.shape.dim[:]
    tensor.shape.SetInParent()
    for size in shape:
        dim = tensor.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif not size.startswith("?"):
            dim.dim_param = size
