"""Run original and import on the same inputs, and certify that they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal

import numpy as np

from salver.builder.importers.probes import Probe, resize
from salver.builder.importers.recordings import Recorder
from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition, ParityFailed, SalverError
from salver.core.tensors import ANY_RANK, TensorSpec
from salver.evaluation.host import describe_host
from salver.evaluation.parity import (
    DimSizes,
    OutputParity,
    ParityCertificate,
    compare_output,
    find_ties,
    join_parity,
)
from salver.evaluation.tolerance import tolerance_for

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

_SINGLE_ROWS: Final = 16
_DIM_ROWS: Final = 2
_MAX_DIM_ELEMENTS: Final = 1 << 23
_FINEST_FIRST: Final = ("FP64", "FP32", "FP16", "BF16")


def certify(
    original: Run,
    imported: Run,
    probe: Probe,
    batch_sizes: Sequence[int],
    *,
    described: str,
    specs: Sequence[TensorSpec],
    tolerance: float | None,
    original_size: int | None = None,
    inputs: Sequence[TensorSpec] = (),
    depth: int = 1,
    computed_in: str = "",
    optimize: Literal["all", "none"] = "all",
    versions: Mapping[str, str] | None = None,
) -> ParityCertificate:
    """Compare outputs at several batch sizes, and at several sizes of every other dynamic dimension.

    Args:
        batch_sizes: at size 1 the first few rows are run, at others all of them; ``(0,)`` runs the probe once, as it
            is.
        specs: the outputs.
        tolerance: largest ``|a-b| / (1 + |a|)``, None for what follows from datatype and depth; outputs of 16 bits have
            that of their own resolution when it is larger. Rounding of the row's largest value is let pass too, up to
            1 % of the largest that the same element is in any row.
        original_size: the only batch size at which the original runs, if there is but one.
        inputs: the inputs, of which the named dimensions are tried at other sizes: 1, half and half as much again of
            what the probe has. Sizes that the original itself refuses are left out.
        depth: operators on the longest path through the graph, for the tolerance.
        computed_in: the coarsest float type in which the graph computes; empty for that of the outputs.
        optimize: how the runtime ran the import.
        versions: library -> version, for the record.

    Raises:
        ParityFailed: naming output, input row and both values.
    """
    rule = "as asked for"
    if tolerance is None:
        tolerance, rule = tolerance_for(computed_in or _coarsest(specs), depth)
    worst: dict[str, OutputParity] = {}
    recorder = Recorder(probe, inputs, specs)
    for size in batch_sizes:
        expected, given = _both(original, imported, probe, size, original_size)
        _compare(expected, given, specs, tolerance, f"batch size {size or 1}", worst)
        recorder.add_rows(probe, expected, size)
    dims: dict[str, list[int]] = {}
    for name, size, resized in _resized(probe, inputs, batched=tuple(batch_sizes) != (0,), multiple=original_size or 1):
        try:
            expected = _run_original(original, resized.inputs)
        except FailedPrecondition:
            continue
        given = _run_import(imported, resized.inputs, f"'{name}' = {size}")
        _compare(expected, given, specs, tolerance, f"'{name}' = {size}", worst)
        recorder.add(resized.inputs, expected)
        dims.setdefault(name, []).append(size)
    return ParityCertificate(
        original=described,
        inputs=probe.origin,
        examples=probe.rows,
        batch_sizes=tuple(batch_sizes) if tuple(batch_sizes) != (0,) else (),
        outputs=tuple(worst.values()),
        tolerance=tolerance,
        dims=tuple(DimSizes(name=name, sizes=tuple(sorted(sizes))) for name, sizes in dims.items()),
        rule=rule,
        optimize=optimize,
        versions=dict(versions or {}),
        host=describe_host(),
        recorded=recorder.recorded,
    )


def batch_sizes_for(rows: int, fixed: int | None) -> tuple[int, ...]:
    """Sizes to compare at: 1, another, and all rows; only the fixed one when the batch is fixed."""
    if fixed is not None:
        return (fixed,)
    return tuple(sorted({1, min(7, rows), rows}))


def run_in_batches(run: Run, probe: Probe, size: int, rows: int) -> dict[str, Array]:
    """Run the first rows, ``size`` at a time, and join the outputs; size 0 runs the probe once, as it is."""
    if size == 0:
        return {name: np.asarray(value) for name, value in run(probe.inputs).items()}
    parts = [run(probe.cut(start, min(start + size, rows))) for start in range(0, rows, size)]
    joined = {}
    for name in parts[0]:
        arrays = [np.asarray(part[name]) for part in parts]
        joined[name] = _join(arrays)
    return joined


def _join(arrays: Sequence[Array]) -> Array:
    if not arrays[0].ndim:
        return np.stack(arrays)
    if len({array.shape[1:] for array in arrays}) > 1:  # sizes that depend on the values: no rows to speak of
        arrays = [array.reshape(-1) for array in arrays]
    return np.concatenate(arrays)


def _both(
    original: Run, imported: Run, probe: Probe, size: int, original_size: int | None
) -> tuple[dict[str, Array], dict[str, Array]]:
    rows = probe.rows
    if size == 1:
        step = original_size or 1
        rows = min(rows, -(-_SINGLE_ROWS // step) * step)
    expected = run_in_batches(original, probe, original_size or size, rows)
    try:
        return expected, run_in_batches(imported, probe, size, rows)
    except (SalverError, ValueError) as error:
        raise ParityFailed(
            f"the imported model fails at batch size {size or 1} where the original runs: {error}"
        ) from error


def _run_original(original: Run, inputs: Mapping[str, Array]) -> dict[str, Array]:
    try:
        return {name: np.asarray(value) for name, value in original(inputs).items()}
    except Exception as error:  # boundary: the original's own framework refuses a size, in whatever words
        raise FailedPrecondition(str(error)) from error


def _run_import(imported: Run, inputs: Mapping[str, Array], where: str) -> dict[str, Array]:
    try:
        return {name: np.asarray(value) for name, value in imported(inputs).items()}
    except (SalverError, ValueError) as error:
        raise ParityFailed(f"the imported model fails at {where} where the original runs: {error}") from error


def _compare(
    expected: Mapping[str, Array],
    given: Mapping[str, Array],
    specs: Sequence[TensorSpec],
    tolerance: float,
    where: str,
    worst: dict[str, OutputParity],
) -> None:
    ties = find_ties(expected, tolerance)
    for spec in specs:
        name = spec.name
        a, b = expected[name], given[name]
        if a.shape != b.shape:
            raise ParityFailed(
                f"output '{name}' at {where}: the original gives shape {list(a.shape)}, the import {list(b.shape)}"
            )
        found, failure = compare_output(name, a, b, spec.datatype, tolerance, ties)
        if failure:
            raise ParityFailed(failure)
        worst[name] = join_parity(worst[name], found) if name in worst else found


def _resized(
    probe: Probe, inputs: Sequence[TensorSpec], *, batched: bool, multiple: int
) -> Iterator[tuple[str, int, Probe]]:
    """The probe with one named dimension at another size: a few rows each."""
    few = probe
    if batched:
        rows = min(probe.rows, -(-_DIM_ROWS // multiple) * multiple)
        few = Probe(probe.cut(0, rows), rows, probe.origin)
    for name, now in _named_sizes(few, inputs, batched).items():
        for size in sorted({1, now // 2, now, now + (now + 1) // 2} - {0}):
            resized = resize(few, inputs, name, size, batched=batched)
            if sum(array.size for array in resized.inputs.values()) <= _MAX_DIM_ELEMENTS:
                yield name, size, resized


def _named_sizes(probe: Probe, inputs: Sequence[TensorSpec], batched: bool) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spec in inputs:
        array = probe.inputs.get(spec.name)
        if array is None or spec.shape == (ANY_RANK,) or array.ndim != len(spec.shape):
            continue
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and not (batched and axis == 0):
                sizes.setdefault(dim, array.shape[axis])
    if batched:  # a batch in disguise, further back
        for spec in inputs:
            sizes.pop(str(spec.shape[0]) if spec.shape else "", None)
    return sizes


def _coarsest(specs: Sequence[TensorSpec]) -> str:
    found = {spec.datatype for spec in specs} & set(_FINEST_FIRST)
    return max(found, key=_FINEST_FIRST.index, default="")
