"""How deep an ONNX graph computes and in what, for the tolerance of its parity check."""

from __future__ import annotations

from typing import Final

import onnx
from onnx import TensorProto

from salver.builder.importers.onnx_files import all_graphs

# Operators that move numbers about, or make them from nothing, round nothing.
_EXACT: Final = frozenset(
    {
        "Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements",
        "GatherND", "Identity", "Pad", "Range", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Tile",
        "Transpose", "Unsqueeze", "Where", "Relu", "MaxPool", "Max", "Min", "Clip", "Dropout", "Not", "Equal", "If",
        "ArgMax", "ArgMin", "TopK",
    }
)  # fmt: skip
_REPEATED: Final = frozenset({"LSTM", "GRU", "RNN", "Loop", "Scan"})
_STEPS: Final = 16  # of a recurrence, whose length the graph does not say
_COARSEST_FIRST: Final = ((TensorProto.BFLOAT16, "BF16"), (TensorProto.FLOAT16, "FP16"), (TensorProto.FLOAT, "FP32"))


def find_depth(model: onnx.ModelProto) -> int:
    """Operators that round, on the longest path; a recurrence counts as sixteen, a body as its own depth. At least 1.

    The nodes have to be in order.
    """
    return max(1, _depth(model.graph, {}))


def _depth(graph: onnx.GraphProto, outer: dict[str, int]) -> int:
    known = dict(outer)
    deepest = 0
    for node in graph.node:
        below = max((known.get(name, 0) for name in node.input), default=0)
        bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        if bodies:
            inside = max(_depth(body, {**known, **{i.name: below for i in body.input}}) for body in bodies) - below
        else:
            inside = 0 if node.op_type in _EXACT else 1
        depth = below + max(inside, 0) * (_STEPS if node.op_type in _REPEATED else 1)
        known.update(dict.fromkeys(node.output, depth))
        deepest = max(deepest, depth)
    return deepest


def coarsest_float(model: onnx.ModelProto) -> str:
    """The coarsest of BF16, FP16 and FP32 among weights, casts, inputs and outputs; ``FP64`` where there is none."""
    types: set[int] = set()
    for graph in all_graphs(model):
        types |= {tensor.data_type for tensor in graph.initializer}
        types |= {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
        types |= {a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
        types |= {a.t.data_type for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR}
    return next((name for kind, name in _COARSEST_FIRST if kind in types), "FP64")
