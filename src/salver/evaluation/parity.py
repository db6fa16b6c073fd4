"""What a parity certificate says, and how far outputs are from those they should be."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final, Literal

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.evaluation.types import Host

ULP_BINS: Final = 25
"""Bins of the histogram: equal, then distances of ``2**(k-1)`` to ``2**k - 1`` units in the last place; the last bin
holds all that are farther."""
_CANCELLATION: Final = 0.04  # at a tolerance of 1e-4, some tens of units in the last place of a row's largest value
_MOST_NOISE: Final = 0.01  # of the largest value that an element has in any row
_RESOLUTION: Final = {"FP16": 2.0**-8, "BF16": 2.0**-5}


class OutputParity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one output differs from the original's.

    Args:
        name: output name.
        max_abs, mean_abs: absolute difference over all elements.
        max_rel: largest of ``|a-b| / (1 + |a|)``.
        label_agreement: share of rows with the same arg-max, or the same value for integers, strings and booleans.
        worst_input: row number of the input with the largest difference.
        mean_rel: mean of ``|a-b| / (1 + |a|)``.
        elements: how many were compared.
        ulps: for floats, elements by their distance in units in the last place of the output's datatype; the bins are
            those of `ULP_BINS`, empty ones at the end left out.
    """

    name: str
    max_abs: float
    mean_abs: float
    max_rel: float
    label_agreement: float
    worst_input: int
    mean_rel: float = 0.0
    elements: int = 0
    ulps: tuple[int, ...] = ()


class DimSizes(msgspec.Struct, frozen=True, kw_only=True):
    """A dynamic dimension other than the batch, and the sizes at which both models were run."""

    name: str
    sizes: tuple[int, ...]


class Recording(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One run of the original: name -> array."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


class ParityCertificate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Proof that a crossing changed nothing: original and converted model run on the same inputs.

    Args:
        original: what the reference was run with ("scikit-learn 1.9.1 predict_proba", "onnx as given").
        inputs: ``data`` when the user's own examples were used, ``synthetic`` otherwise.
        examples: how many.
        batch_sizes: every size at which both were run.
        outputs: one entry per output.
        tolerance: the limit on ``max_rel``.
        dims: dynamic dimensions besides the batch, with the sizes tried.
        rule: how the tolerance came about.
        seed: of synthetic inputs.
        optimize: how the runtime ran the converted model: with its graph optimizations (``all``) or without.
        changed_by: passes after the crossing that are meant to change numbers; a model that went through one is judged
            by its quality on labelled examples instead.
        versions: library -> version.
        host: where both were run; None where that is not known.
        recorded: some of the inputs, with the original's outputs; of bounded size.
    """

    original: str
    inputs: str
    examples: int
    batch_sizes: tuple[int, ...]
    outputs: tuple[OutputParity, ...]
    tolerance: float
    dims: tuple[DimSizes, ...] = ()
    rule: str = ""
    seed: int = 0
    optimize: Literal["all", "none"] = "all"
    changed_by: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    host: Host | None = None
    recorded: tuple[Recording, ...] = ()


class ParityReplay(msgspec.Struct, frozen=True, kw_only=True):
    """What came of running the recorded inputs again.

    Args:
        runs: how many recordings were replayed.
        outputs: how far each output is from the original's.
        judged_by: ``tolerance``; or ``quality`` where a pass was meant to change numbers, and nothing is decided here.
        limit: on ``max_rel``, where the tolerance decides.
        changed_by: the passes that were meant to change numbers.
        failures: one sentence for each output that is too far; for a model that could not be run, why.
    """

    runs: int
    outputs: tuple[OutputParity, ...]
    judged_by: Literal["tolerance", "quality"]
    limit: float
    changed_by: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the model still gives the original's answers, as far as that is asked for."""
        return not self.failures

    def __str__(self) -> str:
        if self.failures:
            return self.failures[0]
        worst = max((o.max_rel for o in self.outputs), default=0.0)
        told = f"{self.runs} recorded runs of the original: largest relative difference {worst:.2g}"
        if self.judged_by == "quality":
            return f"{told}; numbers were changed on purpose by {', '.join(self.changed_by)} and are judged by quality"
        return f"{told}, allowed {self.limit:.2g}"


def limit_for(datatype: str, tolerance: float) -> float:
    """The tolerance of an output: at least the resolution of its datatype."""
    return max(tolerance, _RESOLUTION.get(datatype, 0.0))


def find_ties(expected: Mapping[str, Array], tolerance: float) -> Array | None:
    """Rows whose two best scores are too near to tell apart, so that either label is right."""
    tied: Array | None = None
    for scores in expected.values():
        if scores.ndim != 2 or scores.shape[1] < 2 or scores.dtype.kind != "f":
            continue
        top = np.sort(scores.astype(np.float64), axis=1)[:, -2:]
        near: Array = np.asarray(top[:, 1] - top[:, 0] <= 2 * tolerance * (1 + np.abs(top[:, 1])))
        tied = near if tied is None or len(tied) != len(near) else tied | near
    return tied


def compare_output(
    name: str, expected: Array, given: Array, datatype: str, tolerance: float, ties: Array | None
) -> tuple[OutputParity, str]:
    """Compare one output, element by element.

    Args:
        expected, given: of the same shape; BF16 as bit patterns.
        datatype: of the output in the signature.
        tolerance: the largest ``|a-b| / (1 + |a|)``; see `limit_for`.
        ties: rows in which labels may differ, from `find_ties`.

    Returns:
        The differences, and where they are too large: row, element, both values; empty when they are not.
    """
    if expected.size == 0:
        empty = OutputParity(name=name, max_abs=0.0, mean_abs=0.0, max_rel=0.0, label_agreement=1.0, worst_input=0)
        return empty, ""
    if datatype in ("FP16", "BF16", "FP32", "FP64") and (expected.dtype.kind == "f" or datatype == "BF16"):
        return _compare_floats(name, expected, given, datatype, limit_for(datatype, tolerance))
    return _compare_classes(name, expected, given, ties)


def _compare_classes(name: str, a: Array, b: Array, ties: Array | None) -> tuple[OutputParity, str]:
    differs = np.asarray(a != b).reshape(len(a) if a.ndim else 1, -1)
    rows: Array = np.asarray(differs.any(axis=1))
    counted = rows & ~ties if ties is not None and len(ties) == len(rows) else rows
    failure = ""
    if counted.any():
        row = int(np.flatnonzero(counted)[0])
        failure = _describe(name, row, a, b, int(np.flatnonzero(differs[row])[0]), "they must be equal")
    found = OutputParity(
        name=name,
        max_abs=float(rows.any()),
        mean_abs=float(differs.mean()),
        max_rel=float(rows.any()),
        label_agreement=float(1 - rows.mean()),
        worst_input=int(rows.argmax()),
        mean_rel=float(differs.mean()),
        elements=int(a.size),
    )
    return found, failure


def _compare_floats(name: str, a: Array, b: Array, datatype: str, limit: float) -> tuple[OutputParity, str]:
    x, y = (_to_float64(v, datatype) for v in (a, b))
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
    noise = np.minimum(_CANCELLATION * limit * beside, _MOST_NOISE * own)
    by_row = np.where(absolute.reshape(by_row.shape) <= noise, 0.0, by_row)
    row = int(by_row.max(axis=1).argmax())
    failure = ""
    if by_row[row].max() > limit:
        said = f"the limit is {limit:.3g} relative to 1 + |original|"
        failure = _describe(name, row, x, y, int(by_row[row].argmax()), said)
    agreement = 1.0
    if x.ndim >= 2 and x.shape[-1] > 1:
        agreement = float(np.mean(x.argmax(axis=-1) == y.argmax(axis=-1)))
    found = OutputParity(
        name=name,
        max_abs=float(absolute.max()),
        mean_abs=float(absolute.mean()),
        max_rel=float(relative.max()),
        label_agreement=agreement,
        worst_input=row,
        mean_rel=float(relative.mean()),
        elements=int(x.size),
        ulps=_ulp_histogram(a, b, datatype),
    )
    return found, failure


def _describe(name: str, row: int, a: Array, b: Array, position: int, limit: str) -> str:
    rows = len(a) if a.ndim else 1
    x, y = (np.asarray(v).reshape(rows, -1)[row, position] for v in (a, b))
    return f"output '{name}', input row {row + 1}, element {position}: the original gives {x}, the import {y}; {limit}"


def join_parity(first: OutputParity, second: OutputParity) -> OutputParity:
    """Two findings about the same output as one."""
    larger = second if second.max_rel > first.max_rel else first
    count = max(1, first.elements + second.elements)
    ulps = [sum(counts) for counts in itertools.zip_longest(first.ulps, second.ulps, fillvalue=0)]
    return OutputParity(
        name=first.name,
        max_abs=max(first.max_abs, second.max_abs),
        mean_abs=(first.mean_abs * first.elements + second.mean_abs * second.elements) / count,
        max_rel=larger.max_rel,
        label_agreement=min(first.label_agreement, second.label_agreement),
        worst_input=larger.worst_input,
        mean_rel=(first.mean_rel * first.elements + second.mean_rel * second.elements) / count,
        elements=first.elements + second.elements,
        ulps=tuple(ulps),
    )


def _ulp_histogram(a: Array, b: Array, datatype: str) -> tuple[int, ...]:
    first, second = (_ordered(v, datatype) for v in (a, b))
    distance = np.maximum(first, second) - np.minimum(first, second)
    nan = _to_float64(a, datatype), _to_float64(b, datatype)
    both = np.isnan(nan[0]) & np.isnan(nan[1])
    distance = np.where(both.reshape(-1), 0, distance)
    bins = np.minimum(np.ceil(np.log2(distance.astype(np.float64) + 1)).astype(np.int64), ULP_BINS - 1)
    return tuple(np.trim_zeros(np.bincount(bins), "b").tolist())


def _ordered(values: Array, datatype: str) -> Array:
    """Floats as unsigned integers in the same order, neighbors one apart; both zeros are one number."""
    width = {"FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8}[datatype]
    if datatype == "BF16" and values.dtype.kind == "f":
        values = values.astype(np.float32).view(np.uint32) >> 16
    elif datatype != "BF16":
        values = values.astype(f"f{width}")
    bits = np.ascontiguousarray(values).reshape(-1).astype(np.uint16 if datatype == "BF16" else values.dtype)
    bits = bits.view(f"u{width}").astype(np.uint64)
    middle = np.uint64(1 << (8 * width - 1))
    return np.where(bits >= middle, middle - (bits - middle), middle + bits)


def _to_float64(values: Array, datatype: str) -> Array:
    if datatype == "BF16" and values.dtype.kind == "u":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values).astype(np.float64)
