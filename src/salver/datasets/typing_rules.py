"""How text formats get their types: one datatype per column, decided by all of its values."""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np

from salver.core.arrays import Array

_INTEGER: Final = re.compile(r"[+-]?\d{1,19}\Z", re.ASCII)
_REAL: Final = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf|infinity|nan)\Z", re.ASCII | re.I)
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1

ORDER: Final = ("INT64", "FP64", "BYTES")
"""From narrow to wide: a column has the widest of its values."""


def text_datatype(cell: str) -> str:
    """The narrowest datatype of a CSV cell. An empty cell is FP64: a missing number is NaN."""
    cell = cell.strip()
    if _INTEGER.match(cell):
        return "INT64" if _INT64_MIN <= int(cell) <= _INT64_MAX else "FP64"
    return "FP64" if not cell or _REAL.match(cell) else "BYTES"


def widest(first: str | None, second: str) -> str:
    """The wider of two datatypes."""
    return second if first is None else ORDER[max(ORDER.index(first), ORDER.index(second))]


def text_array(cells: list[str], datatype: str) -> Array:
    """Cells of one column as an array of its datatype."""
    if datatype == "INT64":
        return np.array([int(c) for c in cells], dtype=np.int64)
    if datatype == "FP64":
        return np.array([float(c) if c.strip() else np.nan for c in cells], dtype=np.float64)
    return object_array(cells)


def object_array(values: list[Any]) -> Array:
    """A one-dimensional ``object`` array of exactly these values."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
