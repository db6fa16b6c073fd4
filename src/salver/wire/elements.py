"""The elements of one tensor: from JSON values and from bytes, and back, for every datatype."""

from __future__ import annotations

import json
import math
import re
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, TooLarge, format_shape
from salver.core.tensors import NUMPY_DTYPES
from salver.wire import jsonio

if TYPE_CHECKING:
    import numpy.typing as npt


JSON_KINDS: Final[dict[str, type]] = {
    name: bool if name == "BOOL" else str if name == "BYTES" else float if name[0] in "FB" else int
    for name in NUMPY_DTYPES
}
"""Datatype -> the JSON type of its elements. FP16 and BF16 are numbers, rounded to nearest even (Triton has no JSON
form for them)."""

_STRUCT_CODES: Final = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_BF16_MAX: Final = 3.3895313892515355e38
_MAX_STRUCT: Final = 4096
_MAX_RANK: Final = 64  # numpy's
_OPENING: Final = re.compile(rb"[\[ \t\r\n]*")
_MAX_EXTENT: Final = 1 << 59  # numpy counts bytes in 63 bits, with a size of 0 counted as 1


@lru_cache(maxsize=256)
def _packer(code: str, count: int) -> struct.Struct:
    return struct.Struct(f"<{count}{code}")


def pack_bytes(values: list[Any], datatype: str) -> bytes | None:
    """The elements of an array of JSON values of the right type; None where there are many, or numpy must make them.

    `struct` is as fast as numpy here, and refuses what does not fit where numpy would warn and write infinity.

    Raises:
        struct.error, OverflowError: a value does not fit.
    """
    code = _STRUCT_CODES.get(datatype)
    count = len(values)
    return _packer(code, count).pack(*values) if code is not None and count <= _MAX_STRUCT else None


def pack(values: list[Any], datatype: str, shape: list[int]) -> Array:
    """An array of as many JSON values of the right type (`JSON_KINDS`) as its shape holds.

    Raises:
        struct.error, OverflowError, FloatingPointError: a value does not fit.
    """
    dtype = NUMPY_DTYPES[datatype]
    packed = pack_bytes(values, datatype)
    if packed is not None:
        return np.ndarray(shape, dtype, packed)
    count = len(values)
    if datatype == "BYTES":
        array: Array = np.empty(count, dtype)
        array[:] = values
        return array.reshape(shape)
    with np.errstate(over="raise"):
        if datatype == "BF16":
            return _fit_bf16(np.fromiter(values, np.float32, count)).reshape(shape)
        return np.fromiter(values, dtype, count).reshape(shape)


def from_json(data: Any, datatype: str, shape: list[int], where: str) -> Array:
    """An array from the ``data`` of a tensor: flat, or nested as its shape says.

    Args:
        data: undecoded (`msgspec.Raw`), or plain data.

    Raises:
        InvalidArgument: an element of the wrong type or out of range, or not as many as the shape says.
    """
    count = count_of(shape, where)
    depth = _depth(data)
    if depth not in (1, len(shape)):
        raise InvalidArgument(
            f"{where}: data is nested {depth} deep, expected flat or as the shape {format_shape(shape)}"
        )
    kind: Any = JSON_KINDS[datatype]
    for _ in range(depth):
        kind = list[kind]
    place = f"{where}: data"
    values = jsonio.decode(data, kind, place) if isinstance(data, msgspec.Raw) else jsonio.convert(data, kind, place)
    if depth > 1:
        values = _flatten(values, shape, where)
    return _to_array(values, datatype, shape, count, where)


def from_values(values: list[Any], datatype: str, shape: list[int], where: str) -> Array:
    """An array from a flat list of Python values of the right type (`JSON_KINDS`).

    Raises:
        InvalidArgument: a value out of range, or not as many as the shape says.
    """
    return _to_array(values, datatype, shape, count_of(shape, where), where)


def _to_array(values: list[Any], datatype: str, shape: list[int], count: int, where: str) -> Array:
    if len(values) != count:
        raise InvalidArgument(f"{where}: got {len(values)} elements, expected {count} for shape {format_shape(shape)}")
    try:
        return pack(values, datatype, shape)
    except (struct.error, OverflowError, FloatingPointError):
        raise _out_of_range(values, datatype, where) from None


def from_bytes(
    body: bytes, start: int, size: int, datatype: str, shape: list[int], where: str, binary: bool = False
) -> Array:
    """An array over ``body[start:start + size]``; a copy only where it is not aligned or is text.

    Args:
        binary: whether elements of BYTES are bytes of any kind, see `TensorSpec`.

    Raises:
        InvalidArgument: the size is not that of the shape, or the bytes are no such elements.
    """
    count = count_of(shape, where)
    dtype = NUMPY_DTYPES[datatype]
    if datatype == "BYTES":
        return pack(_split_bytes(body[start : start + size], count, where, binary), datatype, shape)
    expected = count * dtype.itemsize
    if size != expected:
        raise InvalidArgument(
            f"{where}: got {size} bytes, expected {expected} for {datatype} of shape {format_shape(shape)}"
        )
    array = np.frombuffer(body, dtype, count, start).reshape(shape)
    if datatype == "BOOL" and count and int(array.view(np.uint8).max()) > 1:
        index = int(np.argmax(array.view(np.uint8).ravel() > 1))
        raise InvalidArgument(f"{where}: element {index} is byte {body[start + index]}, BOOL is 0 or 1")
    return array if array.flags.aligned else array.copy()


def _split_bytes(data: bytes, count: int, where: str, binary: bool) -> list[str]:
    values: list[str] = []
    position, end = 0, len(data)
    while position < end:
        index = len(values)
        stop = position + 4 + int.from_bytes(data[position : position + 4], "little")
        if position + 4 > end or stop > end:
            raise InvalidArgument(f"{where}: element {index} claims more bytes than the {end - position} that are left")
        if index == count:
            raise InvalidArgument(f"{where}: more than {count} elements, {end - position} bytes are left over")
        values.append(decode_text(data[position + 4 : stop], index, where, binary))
        position = stop
    if len(values) != count:
        raise InvalidArgument(f"{where}: got {len(values)} elements, expected {count}")
    return values


def decode_text(raw: bytes, index: int, where: str, binary: bool = False) -> str:
    """One element of a string input; of one that takes bytes of any kind a character for each, see `TensorSpec`.

    Raises:
        InvalidArgument: it is not UTF-8.
    """
    try:
        return raw.decode("latin-1") if binary else raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"{where}: element {index} is not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start}; "
            "string inputs take UTF-8 only"
        ) from None


def check_strings(array: Array, max_bytes: int, where: str, binary: bool = False) -> None:
    """Refuse a string tensor that has an element of more than ``max_bytes`` bytes of UTF-8; of one that takes bytes of
    any kind, of more characters, see `TensorSpec`.

    Raises:
        TooLarge: names the element.
    """
    for index, value in enumerate(array.reshape(-1).tolist()):
        if len(value) * 4 > max_bytes and (size := len(value) if binary else len(value.encode())) > max_bytes:
            raise TooLarge(
                f"{where}: element {index} has {size} bytes, over the limit of {max_bytes} (max_string_bytes)",
                limit="max_string_bytes",
            )


def to_json(array: Array, datatype: str) -> bytes:
    """The elements, flat and row-major, as a JSON list; NaN and Infinity as tokens."""
    if datatype == "BF16":
        array = from_bf16(array)
    values = array.ravel().tolist()
    data = jsonio.ENCODER.encode(values)
    if datatype[0] in "FB" and b"null" in data and datatype != "BYTES":
        return json.dumps(values, separators=(",", ":")).encode()
    return data


def to_bytes(array: Array, datatype: str) -> bytes | memoryview:
    """The elements, row-major and little-endian; BYTES with their 4-byte lengths. Large arrays are not copied."""
    if datatype == "BYTES":
        parts: list[bytes] = []
        for value in array.reshape(-1).tolist():
            raw = value if isinstance(value, bytes) else value.encode()
            parts += (len(raw).to_bytes(4, "little"), raw)
        return b"".join(parts)
    if array.nbytes < 4096 or not array.flags.c_contiguous:
        return array.tobytes()
    return array.reshape(-1).view(np.uint8).data


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to bfloat16 bit patterns, to nearest even; NaN stays a quiet NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _fit_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    patterns = to_bf16(values)
    if np.any(np.isinf(from_bf16(patterns)) & np.isfinite(values)):
        raise OverflowError
    return patterns


def from_bf16(patterns: Array) -> npt.NDArray[np.float32]:
    """The exact values of bfloat16 bit patterns."""
    return (patterns.astype(np.uint32) << 16).view(np.float32)


def count_of(shape: list[int], where: str) -> int:
    """Number of elements of a shape.

    Raises:
        InvalidArgument: a negative size, or more dimensions or elements than there can be.
    """
    if len(shape) > _MAX_RANK:
        raise InvalidArgument(f"{where}: got {len(shape)} dimensions, at most {_MAX_RANK} can be")
    count = 1
    for size in shape:
        if size < 0:
            raise InvalidArgument(f"{where}: got shape {format_shape(shape)}, a size cannot be negative")
        count *= size or 1
    if count > _MAX_EXTENT:
        raise InvalidArgument(f"{where}: shape {format_shape(shape)} is larger than an array can be")
    return 0 if 0 in shape else count


def _depth(data: Any) -> int:
    """How many lists deep the first element lies."""
    if isinstance(data, msgspec.Raw):
        opening = _OPENING.match(data)
        return max(opening[0].count(b"["), 1) if opening else 1
    depth = 0
    while isinstance(data, list):
        depth += 1
        if not data:
            break
        data = data[0]
    return max(depth, 1)


def _flatten(values: list[Any], shape: list[int], where: str) -> list[Any]:
    rows: list[Any] = [values]
    for axis, size in enumerate(shape):
        for row in rows:
            if len(row) != size:
                raise InvalidArgument(
                    f"{where}: nested data has {len(row)} items along dimension {axis}, "
                    f"expected {size} for shape {format_shape(shape)}"
                )
        rows = [item for row in rows for item in row]
    return rows


def _out_of_range(values: list[Any], datatype: str, where: str) -> InvalidArgument:
    dtype = NUMPY_DTYPES[datatype]
    limits: Any = np.iinfo(dtype) if dtype.kind in "iu" and datatype != "BF16" else None
    low: float
    high: float
    if limits is not None:
        low, high = int(limits.min), int(limits.max)
    else:
        high = _BF16_MAX if datatype == "BF16" else float(np.finfo(dtype).max)
        low = -high
    for index, value in enumerate(values):
        if not low <= value <= high and math.isfinite(value):
            return InvalidArgument(f"{where}: element {index} is {value}, {datatype} holds {low} to {high}")
    return InvalidArgument(f"{where}: an element does not fit {datatype}")
