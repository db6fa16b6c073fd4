"""``tensorflow.TensorProto`` to and from arrays.

Requests may hold their elements in ``tensor_content`` or in the typed field of their datatype, where the last value
stands for all that are left out and no value at all for zeros (TensorFlow, ``tensor.cc``, `FromProtoField`). Answers
use typed fields, as TensorFlow Serving does: much client code reads ``outputs["y"].float_val`` and nothing else.

Answers are written as bytes, not by way of messages: packed floats are the array's own bytes behind a tag.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, TooLarge, format_shape
from salver.core.tensors import TensorSpec
from salver.wire.elements import count_of, decode_text, from_bytes, from_values, pack
from salver.wire.protobuf import delimited
from salver.wire.protos import ProtoSet
from salver.wire.tensorflow import DATA_TYPES
from salver.wire.tensorflow import VALUE_FIELDS as _FIELDS

PROTOS: Final = ProtoSet("tfserving")
_TENSOR: Final = PROTOS.message("tensorflow.TensorProto")

CONTENT: Final = 4
"""Number of the field ``tensor_content``."""
PACKED_AS_THEY_ARE: Final = {"FP32": 5, "FP64": 6, "BOOL": 11}
"""Datatype -> number of the packed field whose bytes are those of the array."""
_NAMES: Final = {number: name for name, number in DATA_TYPES.values()}
_NUMBERS: Final = {datatype: number for datatype, (_, number) in DATA_TYPES.items()}
_HALVES: Final = ("FP16", "BF16")


def to_array(tensor: Any, spec: TensorSpec, max_bytes: int) -> Array:
    """The array of an input.

    Args:
        tensor: a ``TensorProto``.
        max_bytes: what a tensor may grow to when its last value is repeated.

    Raises:
        InvalidArgument: another datatype, or elements that do not fit it or the shape.
        TooLarge: repeating the last value gives more than ``max_bytes``.
    """
    where = f"input '{spec.name}'"
    datatype = spec.datatype
    if tensor.dtype != _NUMBERS[datatype]:
        given = _NAMES.get(tensor.dtype, f"data type {tensor.dtype}")
        raise InvalidArgument(f"{where}: got {given}, expected {DATA_TYPES[datatype][0]} ({datatype})")
    if tensor.tensor_shape.unknown_rank:
        raise InvalidArgument(f"{where}: its shape has no known rank, expected {format_shape(spec.shape)}")
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    content = tensor.tensor_content
    if not content:
        return _from_values(tensor, spec, shape, max_bytes, where)
    if datatype == "BYTES":
        return pack(_split_strings(content, count_of(shape, where), where, spec.binary), datatype, shape)
    return from_bytes(content, 0, len(content), datatype, shape, where)


def _from_values(tensor: Any, spec: TensorSpec, shape: list[int], max_bytes: int, where: str) -> Array:
    datatype = spec.datatype
    count = count_of(shape, where)
    values = getattr(tensor, _FIELDS[datatype])[:]
    given = len(values)
    if given > count:
        raise InvalidArgument(f"{where}: got {given} elements, expected {count} for shape {format_shape(shape)}")
    if datatype == "BYTES":
        values = [decode_text(value, index, where, spec.binary) for index, value in enumerate(values)]
    array = _pack(values, datatype, where)
    if given < count:
        array = _repeat_last(tensor, array, count, datatype, max_bytes, where)
    return array.reshape(shape)


def _pack(values: list[Any], datatype: str, where: str) -> Array:
    array = from_values(values, "UINT16" if datatype in _HALVES else datatype, [len(values)], where)
    return array.view(np.float16) if datatype == "FP16" else array


def _repeat_last(tensor: Any, array: Array, count: int, datatype: str, max_bytes: int, where: str) -> Array:
    if array.size:
        last = array[-1]
    else:
        field = next((name for name in (*_FIELDS.values(), "tensor_content") if len(getattr(tensor, name))), None)
        if field is not None:
            raise InvalidArgument(f"{where}: its elements are in {field}, expected {_FIELDS[datatype]} for {datatype}")
        last = "" if datatype == "BYTES" else array.dtype.type(0)
    size = count * max(array.dtype.itemsize, len(last) if isinstance(last, str) else 0)
    if size > max_bytes:
        raise TooLarge(
            f"{where}: {array.size} values stand for {count}, which is {size} bytes; at most {max_bytes} may be given "
            "this way (max_decompressed_bytes)",
            limit="max_decompressed_bytes",
        )
    filled = np.empty(count, array.dtype)
    filled[: array.size] = array
    filled[array.size :] = last
    return filled


def _split_strings(data: bytes, count: int, where: str, binary: bool) -> list[str]:
    """Strings in ``tensor_content``: all their lengths as varints, then all their bytes."""
    if count > len(data):
        raise InvalidArgument(f"{where}: tensor_content has {len(data)} bytes, too few for {count} strings")
    sizes: list[int] = []
    position = 0
    while len(sizes) < count:
        size = shift = 0
        while True:
            if position == len(data) or shift > 28:
                raise InvalidArgument(f"{where}: the length of string {len(sizes)} in tensor_content is malformed")
            byte = data[position]
            position += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        sizes.append(size)
    if position + sum(sizes) != len(data):
        raise InvalidArgument(
            f"{where}: the strings in tensor_content claim {sum(sizes)} bytes, {len(data) - position} are there"
        )
    values = []
    for index, size in enumerate(sizes):
        values.append(decode_text(data[position : position + size], index, where, binary))
        position += size
    return values


def to_bytes(array: Array, datatype: str) -> bytes:
    """An output as a serialized ``TensorProto``."""
    head = tensor_head(datatype, array.shape)
    field = PACKED_AS_THEY_ARE.get(datatype)
    if field is not None:
        return head + delimited(field, array.tobytes()) if array.size else head
    if datatype == "BYTES":
        values = [value if isinstance(value, bytes) else value.encode() for value in array.reshape(-1).tolist()]
    else:
        values = (array.view(np.uint16) if datatype == "FP16" else array).reshape(-1).tolist()
    body: bytes = _TENSOR(**{_FIELDS[datatype]: values}).SerializeToString()
    return head + body


@lru_cache(maxsize=256)
def tensor_head(datatype: str, shape: tuple[int, ...]) -> bytes:
    """Datatype and shape of a serialized ``TensorProto``; its elements come behind."""
    dims = [{"size": size} for size in shape]
    tensor = _TENSOR(dtype=_NUMBERS[datatype], tensor_shape={"dim": dims})
    head: bytes = tensor.SerializeToString()
    return head
