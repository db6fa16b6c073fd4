"""ONNX files and models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnx

from salver.builder.importers.base import Imported, Importer, ImportOptions
from salver.builder.importers.onnx_batch import Leading, read_leading, with_batch
from salver.builder.importers.onnx_check import (
    check_model,
    check_operators,
    check_versions,
    deviations,
    raise_ir,
    upgrade,
)
from salver.builder.importers.onnx_edit import drop_weight_inputs, drop_zipmap
from salver.builder.importers.onnx_files import copy_external, external_files, read_onnx, write_onnx
from salver.builder.importers.onnx_finish import Draft, backend_versions, finish, open_original
from salver.builder.importers.onnx_signature import read_signature
from salver.builder.importers.parity import Run
from salver.builder.importers.probes import Probe, fit_rows, from_data, limit_rows, synthetic
from salver.builder.onnx_graph import sort_nodes
from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import CorruptArtifact, InvalidArgument, NotFound, ParityFailed, Unimplemented
from salver.core.model import Blob, Step, digest_file
from salver.core.tensors import Signature
from salver.datasets import bind, takes_single_examples
from salver.evaluation.runner import fit_run

_SORTED: Final = "nodes were sorted: some stood before those whose outputs they read"


class OnnxImporter(Importer):
    """Reads ONNX files (https://onnx.ai/onnx/repo-docs/IR.html) and ``onnx.ModelProto`` objects.

    The original is the file as given, run by ONNX Runtime with its optimizations off.
    """

    name = "onnx"

    def recognizes(self, source: Any) -> bool:
        if isinstance(source, Path):
            return source.suffix.lower() == ".onnx"
        return type(source).__name__ == "ModelProto" and type(source).__module__.partition(".")[0] == "onnx"

    def load(self, source: Any, workdir: Path, data: Dataset | None, options: ImportOptions) -> Imported:
        if isinstance(source, Path):
            return self._load(source, workdir, data, options)
        path = workdir / "source.onnx"
        write_onnx(source, path)
        try:
            return self._load(path, workdir, data, options)
        finally:
            path.unlink()

    def _load(self, source: Path, workdir: Path, data: Dataset | None, options: ImportOptions) -> Imported:
        if not source.is_file():
            raise NotFound(f"no such model file: '{source}'")
        if options.inputs:
            raise InvalidArgument(f"'{source.name}' says its own inputs; leave --input out")
        if source.resolve() == (workdir / "model.onnx").resolve():
            raise InvalidArgument(f"'{source}' lies where the import would be written; choose another workdir")
        model = read_onnx(source)
        files = external_files(model, source.parent)
        check_versions(model, source.name)
        check_operators(model, source.name)
        external = copy_external(files, workdir)
        beside = tuple(Blob.of(path, location) for location, path in files.items())
        original, ir_note = open_original(model, (Blob.of(source), *beside), external, workdir)
        order_note = _SORTED if sort_nodes(model.graph) else ""
        check_model(model, source.name, workdir)
        classes = drop_zipmap(model)
        dropped = drop_weight_inputs(model)
        raised = raise_ir(model) if dropped or model.ir_version < 4 else ""
        notes = [ir_note, order_note, raised, *deviations(model)]
        signature = read_signature(model.graph)
        leading = read_leading(signature)
        if data is not None and takes_single_examples(data, signature):
            leading = Leading(False)
        run = _with_plain_maps(original, classes)
        draft = Draft(
            importer=self.name,
            original=run,
            described=f"{source.name} as given, ONNX Runtime {backend_versions()['onnxruntime']} without optimizations",
            probe=_probe(signature, leading, data, run),
            leading=leading,
            workdir=workdir,
            options=options,
            lineage=(Step(action="source", name=source.name, output_digest=digest_file(source)),),
            tools=backend_versions(),
            external=external,
            labels=classes,
            notes=tuple(note for note in notes if note),
        )
        return _finish_upgraded(model, draft)


def _finish_upgraded(model: onnx.ModelProto, draft: Draft) -> Imported:
    upgraded, note = upgrade(model)
    if upgraded is not model:
        try:
            return finish(upgraded, _noting(draft, note))
        except (ParityFailed, CorruptArtifact, Unimplemented) as error:
            note = f"the opset was kept: raised, the model differs or does not load ({error})"
    return finish(model, _noting(draft, note))


def _noting(draft: Draft, note: str) -> Draft:
    return draft if not note else msgspec.structs.replace(draft, notes=(*draft.notes, note))


def _probe(signature: Signature, leading: Leading, data: Dataset | None, run: Run) -> Probe:
    fixed = leading.fixed or 1
    if data is not None and not leading.batched:
        return Probe(fit_run(signature, next(iter(bind(data, signature).batches(1))).inputs), 1, "data")
    if data is not None:
        probe = fit_rows(from_data(data, with_batch(signature)), fixed)
    else:
        probe = synthetic(signature, run, batched=leading.batched, multiple=fixed)
    return limit_rows(probe, run, fixed) if leading.batched else probe


def _with_plain_maps(run: Run, classes: Mapping[str, tuple[str, ...]]) -> Run:
    """Give the dictionaries of a ``ZipMap`` as the tensor they were made of."""
    if not classes:
        return run

    def run_plain(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        outputs = dict(run(inputs))
        for name, order in classes.items():
            rows = [{str(key): value for key, value in row.items()} for row in outputs[name]]
            outputs[name] = np.array([[row[c] for c in order] for row in rows], dtype=np.float32)
        return outputs

    return run_plain
