"""The types of numpy arrays, as annotations name them."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


def array_bytes(array: Array) -> int:
    """About how much an array takes when it is stored: strings as UTF-8 with a length before each."""
    return sum(4 + len(str(s).encode()) for s in array.flat) if array.dtype.kind == "O" else array.nbytes
