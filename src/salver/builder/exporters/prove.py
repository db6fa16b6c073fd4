"""Run source and export on the same inputs, each by its own backend, and certify that they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from salver.backends import Session, SessionOptions, find_backend
from salver.backends.apart import open_judged
from salver.builder.exporters.base import ExportOptions
from salver.builder.importers.base import Imported, ParityCertificate
from salver.builder.importers.onnx_batch import Leading, read_leading
from salver.builder.importers.parity import Run, batch_sizes_for, certify
from salver.builder.importers.probes import Probe, fit_rows, from_data, limit_rows, resize, synthetic
from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument
from salver.core.model import Model
from salver.core.tensors import Signature, TensorSpec
from salver.datasets import bind
from salver.evaluation.runner import fit_run


def prove(
    source: Model,
    exported: Model,
    data: Dataset | None,
    options: ExportOptions,
    *,
    optimize: bool = True,
    depth: int = 1,
    computed_in: str = "",
) -> ParityCertificate:
    """Load both and compare them at batch 1, 7 and all rows; at the only size there is where the batch is fixed.

    Inputs and outputs of the export are those of the source by name, or by position where the format names them anew.

    Args:
        source: what the export was made from, in a format that a backend runs.
        exported: what was written.
        data: examples; None makes inputs up.
        optimize: whether the runtime may optimize the export when it loads it, as it does to serve it.
        depth, computed_in: of the graph, for the tolerance; see `certify`.

    Raises:
        ParityFailed: naming output, input row and both values.
        SalverError: what was written cannot be loaded.
    """
    loading = SessionOptions(optimize="all" if optimize else "none")
    with open_judged(source, SessionOptions(optimize="none")) as original, open_judged(exported, loading) as made:
        probe, leading = probe_of(source.signature, original.run, data)
        probe, inputs = _settle(probe, leading, source.signature, exported.signature)
        fixed = leading.fixed
        return certify(
            original.run,
            renamed(made, source.signature),
            probe,
            batch_sizes_for(probe.rows, _fixed_at(exported.signature)) if leading.batched else (0,),
            described=f"{source.lineage[0].name if source.lineage else source.format}, {_versions(source.format)}",
            specs=source.signature.outputs,
            tolerance=options.tolerance,
            original_size=fixed,
            inputs=inputs,
            depth=depth,
            computed_in=computed_in,
            optimize="all" if optimize else "none",
            versions={**find_backend(source.format).versions(), **find_backend(exported.format).versions()},
        )


def reference(imported: Imported) -> Model:
    """What an export of the graph is compared with: the model in its own framework where that runs it."""
    return imported.native or imported.model


def probe_of(signature: Signature, run: Run, data: Dataset | None) -> tuple[Probe, Leading]:
    """Inputs to compare on, from examples or made up, and what the first dimensions say."""
    leading = Leading(True) if signature.batch_dim is not None else read_leading(signature)
    if leading.batched and leading.fixed is None and signature.batch_dim is None:
        leading = Leading(False)
    fixed = leading.fixed or 1
    if data is not None and not leading.batched:
        return Probe(fit_run(signature, next(iter(bind(data, signature).batches(1))).inputs), 1, "data"), leading
    if data is not None:
        probe = fit_rows(from_data(data, signature), fixed)
    else:
        probe = synthetic(signature, run, batched=leading.batched, multiple=fixed)
    return (limit_rows(probe, run, fixed) if leading.batched else probe), leading


def renamed(session: Session, source: Signature) -> Run:
    """Run an export with the names of its source."""
    own = session.signature
    into = _pairs(source.inputs, own.inputs, "inputs")
    back = _pairs(source.outputs, own.outputs, "outputs")
    dtypes = {spec.name: spec.dtype for spec in own.inputs}

    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        given = {into[name]: array.astype(dtypes[into[name]], copy=False) for name, array in inputs.items()}
        outputs = session.run(given)
        return {name: np.asarray(outputs[other]) for name, other in back.items()}

    return run


def _settle(
    probe: Probe, leading: Leading, source: Signature, exported: Signature
) -> tuple[Probe, tuple[TensorSpec, ...]]:
    """The probe at the sizes that the export is bound to where the source is not, and the inputs with these sizes."""
    into = _pairs(source.inputs, exported.inputs, "inputs")
    inputs = []
    for spec in source.inputs:
        made, shape = exported.input(into[spec.name]), list(spec.shape)
        if made.rank_known and spec.rank_known and len(made.shape) == len(shape):
            for axis in range(1 if leading.batched else 0, len(shape)):
                dim, size = spec.shape[axis], made.shape[axis]
                if isinstance(dim, str) and isinstance(size, int):
                    probe = resize(probe, source.inputs, dim, size, batched=leading.batched)
                    shape[axis] = size
        inputs.append(msgspec.structs.replace(spec, shape=tuple(shape)))
    bound = _fixed_at(exported) if leading.batched else None
    if bound is None or leading.fixed is not None:
        return probe, tuple(inputs)
    return fit_rows(probe, bound), ()


def _pairs(source: Sequence[TensorSpec], exported: Sequence[TensorSpec], kind: str) -> dict[str, str]:
    names, others = [s.name for s in source], [s.name for s in exported]
    if set(names) == set(others):
        return {name: name for name in names}
    if len(names) != len(others):
        raise InvalidArgument(f"the export has {kind} {others}, its source {names}")
    return dict(zip(names, others, strict=True))


def _fixed_at(signature: Signature) -> int | None:
    leading = read_leading(signature)
    return leading.fixed if leading.batched and signature.batch_dim is None else None


def _versions(format: str) -> str:
    return ", ".join(f"{name} {version}" for name, version in find_backend(format).versions().items())
