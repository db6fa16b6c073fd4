"""TensorFlow's names and numbers of datatypes, as its serving protocols write them."""

from __future__ import annotations

from typing import Final

DATA_TYPES: Final = {
    "BOOL": ("DT_BOOL", 10),
    "UINT8": ("DT_UINT8", 4),
    "UINT16": ("DT_UINT16", 17),
    "UINT32": ("DT_UINT32", 22),
    "UINT64": ("DT_UINT64", 23),
    "INT8": ("DT_INT8", 6),
    "INT16": ("DT_INT16", 5),
    "INT32": ("DT_INT32", 3),
    "INT64": ("DT_INT64", 9),
    "FP16": ("DT_HALF", 19),
    "BF16": ("DT_BFLOAT16", 14),
    "FP32": ("DT_FLOAT", 1),
    "FP64": ("DT_DOUBLE", 2),
    "BYTES": ("DT_STRING", 7),
}
"""Open Inference Protocol datatype -> name and number of TensorFlow's ``DataType``."""

VALUE_FIELDS: Final = {
    "BOOL": "bool_val",
    "UINT8": "int_val",
    "UINT16": "int_val",
    "UINT32": "uint32_val",
    "UINT64": "uint64_val",
    "INT8": "int_val",
    "INT16": "int_val",
    "INT32": "int_val",
    "INT64": "int64_val",
    "FP16": "half_val",
    "BF16": "half_val",
    "FP32": "float_val",
    "FP64": "double_val",
    "BYTES": "string_val",
}
"""Datatype -> the field of ``TensorProto`` that holds its values one by one."""
