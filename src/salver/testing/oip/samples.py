"""Values of every datatype, as tensors."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from salver.testing.oip.case import Tensor

DTYPES: Final[dict[str, Any]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
DATATYPES: Final = (*DTYPES, "BF16", "BYTES")
SHAPE: Final = (3, 4)
_FLOATS: Final = (0.0, 0.5, -1.25, 3.0, 1024.0, -0.0625, 6.5, -7.0, 100.0, -2.5, 0.25, 8.0)
_WORDS: Final = ("a", "plain", "two words", "tab\tand\nline", '"quoted" \\', "x" * 300)


def tensor(name: str, datatype: str, values: Iterable[Any], shape: Sequence[int] | None = None) -> Tensor:
    """A tensor of Python values; one row where no shape is given."""
    listed = list(values)
    if datatype == "BYTES":
        encoded = [v.encode() if isinstance(v, str) else v for v in listed]
        data = b"".join(struct.pack("<I", len(e)) + e for e in encoded)
    elif datatype == "BF16":
        data = (np.array(listed, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    else:
        data = np.array(listed, DTYPES[datatype]).tobytes()
    return Tensor(name, datatype, tuple(shape or (1, len(listed))), data)


def plain(datatype: str, name: str = "x") -> Tensor:
    """Values that no encoding should find hard: integers over the range up to 2**53, short fractions, ASCII."""
    count = math.prod(SHAPE)
    if datatype == "BOOL":
        values: list[Any] = [i % 3 == 0 for i in range(count)]
    elif datatype == "BYTES":
        values = [_WORDS[i % len(_WORDS)] for i in range(count)]
    elif datatype.startswith(("FP", "BF")):
        values = list(_FLOATS)
    else:
        limits = np.iinfo(DTYPES[datatype])
        low, high = max(limits.min, -(2**53)), min(limits.max, 2**53)
        values = [low, high, *(low + (high - low) * i // count for i in range(1, count - 1))]
    return tensor(name, datatype, values, SHAPE)


def extremes(datatype: str, name: str = "x") -> Tensor:
    """The least and the greatest value; of floats also the least normal, the least subnormal, infinities and NaN."""
    if datatype == "BYTES":
        return tensor(name, datatype, ["", "é ü 漢字 🎉", "\x00 \x00", "y" * 70_000])
    if datatype == "BOOL":
        return tensor(name, datatype, [True, False])
    if not datatype.startswith(("FP", "BF")):
        limits = np.iinfo(DTYPES[datatype])
        return tensor(name, datatype, [limits.min, limits.max, 0, limits.max - 1])
    if datatype == "BF16":
        bits = np.array([0x7F7F, 0xFF7F, 0x0080, 0x0001, 0x8000, 0x7F80, 0xFF80, 0x7FC0], np.uint16)
        return Tensor(name, datatype, (1, len(bits)), bits.tobytes())
    limits_f = np.finfo(DTYPES[datatype])
    special = [limits_f.max, limits_f.min, limits_f.tiny, limits_f.smallest_subnormal, -0.0, np.inf, -np.inf, np.nan]
    return tensor(name, datatype, special)
