"""Weights stored in 16 bits and cast back to fp32 when the model is loaded; shared by `fp16` and `bf16`."""

from __future__ import annotations

from typing import Literal

import numpy as np
from onnx import ModelProto, TensorProto, helper

from salver.builder.passes._graph import float_weights, from_array, opset_of, replace_weights, to_array
from salver.core.arrays import Array
from salver.core.errors import PassNotApplicable

_SMALL_ELEMENTS = 64
_OLDEST_OPSET = 13


def store_weights(proto: ModelProto, kind: Literal["fp16", "bf16"]) -> None:
    """Replace every fp32 weight of more than a few elements by a 16-bit one and a Cast.

    Raises:
        PassNotApplicable: there is none, or the operator set is too old for the Cast.
    """
    if opset_of(proto) < _OLDEST_OPSET:
        raise PassNotApplicable(f"the model has opset {opset_of(proto)}; {kind} weights need {_OLDEST_OPSET} or newer")
    made = {}
    for name, tensor in float_weights(proto).items():
        values = to_array(tensor)
        if values.size < _SMALL_ELEMENTS or not _fits(values, kind):
            continue
        stored = f"{name}:{kind}"
        narrow = from_array(values.astype(np.float16), stored) if kind == "fp16" else _to_bfloat16(values, stored)
        cast = helper.make_node("Cast", [stored], [name], name=f"{name}:cast", to=TensorProto.FLOAT)
        made[name] = ([narrow], [cast])
    if not made:
        raise PassNotApplicable(f"the model has no fp32 weights of {_SMALL_ELEMENTS} elements or more that fit {kind}")
    replace_weights(proto, made)


def _fits(values: Array, kind: str) -> bool:
    """Whether nothing overflows."""
    limit = np.finfo(np.float16).max if kind == "fp16" else np.finfo(np.float32).max
    return bool(np.abs(values).max() <= limit)


def _to_bfloat16(values: Array, name: str) -> TensorProto:
    """Round to the nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return TensorProto(name=name, data_type=TensorProto.BFLOAT16, dims=values.shape, raw_data=rounded.tobytes())
