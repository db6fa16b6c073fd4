"""Do batch-mates change each other's answers? Outputs at batch N against batch 1, on the same rows, beside bad
company."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from salver.backends import Session
from salver.core.arrays import Array
from salver.core.tensors import TensorSpec
from salver.evaluation.meter import take_rows
from salver.evaluation.runner import RowRunner, fixed_batch
from salver.evaluation.types import Invariance

_SIZES: Final = (2, 8, 32)
_ROWS_PER_SIZE: Final = 8
_MATE_SCALE: Final = 100.0
_TOLERANCE: Final = {"FP16": 4e-3, "BF16": 3e-2}
_DEFAULT_TOLERANCE: Final = 1e-4
_ROUNDING: Final = 1e-2


def check_invariance(session: Session, inputs: Mapping[str, Array], sizes: tuple[int, ...] = _SIZES) -> Invariance:
    """Compare outputs of the same rows alone, among other real rows, and among rows a hundred times as large.

    A model is invariant when every row keeps its class, and either all values stay within 1e-4 (FP16 4e-3, BF16 3e-2)
    of ``1 + |value at batch 1|``; or they stay within 1e-2 and do not depend on who the mates are: kernels round
    differently at another batch size, and a quantized value next to a step then falls on its other side.

    Args:
        inputs: real rows, any number from 1.
    """
    fixed = fixed_batch(session.signature)
    if fixed is not None:
        return Invariance(
            batch_sizes=(),
            max_abs=0.0,
            max_rel=0.0,
            label_flips=0,
            rows=0,
            invariant=False,
            reason=_describe_fixed(fixed),
        )
    outputs = session.signature.outputs
    runner = RowRunner(session)
    count = max(*sizes, _ROWS_PER_SIZE)
    rows = take_rows(inputs, count)
    alone = _concat([runner.run(_pick(rows, np.array([i])), 1) for i in range(count)])
    worst = _Difference()
    from_mates = _Difference()
    compared = 0
    for size in sizes:
        real = max(1, size // 2)
        for start in range(0, max(_ROWS_PER_SIZE, real), real):
            picked = np.arange(start, start + real) % count
            mates = (start + real + np.arange(size - real)) % count
            expected = _pick(alone, picked)
            friendly = _run_with(runner, rows, picked, mates, 1.0)
            strangers = (start + real + size + np.arange(size - real) // 2) % count
            hostile = _run_with(runner, rows, picked, strangers, _MATE_SCALE)
            worst = worst.add(outputs, expected, friendly, size).add(outputs, expected, hostile, size)
            from_mates = from_mates.add(outputs, friendly, hostile, size)
            compared += 2 * real
    within = worst.excess <= 1.0
    only_rounding = from_mates.excess <= 0.1 and worst.relative <= _ROUNDING
    invariant = worst.flips == 0 and (within or only_rounding)
    return Invariance(
        batch_sizes=sizes,
        max_abs=worst.absolute,
        max_rel=worst.relative,
        label_flips=worst.flips,
        rows=compared,
        invariant=invariant,
        reason="" if invariant else _describe_failure(worst, from_mates.excess > 0.1),
    )


class _Difference(msgspec.Struct, frozen=True):
    """The largest differences so far; ``excess`` is relative to what the datatype's tolerance allows."""

    absolute: float = 0.0
    relative: float = 0.0
    excess: float = 0.0
    flips: int = 0
    size: int = 0

    def add(
        self, specs: tuple[TensorSpec, ...], expected: dict[str, Array], got: dict[str, Array], size: int
    ) -> _Difference:
        absolute, relative, excess, flips, worst_size = self.absolute, self.relative, self.excess, self.flips, self.size
        for spec in specs:
            first, second = expected[spec.name], got[spec.name]
            if first.dtype.kind != "f":
                flips += int(np.sum(np.any((first != second).reshape(len(first), -1), axis=1)))
                continue
            first, second = first.astype(np.float64), second.astype(np.float64)
            apart = np.abs(first - second)
            apart = np.where(
                (first == second) | (np.isnan(first) & np.isnan(second)), 0.0, np.nan_to_num(apart, nan=1e30)
            )
            ratio = float((apart / (1.0 + np.abs(np.nan_to_num(first)))).max(initial=0.0))
            tolerance = _TOLERANCE.get(spec.datatype, _DEFAULT_TOLERANCE)
            if ratio > relative:
                absolute, relative, worst_size = float(apart.max()), ratio, size
            excess = max(excess, ratio / tolerance)
            flips += _count_flips(first, second, tolerance)
        return _Difference(absolute, relative, excess, flips, worst_size)


def _count_flips(first: Array, second: Array, tolerance: float) -> int:
    """Rows whose arg-max changed, other than by the rounding of a tie."""
    if first.ndim != 2 or first.shape[1] < 2:
        return 0
    before, after = np.argmax(first, axis=1), np.argmax(second, axis=1)
    rows = np.arange(len(first))
    gap = first[rows, before] - first[rows, after]
    return int(np.sum((before != after) & (gap > 2.0 * tolerance * (1.0 + np.abs(first[rows, before])))))


def _run_with(runner: RowRunner, rows: dict[str, Array], picked: Array, mates: Array, scale: float) -> dict[str, Array]:
    """Outputs of the picked rows, run in one batch with mates whose float inputs are scaled."""
    batch = {}
    for name, array in rows.items():
        company = array[mates]
        if scale != 1.0 and array.dtype.kind == "f":
            largest = np.finfo(array.dtype).max
            company = np.clip(company.astype(np.float64) * scale, -largest, largest).astype(array.dtype)
        batch[name] = np.concatenate([array[picked], company])
    outputs = runner.run(batch, len(picked) + len(mates))
    return {name: array[: len(picked)] for name, array in outputs.items()}


def _pick(rows: Mapping[str, Array], picked: Array) -> dict[str, Array]:
    return {name: array[picked] for name, array in rows.items()}


def _concat(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


_COST: Final = "requests are not merged, so under load it does not get faster by batching"


def _describe_fixed(size: int) -> str:
    what = "takes one example at a time" if size == 1 else f"has its batch fixed at {size}"
    return f"the model {what}; {_COST}"


def _describe_failure(worst: _Difference, by_mates: bool) -> str:
    cause = "batch-mates change its answers" if by_mates else "its answers change with the batch size"
    flips = f", and {worst.flips} rows change their class" if worst.flips else ""
    return f"{cause}: by up to {worst.relative:.2g} of 1 + |value| at batch {worst.size}{flips}; {_COST}"
