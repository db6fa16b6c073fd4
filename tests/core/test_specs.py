"""Tensor specs as people write them."""

from __future__ import annotations

import pytest

from salver.core.errors import InvalidArgument
from salver.core.specs import format_inputs, parse_inputs
from salver.core.tensors import TensorSpec


def spec(name: str, datatype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:float32[batch,3,224,224]", (spec("x", "FP32", "batch", 3, 224, 224),)),
        ("x:FP32[batch, 3]", (spec("x", "FP32", "batch", 3),)),
        ("a:int64[n,t]; b:bool[n]", (spec("a", "INT64", "n", "t"), spec("b", "BOOL", "n"))),
        ("a:int64[n,t] b:bfloat16[]", (spec("a", "INT64", "n", "t"), spec("b", "BF16"))),
        ("text:string[?]", (spec("text", "BYTES", "batch"),)),
        ("x:half[-1,?,8]", (spec("x", "FP16", "batch", "?x_1", 8),)),
        ("serving/x.1:uint8[1]", (spec("serving/x.1", "UINT8", 1),)),
    ],
)
def test_what_is_read(text: str, expected: tuple[TensorSpec, ...]) -> None:
    assert parse_inputs(text) == expected
    assert parse_inputs(format_inputs(expected)) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "got nothing"),
        ("x", "cannot read 'x'"),
        ("x:float32", "cannot read"),
        ("x:float32[3", "cannot read"),
        ("x:complex[3]", "unknown type 'complex'; valid: .*float32"),
        ("x:float32[0]", "dimension '0'"),
        ("x:float32[a b]", "dimension 'a b'"),
        ("x:float32[3,]", "dimension ''"),
        ("x:float32[1]; x:float32[2]", "'x' is given twice"),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        parse_inputs(text)
