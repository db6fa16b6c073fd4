"""What importers of several frameworks have in common: a ladder of routes to ONNX, and the model in its own format
where none leads there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import onnx

from salver.builder.importers.base import Imported
from salver.builder.importers.native import finish_native
from salver.builder.importers.onnx_batch import Leading, read_leading
from salver.builder.importers.onnx_finish import Draft, finish
from salver.builder.importers.parity import Run
from salver.builder.importers.probes import Probe, fit_rows, from_data, limit_rows, synthetic
from salver.core.dataset import Dataset
from salver.core.errors import CorruptArtifact, ParityFailed, Unimplemented
from salver.core.model import Model, Step, digest_bytes, digest_file
from salver.core.tensors import Signature
from salver.datasets import bind
from salver.evaluation.runner import fit_run


class Rung(msgspec.Struct, frozen=True):
    """One route to ONNX.

    Args:
        name: for messages: "tf2onnx at opset 15".
        convert: makes the graph, or raises `Unimplemented` or `CorruptArtifact`.
    """

    name: str
    convert: Callable[[], onnx.ModelProto]


def climb(rungs: Sequence[Rung], draft: Draft, native: Model) -> Imported:
    """The first route whose graph gives the original's answers; without one, the model in its own format.

    Args:
        native: what the backend of the framework runs, below ``draft.workdir``.
    """
    reasons: list[str] = []
    for rung in rungs:
        try:
            graph = rung.convert()
            notes = (*draft.notes, *((f"imported by {rung.name}; {'; '.join(reasons)}",) if reasons else ()))
            made = finish(graph, msgspec.structs.replace(draft, notes=notes))
        except (Unimplemented, CorruptArtifact, ParityFailed) as error:
            reasons.append(f"{rung.name} failed: {error}")
            continue
        return msgspec.structs.replace(made, native=native)
    return finish_native(native, draft, f"no route to ONNX keeps its answers ({'; '.join(reasons)})")


def leading_of(signature: Signature) -> Leading:
    """What the first dimensions say: a batch where inputs and outputs share one, or inputs have one size."""
    found = read_leading(signature)
    return found if signature.batch_dim is not None or found.fixed is not None else Leading(False)


def probe_for(signature: Signature, run: Run, data: Dataset | None) -> Probe:
    """Inputs to compare on, of the user's examples or made up."""
    leading = leading_of(signature)
    fixed = leading.fixed or 1
    if data is not None and not leading.batched:
        return Probe(fit_run(signature, next(iter(bind(data, signature).batches(1))).inputs), 1, "data")
    if data is not None:
        probe = fit_rows(from_data(data, _free(signature) if leading.fixed else signature), fixed)
    else:
        probe = synthetic(signature, run, batched=leading.batched, multiple=fixed)
    return limit_rows(probe, run, fixed) if leading.batched else probe


def _free(signature: Signature) -> Signature:
    inputs = tuple(msgspec.structs.replace(s, shape=("batch", *s.shape[1:])) for s in signature.inputs)
    return Signature(inputs=inputs, outputs=signature.outputs)


def source_step(name: str, files: Mapping[str, Path]) -> Step:
    """The lineage of a source of one file or several."""
    digests = {key: digest_file(path) for key, path in files.items()}
    if len(digests) == 1:
        return Step(action="source", name=name, output_digest=next(iter(digests.values())))
    listed = "\n".join(f"{key} {digest}" for key, digest in digests.items())
    return Step(action="source", name=name, output_digest=digest_bytes(listed.encode()))


def copy_files(source: Path, names: Sequence[str], target: Path) -> dict[str, Path]:
    """Copy files of a folder into another; name -> copy."""
    copies = {name: target / name for name in names}
    for name, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, copy)
    return copies
