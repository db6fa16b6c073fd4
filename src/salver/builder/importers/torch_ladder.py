"""Climb the ladder: export to ONNX in one way after another until one gives the original's answers at every size; where
none does, keep the model in PyTorch's own format."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import onnx

from salver.builder.importers.base import Imported
from salver.builder.importers.native import finish_native, native_model
from salver.builder.importers.onnx_check import check_model
from salver.builder.importers.onnx_files import all_graphs, copy_external, external_files, read_onnx
from salver.builder.importers.onnx_finish import Draft, finish
from salver.builder.importers.onnx_signature import read_signature, set_shape
from salver.builder.importers.torch_elsewhere import compare_elsewhere
from salver.builder.importers.torch_inputs import Call, Sample
from salver.builder.importers.torch_native import observe, write_native
from salver.builder.importers.torch_reasons import explained
from salver.builder.importers.torch_rungs import Rung, exporting, rungs_of
from salver.core.errors import FailedPrecondition, InvalidArgument, SalverError
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec

_NATIVE_FOLDER: Final = "native"
_RUNG_FOLDER: Final = "rung"


def climb(call: Call, sample: Sample, draft: Draft) -> Imported:
    """Import by the first rung that passes.

    Raises:
        FailedPrecondition: neither a rung nor PyTorch's own formats hold the model; with all reasons.
        InvalidArgument: class names that fit no output.
    """
    observed = observe(call, draft.probe, draft.leading)
    refused: dict[str, str] = {}
    for rung in rungs_of(call):
        try:
            imported, frozen = _try(rung, call, sample, draft, observed.outputs)
        except SalverError as error:
            if isinstance(error, InvalidArgument) and draft.options.labels:
                raise
            refused[rung.name] = error.message
            continue
        notes = [f"exported by '{rung.name}'; '{name}' could not: {why}" for name, why in refused.items()]
        recorded = _record(imported, rung.name, refused, [*notes, *_notes_of(frozen)])
        return _with_native(recorded, call, sample, draft)
    return _fall_back(call, sample, draft, observed, refused)


def _try(
    rung: Rung, call: Call, sample: Sample, draft: Draft, outputs: Sequence[TensorSpec]
) -> tuple[Imported, list[str]]:
    before = set(draft.workdir.iterdir())
    try:
        with explained():
            return _export(rung, call, sample, draft, outputs)
    except BaseException:
        _remove(set(draft.workdir.iterdir()) - before)
        raise


def _export(
    rung: Rung, call: Call, sample: Sample, draft: Draft, outputs: Sequence[TensorSpec]
) -> tuple[Imported, list[str]]:
    folder = draft.workdir / _RUNG_FOLDER
    folder.mkdir()
    with exporting():
        frozen = rung.export(call, sample, folder)
    graph = read_onnx(folder / "model.onnx")
    external = copy_external(external_files(graph, folder), draft.workdir)
    shutil.rmtree(folder)
    _strip(graph)
    _name_dims(graph, call.specs, outputs, draft.leading.batched)
    check_model(graph, call.source.step.name, draft.workdir)
    made = finish(graph, msgspec.structs.replace(draft, external=external))
    if frozen:
        compare_elsewhere(made.model, draft)
    return made, frozen


def _remove(paths: set[Path]) -> None:
    """Remove what a rung left."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _strip(graph: onnx.ModelProto) -> None:
    """Remove what exporters write of the user's machine and code."""
    del graph.metadata_props[:]
    graph.doc_string = ""
    for body in (*all_graphs(graph), *graph.functions):
        values = () if isinstance(body, onnx.FunctionProto) else (*body.input, *body.output, *body.initializer)
        for item in (body, *body.node, *body.value_info, *values):
            item.doc_string = ""
            del item.metadata_props[:]


def _name_dims(
    graph: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batched: bool
) -> None:
    """Give symbolic dimensions the names they were given by the user, and outputs the shapes that runs showed.

    Raises:
        FailedPrecondition: the rung fixed a dimension that may change.
    """
    specs = {s.name: s for s in inputs}
    found = {s.name: s.shape for s in read_signature(graph.graph).inputs}
    lost = [name for name in specs if name not in found]
    if lost:
        raise FailedPrecondition(f"it left out input '{lost[0]}', which the outputs do not depend on in what it took")
    for value in graph.graph.input:
        wanted, given = specs[value.name].shape, found[value.name]
        for axis, (dim, size) in enumerate(zip(wanted, given, strict=True)):
            batch = axis == 0 and batched
            if isinstance(dim, str) and isinstance(size, int) and not batch:
                raise FailedPrecondition(f"it fixed dimension '{dim}' of input '{value.name}' at {size}")
        pairs = zip(wanted, given, strict=True)
        set_shape(value, tuple(size if isinstance(size, int) else dim for dim, size in pairs))
    observed = {s.name: s.shape for s in outputs}
    for value in graph.graph.output:
        if value.name in observed:
            set_shape(value, observed[value.name])


def _record(imported: Imported, rung: str, refused: Mapping[str, str], notes: list[str]) -> Imported:
    model = imported.model
    step = model.lineage[-1]
    step = msgspec.structs.replace(step, config={**step.config, "rung": rung, "refused": dict(refused)})
    made = msgspec.structs.replace(model, lineage=(*model.lineage[:-1], step), notes=(*notes, *model.notes))
    return msgspec.structs.replace(imported, model=made)


def _notes_of(frozen: Sequence[str]) -> list[str]:
    if not frozen:
        return []
    return [
        f"tracing took one way through the code for all ways, at {'; '.join(frozen)}. No inputs that were tried gave "
        "other answers; rewrite it with torch.where or torch.cond to be sure"
    ]


def _with_native(imported: Imported, call: Call, sample: Sample, draft: Draft) -> Imported:
    folder = draft.workdir / _NATIVE_FOLDER
    folder.mkdir()
    native, _ = write_native(call, sample, imported.model.signature, folder, draft)
    if not any(folder.iterdir()):
        folder.rmdir()
    if native is None:
        return imported
    blob = Blob.of(native.path)
    model = Model(
        format=native.format,
        signature=imported.model.signature,
        blobs=(blob,),
        lineage=imported.model.lineage[:1],
        notes=tuple(_notes_of(native.frozen)),
    )
    return msgspec.structs.replace(imported, native=model)


def _fall_back(call: Call, sample: Sample, draft: Draft, signature: Signature, refused: Mapping[str, str]) -> Imported:
    native, reasons = write_native(call, sample, signature, draft.workdir, draft)
    ladder = " ".join(f"By '{name}': {why}." for name, why in refused.items())
    if native is None:
        formats = " ".join(f"As {name}: {why}." for name, why in reasons.items())
        raise FailedPrecondition(
            f"'{call.source.step.name}' can neither be exported to ONNX nor kept in a format of PyTorch. {ladder} "
            f"{formats}"
        )
    why = f"no ONNX graph gives its answers. {ladder}"
    made = finish_native(native_model(native.format, signature, {native.path.name: native.path}), draft, why)
    made = _record(made, f"none; kept as {native.format}", refused, _notes_of(native.frozen))
    return msgspec.structs.replace(made, native=made.model)
