"""The few pieces of protobuf's wire format that are written and read by hand where a message is too hot to build.

Specification: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from typing import Final

_DELIMITED: Final = 2
_MAX_FIELDS: Final = 256

CONTENTS: Final = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Datatype -> the field of the inference protocol's ``InferTensorContents`` that holds it; two have none."""


def varint(value: int) -> bytes:
    """A whole number, not negative."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited_head(number: int, size: int) -> bytes:
    """What stands before ``size`` bytes of text, bytes or message."""
    if size < 0x80 and number < 16:
        return bytes((number << 3 | _DELIMITED, size))
    return varint(number << 3 | _DELIMITED) + varint(size)


def delimited(number: int, data: bytes) -> bytes:
    """A field of text, bytes or a message."""
    return delimited_head(number, len(data)) + data


def split_delimited(message: bytes) -> list[tuple[int, int, int, int]] | None:
    """The fields of a message that has none but delimited ones, and not many.

    Returns:
        ``(number, start, data start, data end)`` of each, in order; None where a field is of another kind, there are
        more than 256, or the message is malformed or not written in the shortest way.
    """
    fields: list[tuple[int, int, int, int]] = []
    position, end = 0, len(message)
    while position < end:
        if len(fields) == _MAX_FIELDS:
            return None
        tag, after = _read_varint(message, position)
        size, begin = _read_varint(message, after)
        stop = begin + size
        if tag & 7 != _DELIMITED or not 0 < after < begin or stop > end:
            return None
        fields.append((tag >> 3, position, begin, stop))
        position = stop
    return fields


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """A number of up to 35 bits and the position after it; -1 for the position where it is not one."""
    value = shift = 0
    for index in range(position, min(position + 5, len(message))):
        byte = message[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value, index + 1) if byte or not shift else (0, -1)
        shift += 7
    return 0, -1
