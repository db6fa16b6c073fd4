"""Keeps some runs of the original, so that they can be replayed where the original is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from salver.builder.importers.probes import Probe
from salver.core.arrays import Array, array_bytes
from salver.core.tensors import TensorSpec
from salver.evaluation.parity import Recording

MAX_BYTES: Final = 4 << 20
"""Of all recordings together."""
_FIRST_BYTES: Final = 32 << 20
_ROWS: Final = 32


class Recorder:
    """Collects runs while they fit in `MAX_BYTES`; the first may take 32 MiB, so that a model of large inputs has one.
    Runs with objects that are no strings (a missing category) cannot be stored, and are left out.

    Args:
        probe, inputs, outputs: what arrays are recorded as: inputs in the datatype of ``inputs`` where given, outputs
            in that of ``outputs``.
    """

    def __init__(self, probe: Probe, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self._inputs = {spec.name: spec.dtype for spec in inputs}
        self._outputs = {spec.name: spec.dtype for spec in outputs}
        self._rows = probe.rows
        self._left = MAX_BYTES
        self._kept: list[Recording] = []

    @property
    def recorded(self) -> tuple[Recording, ...]:
        """What was kept."""
        return tuple(self._kept)

    def add_rows(self, probe: Probe, outputs: Mapping[str, Array], size: int) -> None:
        """The first rows of a run at a batch size, as one run of at most 32 rows; outputs that do not have one row per
        input row cannot be cut, and are not kept."""
        if size == 0:
            self.add(probe.inputs, outputs)
            return
        rows = min(size, _ROWS)
        lengths = {len(outputs[name]) if outputs[name].ndim else 0 for name in self._outputs}
        if len(lengths) == 1 and min(lengths) >= rows and (rows == size or min(lengths) == self._rows):
            self.add(probe.cut(0, rows), {name: array[:rows] for name, array in outputs.items()})

    def add(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """One run, if it fits."""
        made = Recording(
            inputs={name: _owned(array, self._inputs.get(name, array.dtype)) for name, array in inputs.items()},
            outputs={name: _owned(outputs[name], dtype) for name, dtype in self._outputs.items()},
        )
        arrays = [*made.inputs.values(), *made.outputs.values()]
        if not all(isinstance(element, str) for array in arrays if array.dtype.kind == "O" for element in array.flat):
            return
        size = sum(map(array_bytes, arrays))
        if size <= self._left or (not self._kept and size <= _FIRST_BYTES):
            self._kept.append(made)
            self._left -= size


def _owned(array: Array, dtype: np.dtype) -> Array:
    with np.errstate(over="ignore"):
        return np.array(array, dtype=object if dtype.kind in "US" else dtype, order="C", copy=True)
