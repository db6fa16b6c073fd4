"""An ONNX model as the page of `salver.report.graph` shows it: as the runtime runs it here, and as it is stored."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from salver.backends import SessionOptions, find_backend, open_session
from salver.builder.onnx_graph import sort_nodes
from salver.bundle.calibrate import synthetic_inputs
from salver.core.arrays import Array
from salver.core.errors import CorruptArtifact, Unimplemented, format_shape
from salver.core.model import Blob, Model
from salver.report import words
from salver.report.graph import GraphInfo, GraphNode, GraphView, Port

_LEAST_RUNS: Final = 5
_MOST_RUNS: Final = 30
_RUNS_S: Final = 2.0
_LONGEST: Final = 200

Optimize = Literal["all", "none"]


def view_graph(model: Model, name: str, inputs: Sequence[Mapping[str, Array]] = (), *, threads: int = 1) -> GraphInfo:
    """Read a model's graph and measure its operators on this machine.

    Args:
        inputs: requests to run, in turn; made up where there are none.
        threads: inside one operator.

    Raises:
        Unimplemented: not an ONNX model.
        FailedPrecondition: it runs on no made-up input.
    """
    if model.format != "onnx":
        raise Unimplemented(f"graphs are drawn of ONNX models; '{name}' is a model of format '{model.format}'")
    made_up = not inputs
    with open_session(model, SessionOptions(threads=threads)) as session:
        chosen = list(inputs) or synthetic_inputs(session, model.signature, 4, 0)
        session.run(chosen[0])
        began = time.perf_counter()
        session.run(chosen[0])
        runs = int(min(_MOST_RUNS, max(_LEAST_RUNS, _RUNS_S / max(time.perf_counter() - began, 1e-6))))
    requests = [chosen[i % len(chosen)] for i in range(runs)]
    with tempfile.TemporaryDirectory(prefix="salver-graph-") as scratch:
        stored = _with_names(_parse(model), Path(scratch), model)
        views: list[GraphView] = []
        for optimize in ("all", "none"):
            views += _measure(stored, requests, optimize, threads, Path(scratch))
    served = sum(node.time_ms or 0.0 for node in views[0].nodes)
    facts = {
        "size": words.show_bytes(model.size_bytes),
        "a run": f"{words.show_ms(served)} in operators",
        "measured on": f"{runs} runs, {'made-up' if made_up else 'golden'} inputs, {threads} thread"
        + "s" * (threads > 1),
        "runtime": ", ".join(f"{k} {v}" for k, v in find_backend("onnx").versions().items()),
        "digest": model.digest,
    }
    return GraphInfo(name=name, facts=facts, views=tuple(views))


def _parse(model: Model) -> ModelProto:
    proto = ModelProto()
    try:
        proto.ParseFromString(model.blobs[0].read())
    except DecodeError as error:
        raise CorruptArtifact(f"'{model.path}' is not an ONNX model: {error}") from None
    sort_nodes(proto.graph)
    return proto


def _with_names(proto: ModelProto, folder: Path, model: Model) -> Model:
    """The model in a file of its own, with a name of its own for every operator: the runtime's times go by name."""
    taken: set[str] = set()
    for node in _all_nodes(proto.graph):
        wanted = node.name or f"{node.op_type}:{next((o for o in node.output if o), '')}"
        unique, number = wanted, 1
        while unique in taken:
            number += 1
            unique = f"{wanted} ({number})"
        taken.add(unique)
        node.name = unique
    path = folder / "stored.onnx"
    path.write_bytes(proto.SerializeToString())
    return msgspec.structs.replace(model, blobs=(Blob.of(path, model.blobs[0].name), *model.blobs[1:]))


def _measure(
    model: Model, requests: Sequence[Mapping[str, Array]], optimize: Optimize, threads: int, folder: Path
) -> Iterator[GraphView]:
    written = folder / f"{optimize}.onnx"
    profile = find_backend("onnx").profile(
        model, SessionOptions(threads=threads, optimize=optimize), requests, written if optimize == "all" else None
    )
    proto = onnx.load_model(written, load_external_data=False) if optimize == "all" else _parse(model)
    title, note = {
        "all": (
            "as it runs here",
            "The graph as ONNX Runtime rewrote it for this machine; times are those of serving.",
        ),
        "none": (
            "as stored",
            "The graph as the file holds it; times without the runtime's rewriting, so in sum longer.",
        ),
    }[optimize]
    names = Counter(node.name for node in _all_nodes(proto.graph))
    medians = {name: statistics.median(runs) for name, runs in profile.times_ms.items() if names[name] == 1}
    yield from _Reader(medians, profile.outputs, note).views(proto.graph, title)


class _Reader:
    """Makes views of a graph and of the bodies in it."""

    def __init__(self, times: Mapping[str, float], kinds: Mapping[str, str], note: str) -> None:
        self._times = times
        self._kinds = kinds
        self._note = note

    def views(self, graph: GraphProto, title: str, outer: Mapping[str, Port] | None = None) -> Iterator[GraphView]:
        """The view of a graph, then those of its bodies, which see the tensors around them."""
        weights = {tensor.name: _weight(tensor) for tensor in graph.initializer}
        known: dict[str, Port] = {**(outer or {}), **weights}
        for value in (*graph.value_info, *graph.input, *graph.output):
            known.setdefault(value.name, Port(tensor=value.name, kind=_kind_of(value)))
        nodes, inner = [], []
        for node in graph.node:
            if node.op_type == "Constant" and not node.domain:
                known[node.output[0]] = _constant(node)
                continue
            bodies = [
                (f"{title} / {node.name} / {a.name}", a.g) for a in node.attribute if a.type == AttributeProto.GRAPH
            ]
            inner += bodies
            nodes.append(self._node(node, known, [body for body, _ in bodies]))
            known.update({port.tensor: port for port in nodes[-1].outputs})
        inputs = tuple(known[v.name] for v in graph.input if v.name not in weights)
        outputs = tuple(known[v.name] for v in graph.output)
        yield GraphView(title=title, note=self._note, inputs=inputs, outputs=outputs, nodes=tuple(nodes))
        for body_title, body in inner:
            yield from self.views(body, body_title, known)

    def _node(self, node: NodeProto, known: Mapping[str, Port], bodies: list[str]) -> GraphNode:
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        outputs = [known.get(o, Port(tensor=o)) for o in node.output]
        seen = self._kinds.get(node.name, "")
        if outputs and not outputs[0].kind and seen:
            outputs[0] = Port(tensor=outputs[0].tensor, kind=f"{seen} in the last run")
        return GraphNode(
            name=node.name,
            op=op,
            attributes={a.name: _attribute(a) for a in node.attribute if a.type != AttributeProto.GRAPH},
            inputs=tuple(known.get(i, Port(tensor=i)) for i in (*node.input, *_captured(node, known))),
            outputs=tuple(outputs),
            time_ms=self._times.get(node.name),
            bodies=tuple(bodies),
        )


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)


def _captured(node: NodeProto, known: Mapping[str, Port]) -> list[str]:
    """Tensors around an operator that its bodies read."""
    bodies = [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]
    inner = [other for body in bodies for other in _all_nodes(body)]
    made = {name for other in inner for name in other.output}
    made |= {value.name for body in bodies for value in (*body.input, *body.initializer)}
    read = [name for other in inner for name in other.input] + [o.name for body in bodies for o in body.output]
    outside = [name for name in read if name and name in known and name not in made and name not in node.input]
    return list(dict.fromkeys(outside))


def _weight(tensor: TensorProto) -> Port:
    dtype = TensorProto.DataType.Name(tensor.data_type).lower()
    return Port(tensor=tensor.name, kind=f"{dtype} {format_shape(tensor.dims)}", weight_bytes=_size(tensor))


def _size(tensor: TensorProto) -> int:
    count = int(np.prod(tensor.dims, dtype=np.int64))
    if tensor.data_type == TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):
        return (count + 1) // 2
    return count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _constant(node: NodeProto) -> Port:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            return msgspec.structs.replace(_weight(attribute.t), tensor=node.output[0])
    return Port(tensor=node.output[0], kind="constant", weight_bytes=0)


def _kind_of(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type":
        return value.type.WhichOneof("value") or ""
    dims = [d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in tensor.shape.dim]
    name = TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{name} {format_shape(dims)}" if tensor.HasField("shape") else name


def _attribute(attribute: AttributeProto) -> str:
    value: Any = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.TENSOR:
        return _weight(value).kind
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    elif isinstance(value, list | tuple):
        value = ", ".join(v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in value[:_LONGEST])
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
