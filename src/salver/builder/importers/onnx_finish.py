"""From a checked ONNX graph to an `Imported`: batch, shapes, labels, parity, files, lineage. Every importer that
ends in ONNX ends here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import onnx

from salver.backends import SessionOptions, find_backend, open_session
from salver.builder.importers.base import Imported, ImportOptions
from salver.builder.importers.onnx_adapt import adapt
from salver.builder.importers.onnx_batch import Leading, complete_outputs, establish_batch
from salver.builder.importers.onnx_depth import coarsest_float, find_depth
from salver.builder.importers.onnx_edit import classifier_labels, drop_weight_inputs, lift_constants
from salver.builder.importers.onnx_files import all_graphs, write_onnx
from salver.builder.importers.onnx_signature import read_signature
from salver.builder.importers.parity import Run, batch_sizes_for, certify
from salver.builder.importers.probes import Probe
from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, SalverError, Unimplemented
from salver.core.model import Blob, Model, Step
from salver.core.tensors import ANY_RANK, Signature, TensorSpec

_FLOATS: Final = ("FP16", "BF16", "FP32", "FP64")
_MOST_REPAIRS: Final = 16
_QUANTIZED: Final = ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv")


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An import under way.

    Args:
        importer: its name.
        original: runs the original on inputs by name.
        described: what the original was run with, for the certificate.
        probe: the inputs to compare on.
        leading: what the inputs' first dimensions say.
        external: the external data, already below ``workdir``.
        workdir: where files go.
        lineage: the source.
        tools: library -> version.
        labels: output name -> class names, known from the source.
        notes: facts for the user, so far.
    """

    importer: str
    original: Run
    described: str
    probe: Probe
    leading: Leading
    workdir: Path
    options: ImportOptions
    lineage: tuple[Step, ...]
    tools: Mapping[str, str]
    external: tuple[Blob, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()


def finish(model: onnx.ModelProto, draft: Draft) -> Imported:
    """Finish an import. The graph given is not changed.

    Raises:
        ParityFailed: original and import differ.
        InvalidArgument: class names that fit no output.
        Unimplemented, CorruptArtifact: the runtime does not take the graph.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    lift_constants(graph)
    drop_weight_inputs(graph)
    opener = _Opener(draft.workdir, draft.external)
    graph, batch_note = establish_batch(graph, draft.leading, draft.probe, opener.run)
    shape_note = complete_outputs(graph, draft.probe, draft.leading.batched, opener.run)
    signature = _with_labels(read_signature(graph.graph), graph, draft)
    path = draft.workdir / "model.onnx"
    write_onnx(graph, path)
    blobs = (Blob.of(path), *draft.external)
    step = Step(
        action="import",
        name=draft.importer,
        input_digest=draft.lineage[-1].output_digest if draft.lineage else "",
        output_digest=blobs[0].digest,
        config=draft.options.to_data(),
        tools=dict(draft.tools),
    )
    notes = tuple(note for note in (*draft.notes, batch_note, shape_note) if note)
    made = Model(format="onnx", signature=signature, blobs=blobs, lineage=(*draft.lineage, step), notes=notes)
    try:
        return _proven(made, graph, draft)
    except BaseException:
        path.unlink()
        raise


def _proven(made: Model, graph: onnx.ModelProto, draft: Draft) -> Imported:
    # How the runtime fuses a quantized graph moves values by whole quantization steps: that is not the import's doing.
    quantized = any(node.op_type in _QUANTIZED for body in all_graphs(graph) for node in body.node)
    options = SessionOptions(optimize="none" if quantized else "all")
    leading = draft.leading
    fixed = leading.fixed if leading.batched and made.signature.inputs[0].shape[0] == leading.fixed else None
    sizes = batch_sizes_for(draft.probe.rows, fixed) if leading.batched else (0,)
    with open_session(made, options) as session:
        parity = certify(
            draft.original,
            casting(session.run, made.signature),
            draft.probe,
            sizes,
            described=draft.described,
            specs=made.signature.outputs,
            tolerance=draft.options.tolerance,
            original_size=leading.fixed,
            inputs=made.signature.inputs,
            depth=find_depth(graph),
            computed_in=coarsest_float(graph),
            optimize=options.optimize,
            versions=draft.tools,
        )
    return Imported(model=made, parity=parity)


class _Opener:
    """Opens graphs that are being tried."""

    def __init__(self, workdir: Path, external: Sequence[Blob]) -> None:
        self._path = workdir / "trial.onnx"
        self._external = tuple(external)

    def run(self, graph: onnx.ModelProto) -> Run:
        return open_graph(graph, self._path, self._external)


def open_graph(graph: onnx.ModelProto, path: Path, external: Sequence[Blob]) -> Run:
    """Load a graph without the runtime's optimizations, by way of a file that is removed again."""
    write_onnx(graph, path)
    try:
        model = Model(format="onnx", signature=read_signature(graph.graph), blobs=(Blob.of(path), *external))
        return casting(open_session(model, SessionOptions(optimize="none")).run, model.signature)
    finally:
        path.unlink()


def casting(run: Run, signature: Signature) -> Run:
    """Round numbers to the inputs' dtypes: an original may have been given them with more digits."""
    dtypes = {spec.name: spec.dtype for spec in signature.inputs}

    def cast_and_run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return run({name: array.astype(dtypes[name], copy=False) for name, array in inputs.items()})

    return cast_and_run


def open_original(
    graph: onnx.ModelProto, blobs: tuple[Blob, ...], external: Sequence[Blob], workdir: Path
) -> tuple[Run, str]:
    """Load the source file itself without the runtime's optimizations.

    Where the runtime refuses it and the same can be said otherwise (see `salver.builder.importers.onnx_adapt`),
    ``graph`` is changed and the original is run so, with the external data that lie in ``workdir``.

    Returns:
        A function that runs it, and a note when something was changed.

    Raises:
        Unimplemented: naming the operator, its domain and node; or what kind of input or output cannot be served.
        CorruptArtifact: the runtime refuses the graph.
    """
    model = Model(format="onnx", signature=_raw_signature(graph.graph), blobs=blobs)
    notes: list[str] = []
    adapted = workdir / "adapted.onnx"
    for _ in range(_MOST_REPAIRS):
        try:
            return open_session(model, SessionOptions(optimize="none")).run, "; ".join(notes)
        except SalverError as error:
            note = adapt(graph, error.message)
            if not note:
                raise _with_node(error, graph) from error
        finally:
            adapted.unlink(missing_ok=True)
        notes.append(note)
        write_onnx(graph, adapted)
        model = msgspec.structs.replace(model, blobs=(Blob.of(adapted), *external))
    adapted.unlink()
    raise Unimplemented(f"this runtime does not take the graph, whatever is done about it: {'; '.join(notes)}")


def _raw_signature(graph: onnx.GraphProto) -> Signature:
    """Enough to run with: tensors in the runtime's own types, and bfloat16, which numpy does not have."""
    weights = {weight.name for weight in graph.initializer}
    values = [value for value in graph.input if value.name not in weights]
    return Signature(
        inputs=tuple(_raw(value) for value in values) if any(_is_bfloat16(v) for v in (*values, *graph.output)) else (),
        outputs=tuple(_raw(value) for value in graph.output),
    )


def _raw(value: onnx.ValueInfoProto) -> TensorSpec:
    return TensorSpec(name=value.name, datatype="BF16" if _is_bfloat16(value) else "FP32", shape=(ANY_RANK,))


def _is_bfloat16(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16)


def _with_node(error: SalverError, graph: onnx.ModelProto) -> SalverError:
    """The runtime's refusal with the node it is about, where its message tells."""
    for body in all_graphs(graph):
        for node in body.node:
            if f"{node.op_type}(" in error.message and isinstance(error, Unimplemented):
                name, domain = node.name or "(unnamed)", node.domain or "ai.onnx"
                return Unimplemented(f"node '{name}', operator '{node.op_type}' of domain '{domain}': {error.message}")
    return error


def backend_versions() -> dict[str, str]:
    """Versions of onnx and of the runtime behind it."""
    return {"onnx": onnx.__version__, **find_backend("onnx").versions()}


def _with_labels(signature: Signature, graph: onnx.ModelProto, draft: Draft) -> Signature:
    wanted = draft.options.labels
    known = classifier_labels(graph)
    outputs, used = [], False
    for spec in signature.outputs:
        fits = spec.datatype in _FLOATS and len(spec.shape) >= 2
        size = spec.shape[-1] if fits else 0
        labels = draft.labels.get(spec.name) or (known if size == len(known) else ())
        if wanted and (size == len(wanted) or (fits and isinstance(size, str))):
            labels, used = wanted, True
        outputs.append(msgspec.structs.replace(spec, labels=labels if wanted or _tells(labels) else ()))
    if wanted and not used:
        shapes = ", ".join(f"'{s.name}' {list(s.shape)}" for s in signature.outputs)
        raise InvalidArgument(
            f"{len(wanted)} labels were given, and no output has {len(wanted)} classes in its last dimension: {shapes}"
        )
    return Signature(inputs=signature.inputs, outputs=tuple(outputs))


def _tells(labels: tuple[str, ...]) -> bool:
    """Whether names say more than the index of the class."""
    return any(name != str(i) for i, name in enumerate(labels))
