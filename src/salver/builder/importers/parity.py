"""Run original and import on the same inputs, and certify that they agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from salver.builder.importers.base import OutputParity, ParityCertificate
from salver.builder.importers.probes import Probe
from salver.core.arrays import Array
from salver.core.errors import ParityFailed, SalverError
from salver.core.tensors import TensorSpec

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

_SINGLE_ROWS: Final = 16
_CANCELLATION: Final = 0.04  # at a tolerance of 1e-4, some tens of units in the last place of a row's largest value
_MOST_NOISE: Final = 0.01  # of the largest value that an element has in any row
_RESOLUTION: Final = {"FP16": 2.0**-8, "BF16": 2.0**-5}


def certify(
    original: Run,
    imported: Run,
    probe: Probe,
    batch_sizes: Sequence[int],
    *,
    described: str,
    specs: Sequence[TensorSpec],
    tolerance: float,
    original_size: int | None = None,
) -> ParityCertificate:
    """Compare outputs at several batch sizes.

    Args:
        batch_sizes: at size 1 the first few rows are run, at others all of them; ``(0,)`` runs the probe once, as it
            is.
        specs: the outputs.
        tolerance: largest ``|a-b| / (1 + |a|)``; outputs of 16 bits have that of their own resolution when it is
            larger. Rounding of the row's largest value is let pass too, up to 1 % of the largest that the same element
            is in any row.
        original_size: the only batch size at which the original runs, if there is but one.

    Raises:
        ParityFailed: naming output, input row and both values.
    """
    worst: dict[str, OutputParity] = {}
    for size in batch_sizes:
        expected, given = _both(original, imported, probe, size, original_size)
        ties = _ties(expected, tolerance)
        for spec in specs:
            name, limit = spec.name, max(tolerance, _RESOLUTION.get(spec.datatype, 0.0))
            a, b = (_to_float32(v[name]) if spec.datatype == "BF16" else v[name] for v in (expected, given))
            found = _compare(name, a, b, limit, ties, size)
            known = worst.get(name)
            worst[name] = found if known is None else _join(known, found)
    return ParityCertificate(
        original=described,
        inputs=probe.origin,
        examples=probe.rows,
        batch_sizes=tuple(batch_sizes) if batch_sizes != (0,) else (),
        outputs=tuple(worst.values()),
        tolerance=tolerance,
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
        joined[name] = np.concatenate(arrays) if arrays[0].ndim else np.stack(arrays)
    return joined


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


def _ties(expected: Mapping[str, Array], tolerance: float) -> Array | None:
    """Rows whose two best scores are too near to tell apart, so that either label is right."""
    tied: Array | None = None
    for scores in expected.values():
        if scores.ndim != 2 or scores.shape[1] < 2 or scores.dtype.kind != "f":
            continue
        top = np.sort(scores.astype(np.float64), axis=1)[:, -2:]
        near: Array = np.asarray(top[:, 1] - top[:, 0] <= 2 * tolerance * (1 + np.abs(top[:, 1])))
        tied = near if tied is None or len(tied) != len(near) else tied | near
    return tied


def _compare(name: str, a: Array, b: Array, tolerance: float, ties: Array | None, size: int) -> OutputParity:
    if a.shape != b.shape:
        raise ParityFailed(
            f"output '{name}' at batch size {size or 1}: the original gives shape {list(a.shape)}, the import "
            f"{list(b.shape)}"
        )
    if a.size == 0:
        return OutputParity(name=name, max_abs=0.0, mean_abs=0.0, max_rel=0.0, label_agreement=1.0, worst_input=0)
    if a.dtype.kind == "f":
        return _compare_floats(name, a, b, tolerance)
    differs = np.asarray(a != b).reshape(len(a) if a.ndim else 1, -1)
    rows: Array = np.asarray(differs.any(axis=1))
    counted = rows & ~ties if ties is not None and len(ties) == len(rows) else rows
    if counted.any():
        row = int(np.flatnonzero(counted)[0])
        raise _failure(name, row, a, b, int(np.flatnonzero(differs[row])[0]), "they must be equal")
    return OutputParity(
        name=name,
        max_abs=float(rows.any()),
        mean_abs=float(differs.mean()),
        max_rel=float(rows.any()),
        label_agreement=float(1 - rows.mean()),
        worst_input=int(rows.argmax()),
    )


def _compare_floats(name: str, a: Array, b: Array, tolerance: float) -> OutputParity:
    x, y = a.astype(np.float64), np.asarray(b).astype(np.float64)
    with np.errstate(invalid="ignore"):
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        absolute = np.where(same, 0.0, np.abs(x - y))
        relative = np.where(same, 0.0, absolute / (1 + np.abs(x)))
    absolute, relative = (np.where(np.isnan(v), np.inf, v) for v in (absolute, relative))
    by_row = relative.reshape(len(x) if x.ndim else 1, -1)
    # Where large terms cancel, a small result carries the rounding of the large ones beside it. An element that is
    # small in every row may be another quantity altogether, in which such an error would be no rounding.
    sizes = np.where(np.isfinite(x), np.abs(x), 0.0).reshape(by_row.shape)
    beside = sizes.max(axis=1, keepdims=True, initial=0.0)
    own = sizes.max(axis=0, keepdims=True, initial=0.0)
    noise = np.minimum(_CANCELLATION * tolerance * beside, _MOST_NOISE * own)
    by_row = np.where(absolute.reshape(by_row.shape) <= noise, 0.0, by_row)
    row = int(by_row.max(axis=1).argmax())
    if by_row[row].max() > tolerance:
        limit = f"the limit is {tolerance:g} relative to 1 + |original|"
        raise _failure(name, row, a, b, int(by_row[row].argmax()), limit)
    agreement = 1.0
    if x.ndim >= 2 and x.shape[-1] > 1:
        agreement = float(np.mean(x.argmax(axis=-1) == y.argmax(axis=-1)))
    return OutputParity(
        name=name,
        max_abs=float(absolute.max()),
        mean_abs=float(absolute.mean()),
        max_rel=float(relative.max()),
        label_agreement=agreement,
        worst_input=row,
    )


def _failure(name: str, row: int, a: Array, b: Array, position: int, limit: str) -> ParityFailed:
    rows = len(a) if a.ndim else 1
    x, y = (np.asarray(v).reshape(rows, -1)[row, position] for v in (a, b))
    return ParityFailed(
        f"output '{name}', input row {row + 1}, element {position}: the original gives {x}, the import {y}; {limit}"
    )


def _join(first: OutputParity, second: OutputParity) -> OutputParity:
    larger = second if second.max_rel > first.max_rel else first
    return OutputParity(
        name=first.name,
        max_abs=max(first.max_abs, second.max_abs),
        mean_abs=max(first.mean_abs, second.mean_abs),
        max_rel=larger.max_rel,
        label_agreement=min(first.label_agreement, second.label_agreement),
        worst_input=larger.worst_input,
    )


def _to_float32(bits: Array) -> Array:
    """Values of bfloat16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
