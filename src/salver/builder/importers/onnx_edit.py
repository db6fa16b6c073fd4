"""Edits of an ONNX graph that change how it is written, not what it computes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from salver.builder.importers.onnx_files import all_graphs
from salver.builder.importers.onnx_signature import set_shape, shape_of


def lift_constants(model: onnx.ModelProto) -> int:
    """Turn ``Constant`` nodes into initializers (quantizers look for weights only there); returns how many."""
    lifted = 0
    for graph in all_graphs(model):
        outputs = {o.name for o in graph.output}
        kept = []
        for node in graph.node:
            tensor = _constant(node) if node.op_type == "Constant" and node.domain in ("", "ai.onnx") else None
            if tensor is None or node.output[0] in outputs:
                kept.append(node)
                continue
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            lifted += 1
        if len(kept) != len(graph.node):
            nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
            del graph.node[:]
            graph.node.extend(nodes)
    return lifted


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.ref_attr_name:
        return None
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(attribute.t)
        return tensor
    if attribute.name == "value_float":
        return numpy_helper.from_array(np.array(attribute.f, np.float32))
    if attribute.name == "value_floats":
        return numpy_helper.from_array(np.array(attribute.floats, np.float32))
    if attribute.name == "value_int":
        return numpy_helper.from_array(np.array(attribute.i, np.int64))
    if attribute.name == "value_ints":
        return numpy_helper.from_array(np.array(attribute.ints, np.int64))
    if attribute.name == "value_string":
        return helper.make_tensor("", TensorProto.STRING, [], [attribute.s])
    if attribute.name == "value_strings":
        return helper.make_tensor("", TensorProto.STRING, [len(attribute.strings)], list(attribute.strings))
    return None


def drop_weight_inputs(model: onnx.ModelProto) -> int:
    """Take weights that are also listed as inputs off that list; returns how many."""
    dropped = 0
    for graph in all_graphs(model):
        weights = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        for i in reversed(range(len(graph.input))):
            if graph.input[i].name in weights:
                del graph.input[i]
                dropped += 1
    return dropped


def drop_zipmap(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Replace ``ZipMap`` (a list of dictionaries, one per row) by the plain tensor it wraps, under the same output
    name.

    Returns:
        Output name -> the classes, in the order of the tensor's columns.
    """
    graph = model.graph
    classes: dict[str, tuple[str, ...]] = {}
    for i in reversed(range(len(graph.node))):
        node = graph.node[i]
        if node.op_type != "ZipMap" or node.domain != "ai.onnx.ml":
            continue
        inner, outer = node.input[0], node.output[0]
        names = {a.name: a for a in node.attribute}
        if "classlabels_strings" in names:
            classes[outer] = tuple(s.decode() for s in names["classlabels_strings"].strings)
        else:
            classes[outer] = tuple(str(v) for v in names["classlabels_int64s"].ints)
        del graph.node[i]
        for value in graph.output:
            if value.name == outer:
                value.CopyFrom(helper.make_tensor_value_info(outer, TensorProto.FLOAT, [None, len(classes[outer])]))
        rename_value(graph, inner, outer)
    return classes


def rename_value(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a value wherever the graph and the bodies of its control flow use it."""
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                rename_value(body, old, new)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if value.name == old:
            value.name = new


def classifier_labels(model: onnx.ModelProto) -> tuple[str, ...]:
    """Class names that an ONNX-ML classifier carries; empty when there are none, or several different ones."""
    found = set()
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.domain == "ai.onnx.ml" and attribute.name in ("classlabels_strings", "classlabels_int64s"):
                names = tuple(s.decode() for s in attribute.strings) or tuple(str(v) for v in attribute.ints)
                if names:
                    found.add(names)
    return found.pop() if len(found) == 1 else ()


def set_leading(model: onnx.ModelProto, dim: str) -> onnx.ModelProto:
    """A copy whose inputs and outputs have ``dim`` as their first dimension, and no inner shapes that contradict it."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.value_info[:]
    for value in (*changed.graph.input, *changed.graph.output):
        shape = shape_of(value)
        if shape and shape != ("...",):
            set_shape(value, (dim, *shape[1:]))
    return changed
