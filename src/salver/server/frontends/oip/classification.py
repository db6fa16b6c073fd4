"""Triton's classification extension: the largest values of an output, as text."""

from __future__ import annotations

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.tensors import TensorSpec
from salver.wire.elements import from_bf16


def classify(array: Array, spec: TensorSpec, classes: int, batched: bool) -> Array:
    """The largest values per row as ``value:index[:label]``, largest first (Triton's classification extension).

    Raises:
        InvalidArgument: the output is not numeric.
    """
    if spec.datatype in ("BYTES", "BOOL"):
        raise InvalidArgument(f"output '{spec.name}' is {spec.datatype}: classification needs numbers")
    values = array if spec.datatype != "BF16" else from_bf16(array)
    rows = values.reshape(len(values), -1) if batched and values.ndim else values.reshape(1, -1)
    best = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :classes]
    out = np.empty(best.shape, dtype=object)
    whole = values.dtype.kind in "iu"
    for (i, j), index in np.ndenumerate(best):
        value = rows[i, index]
        label = f":{spec.labels[index]}" if index < len(spec.labels) else ""
        out[i, j] = f"{int(value)}:{index}{label}" if whole else f"{float(value):f}:{index}{label}"
    return out if batched else out[0]
