"""ONNX graphs for passes: read one with its weights in memory, walk it, finish it as a checked `Model`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from salver.backends import SessionOptions, find_backend, open_session
from salver.backends.base import empty_like_signature
from salver.builder.onnx_graph import sort_nodes
from salver.builder.passes.base import Pass, PassContext
from salver.core.arrays import Array
from salver.core.dataset import Batch, Dataset
from salver.core.errors import CorruptArtifact, Internal, PassNotApplicable, SalverError
from salver.core.model import Blob, Model, Step
from salver.core.tensors import Signature
from salver.evaluation.runner import fit_run, fixed_batch

_MAX_BYTES: Final = 2_000_000_000
"""What one protobuf message may hold, with room for the graph itself."""
_OPSET_IR: Final = {13: 7, 15: 8, 19: 9, 21: 10}


def require_onnx(model: Model) -> None:
    """Refuse a model that is no ONNX graph.

    Raises:
        PassNotApplicable: naming its format.
    """
    if model.format != "onnx":
        raise PassNotApplicable(f"this pass works on ONNX models; the model's format is '{model.format}'")


def read_graph(model: Model) -> ModelProto:
    """Parse a model; external data is read into the graph.

    Raises:
        PassNotApplicable: not an ONNX model, or more than 2 GB.
        CorruptArtifact: not readable, or external data is missing.
    """
    require_onnx(model)
    if model.size_bytes > _MAX_BYTES:
        raise PassNotApplicable(f"the model has {model.size_bytes} bytes; passes hold at most {_MAX_BYTES}")
    proto = ModelProto()
    try:
        proto.ParseFromString(model.blobs[0].read())
    except DecodeError as error:
        raise CorruptArtifact(f"'{model.path}' is not an ONNX model: {error}") from None
    blobs = {blob.name: blob for blob in model.blobs[1:]}
    for tensor in _tensors(proto.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            _inline(tensor, blobs)
    return proto


def _inline(tensor: TensorProto, blobs: Mapping[str, Blob]) -> None:
    where = {entry.key: entry.value for entry in tensor.external_data}
    name = where.get("location", "")
    if name not in blobs:
        raise CorruptArtifact(f"weight '{tensor.name}' lies in '{name}', which is not part of the model")
    view = blobs[name].map()
    offset = int(where.get("offset", 0))
    length = int(where.get("length", len(view) - offset))
    if offset + length > len(view):
        raise CorruptArtifact(f"weight '{tensor.name}': '{name}' is truncated")
    tensor.raw_data = bytes(view[offset : offset + length])
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _subgraphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _subgraphs(attribute.g)
            for inner in attribute.graphs:
                yield from _subgraphs(inner)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    for part in _subgraphs(graph):
        yield from part.initializer
        for node in part.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors


def opset_of(proto: ModelProto) -> int:
    """Version of the default operator set."""
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def float_weights(proto: ModelProto) -> dict[str, TensorProto]:
    """Name -> initializer, for fp32 tensors of the main graph."""
    return {t.name: t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT}


def name_nodes(proto: ModelProto) -> None:
    """Give every unnamed node a name made from its first output, so that it can be excluded by name."""
    for node in proto.graph.node:
        if not node.name:
            node.name = f"{node.op_type}:{next((o for o in node.output if o), 'none')}"


def to_array(tensor: TensorProto) -> Array:
    """Content of an initializer."""
    return numpy_helper.to_array(tensor)


def from_array(array: Array, name: str) -> TensorProto:
    """An initializer with this content."""
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def replace_weights(proto: ModelProto, made: Mapping[str, tuple[list[TensorProto], list[NodeProto]]]) -> None:
    """Let nodes compute what initializers held, under the same names.

    The nodes depend on constants only, so the runtime computes them once, at load.
    """
    kept = [t for t in proto.graph.initializer if t.name not in made]
    body = list(proto.graph.node)
    proto.graph.ClearField("initializer")
    proto.graph.initializer.extend([*kept, *(tensor for tensors, _ in made.values() for tensor in tensors)])
    proto.graph.ClearField("node")
    proto.graph.node.extend([*(node for _, nodes in made.values() for node in nodes), *body])


def describe_ops(proto: ModelProto) -> str:
    """The operators of a graph with their counts, for messages: ``Conv 2, Relu 1``."""
    counts: dict[str, int] = {}
    for node in proto.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return ", ".join(f"{op} {count}" for op, count in sorted(counts.items())) or "none"


def finish(
    source: Model,
    original: ModelProto,
    changed: ModelProto,
    made_by: Pass[Any],
    context: PassContext,
    tools: Mapping[str, str],
) -> Model:
    """Write a changed graph as a model with the signature of its source, then load it and run it at batch 1 and 3.

    Raises:
        PassNotApplicable: nothing changed, or the runtime cannot load or run the result (the operator is named).
    """
    same = ModelProto()
    same.CopyFrom(original)
    _restore_frame(original, same)
    _restore_frame(original, changed)
    if changed == same:
        raise PassNotApplicable("nothing changed")
    sort_nodes(changed.graph)
    if sum(len(t.raw_data) for t in _tensors(changed.graph)) > _MAX_BYTES:
        raise PassNotApplicable(f"the result has more than {_MAX_BYTES} bytes")
    data = changed.SerializeToString(deterministic=True)
    path = context.workdir / Path(source.blobs[0].name).name
    path.write_bytes(data)
    blob = Blob.of(path, source.blobs[0].name)
    step = Step(
        action="pass",
        name=made_by.name,
        input_digest=source.blobs[0].digest,
        output_digest=blob.digest,
        config=made_by.config.to_data(),
        tools={"onnx": onnx.__version__, **tools},
    )
    model = Model(
        format="onnx",
        signature=source.signature,
        blobs=(blob,),
        lineage=(*source.lineage, step),
        notes=source.notes,
    )
    _check(source, model, context)
    return model


def _restore_frame(original: ModelProto, changed: ModelProto) -> None:
    """Inputs, outputs and metadata as they were; no stale shapes; only the operator sets that are used."""
    weights = {t.name for t in original.graph.initializer}
    changed.ClearField("metadata_props")
    for field in ("input", "output", "value_info"):
        changed.graph.ClearField(field)
    changed.graph.input.extend(v for v in original.graph.input if v.name not in weights)
    changed.graph.output.extend(original.graph.output)
    changed.graph.name = original.graph.name
    changed.metadata_props.extend(original.metadata_props)
    changed.producer_name, changed.producer_version = original.producer_name, original.producer_version
    changed.ir_version = max(original.ir_version, _ir_for(opset_of(changed)))
    used = {_domain(node.domain) for part in _subgraphs(changed.graph) for node in part.node}
    versions = {_domain(entry.domain): entry.version for entry in changed.opset_import}
    kept = {_domain(entry.domain) for entry in original.opset_import}
    changed.ClearField("opset_import")
    for domain in sorted(used | kept | {""}):
        changed.opset_import.add(domain=domain, version=versions.get(domain, 1))


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _ir_for(opset: int) -> int:
    return max((ir for since, ir in _OPSET_IR.items() if since <= opset), default=4)


def _check(source: Model, model: Model, context: PassContext) -> None:
    backend = find_backend("onnx")
    try:
        seen = backend.describe(model.blobs[0])
        session = open_session(model, SessionOptions(threads=context.threads))
    except SalverError as error:
        raise PassNotApplicable(f"ONNX Runtime cannot load the result: {error.message}") from error
    expected = backend.describe(source.blobs[0]) if len(source.blobs) == 1 else source.signature
    if _faces(seen) != _faces(expected):
        raise Internal(f"the signature changed: {_faces(expected)} became {_faces(seen)}")
    with session:
        for inputs in _trials(source.signature, context.calibration):
            try:
                session.run(inputs)
            except SalverError as error:
                _blame(source, inputs, error)


def _faces(signature: Signature) -> list[tuple[str, str, list[int]]]:
    return [(spec.name, spec.datatype, spec.wire_shape) for spec in (*signature.inputs, *signature.outputs)]


def _trials(signature: Signature, data: Dataset | None) -> Iterator[dict[str, Array]]:
    for rows in (1, 3) if signature.batch_dim else (1,):
        if data is None:
            yield empty_like_signature(signature, rows)
        else:
            yield next(calibration_batches(signature, data, rows)).inputs


def _blame(source: Model, inputs: dict[str, Array], error: SalverError) -> None:
    """Zeros may be no valid input: a result is only at fault where its source runs."""
    with open_session(source) as session:
        try:
            session.run(inputs)
        except SalverError:
            return
    raise PassNotApplicable(f"ONNX Runtime cannot run the result: {error.message}") from error


def calibration_batches(signature: Signature, data: Dataset, rows: int) -> Iterator[Batch]:
    """Batches a model takes: of ``rows`` examples, or of its fixed batch size, then filled up with the last example; of
    a model without a batch dimension, one example without the leading axis."""
    fixed = fixed_batch(signature)
    for batch in data.batches(fixed or rows):
        size = fixed or batch.rows
        index = np.minimum(np.arange(size), batch.rows - 1)
        inputs = {k: v[index] for k, v in batch.inputs.items()} if size > batch.rows else batch.inputs
        yield Batch(inputs=fit_run(signature, inputs), labels=None, rows=size)
