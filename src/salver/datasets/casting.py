"""Casts that keep every value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.tensors import NUMPY_DTYPES

if TYPE_CHECKING:
    import numpy.typing as npt

_FLOATS: Final = ("FP16", "BF16", "FP32", "FP64")


def can_cast(given: str, expected: str) -> bool:
    """Whether values of one datatype may stand in another, if each of them fits. Text and numbers never mix."""
    return given == expected or "BYTES" not in (given, expected)


def cast_values(array: Array, given: str, expected: str, what: str, first_row: int) -> Array:
    """Cast values; floating-point ones may be rounded to a narrower floating-point type, everything else must stay
    equal.

    Args:
        array: ``[rows, ...]``.
        given, expected: datatypes.
        what: begins the error message: file and column.
        first_row: number of rows that came before, for the message.

    Raises:
        InvalidArgument: naming the first row with a value that does not fit.
    """
    if given == expected:
        return array
    with np.errstate(all="ignore"):
        if expected == "BF16":
            out, bad = _to_bfloat16(array, given)
        else:
            out = array.astype(NUMPY_DTYPES[expected])
            bad = _lost(array, out, given in _FLOATS, expected in _FLOATS)
    if bad.any():
        position = tuple(np.argwhere(bad)[0])
        raise InvalidArgument(
            f"{what}, row {first_row + int(position[0]) + 1}: value {array[position]} ({given}) cannot be kept in "
            f"{expected}"
        )
    return out


def _lost(array: Array, out: Array, from_float: bool, to_float: bool) -> npt.NDArray[np.bool_]:
    if from_float and to_float:
        return np.isfinite(array) & ~np.isfinite(out)
    if to_float and array.dtype != np.bool_:
        exact = 2 ** (np.finfo(out.dtype).nmant + 1)
        info = np.iinfo(array.dtype)
        bad = np.zeros(array.shape, dtype=np.bool_)
        if info.max > exact:
            bad |= array > exact
        if info.min < -exact:
            bad |= array < -exact
        return bad
    same: npt.NDArray[np.bool_] = out.astype(array.dtype) == array
    if (
        not from_float
        and not to_float
        and array.dtype.kind != out.dtype.kind
        and "b" not in (array.dtype.kind, out.dtype.kind)
    ):
        same &= (array >= 0) & (out >= 0)  # int64 -1 and uint64 2**64-1 turn into each other and back
    if from_float:
        same &= np.abs(array) < 2.0**63
    return ~same


def _to_bfloat16(array: Array, given: str) -> tuple[Array, Any]:
    """Bit patterns of the nearest bfloat16 values, ties to even."""
    wide = array.astype(np.float32)
    bits = wide.view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
    out = np.where(np.isnan(wide), np.uint16(0x7FC0), rounded)
    back = (out.astype(np.uint32) << 16).view(np.float32)
    bad = np.isfinite(array) & ~np.isfinite(back) if given in _FLOATS else back != array
    return out, bad
