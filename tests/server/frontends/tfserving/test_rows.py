"""``:predict`` in JSON: rows and columns, every datatype, base64, NaN, and what does not fit."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salver.core.errors import FailedPrecondition, InvalidArgument, SalverError, TooLarge
from salver.core.tensors import NUMPY_DTYPES, Signature, TensorSpec
from salver.server.frontends.oip.messages import CodecLimits
from salver.server.frontends.tfserving.rows import RowCodec
from salver.wire.elements import from_bf16, to_bf16

DATATYPES = list(NUMPY_DTYPES)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def spec(name, datatype="FP32", shape=("batch", 3)):
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def codec(*inputs, outputs=()):
    return RowCodec(Signature(inputs=inputs, outputs=outputs or (spec("y"),)))


def identity(datatype, shape=("batch", 3), output="y"):
    return codec(spec("x", datatype, shape), outputs=(spec(output, datatype, shape),))


def encode(value):
    return json.dumps(value).encode()


def ask(found, value):
    return found.decode(encode(value))


@st.composite
def arrays(draw, datatype, shape):
    if datatype == "BYTES":
        array = np.empty(shape, object)
        array.ravel()[:] = [draw(TEXT) for _ in range(array.size)]
        return array
    if datatype == "BF16":
        numbers = st.floats(width=16).map(lambda x: x if x == x else math.nan)  # JSON has one NaN
        return to_bf16(draw(hnp.arrays(np.float32, shape, elements=numbers)))
    return draw(hnp.arrays(NUMPY_DTYPES[datatype], shape))


@st.composite
def cases(draw):
    datatype = draw(st.sampled_from(DATATYPES))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=3))
    return datatype, draw(arrays(datatype, shape))


def plain(array, datatype):
    return (from_bf16(array) if datatype == "BF16" else array).tolist()


def same(a, b):
    if a.dtype == object:
        return a.tolist() == b.tolist()
    if a.dtype.kind == "f":
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=True)
    return a.dtype == b.dtype and np.array_equal(a, b)


@given(cases(), st.booleans())
def test_rows_and_columns_come_back_exactly(case, ragged):
    """Through the quick way where the inner shape is fixed, through the long one where it is not."""
    datatype, array = case
    inner = [f"d{axis}" for axis in range(1, array.ndim)] if ragged else array.shape[1:]
    found = identity(datatype, ("batch", *inner))
    values = plain(array, datatype)
    rows = [{"instances": values}, {"instances": [{"x": row} for row in values], "signature_name": "serving_default"}]
    for request in rows:
        decoded = ask(found, request)
        assert same(decoded.inputs["x"], array)
        assert (decoded.rows, decoded.instances) == (len(array), len(array))
        answer = json.loads(found.encode(decoded, {"y": array}))
        assert list(answer) == ["predictions"]
        assert same(ask(found, {"instances": answer["predictions"]}).inputs["x"], array)
    for request in ({"inputs": values}, {"inputs": {"x": values}}):
        decoded = ask(found, request)
        assert same(decoded.inputs["x"], array)
        assert decoded.instances is None
        answer = json.loads(found.encode(decoded, {"y": array}))
        assert list(answer) == ["outputs"]
        assert same(ask(found, {"inputs": answer["outputs"]}).inputs["x"], array)


@given(st.lists(st.floats(width=32), min_size=3, max_size=3))
def test_a_float_loses_no_digit(values):
    x = np.array([values], np.float32)
    text = identity("FP32").encode(ask(identity("FP32"), {"instances": [[0, 0, 0]]}), {"y": x})
    printed = json.loads(text)["predictions"]
    assert np.array_equal(np.array(printed, np.float64), x.astype(np.float64), equal_nan=True)


def test_nan_and_infinity_both_ways():
    found = identity("FP32")
    decoded = found.decode(b'{"instances": [[NaN, Infinity, -Infinity]]}')
    values = decoded.inputs["x"].tolist()[0]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf]
    assert found.encode(decoded, {"y": decoded.inputs["x"]}) == b'{"predictions":[[NaN,Infinity,-Infinity]]}'


def test_several_inputs_and_outputs_by_name():
    found = codec(spec("a"), spec("b", "INT64", ("batch",)), outputs=(spec("p"), spec("q", "INT64", ("batch",))))
    p, q = np.array([[1, 2, 3], [4, 5, 6]], np.float32), np.array([7, 8])
    rows = ask(found, {"instances": [{"a": [1, 2, 3], "b": 7}, {"b": 8, "a": [4, 5, 6]}]})
    assert same(rows.inputs["a"], p)
    assert same(rows.inputs["b"], q)
    assert json.loads(found.encode(rows, {"p": p, "q": q})) == {
        "predictions": [{"p": [1, 2, 3], "q": 7}, {"p": [4, 5, 6], "q": 8}]
    }
    columns = ask(found, {"inputs": {"b": [7, 8], "a": p.tolist()}})
    assert same(columns.inputs["a"], p)
    assert json.loads(found.encode(columns, {"p": p, "q": q})) == {"outputs": {"p": p.tolist(), "q": [7, 8]}}


def b64(raw):
    return {"b64": base64.b64encode(raw).decode()}


def test_base64_in_rows_and_columns_of_strings():
    found = identity("BYTES", ("batch", "width"))
    wanted = [["ä", "b"], ["", "d"]]
    mixed = [[b64("ä".encode()), "b"], ["", b64(b"d")]]
    for request in ({"instances": mixed}, {"instances": [{"x": row} for row in mixed]}, {"inputs": {"x": mixed}}):
        assert ask(found, request).inputs["x"].tolist() == wanted
    flat = identity("BYTES", ("batch",))
    assert ask(flat, {"instances": [b64(b"a"), "b"]}).inputs["x"].tolist() == ["a", "b"]
    several = codec(spec("t", "BYTES", ("batch",)), spec("n", "INT32", ("batch",)))
    assert ask(several, {"instances": [{"t": b64(b"a"), "n": 1}]}).inputs["t"].tolist() == ["a"]


def test_strings_of_a_name_that_ends_in_bytes_are_answered_in_base64():
    found = identity("BYTES", ("batch", 2), "image_bytes")
    given = np.array([["ä", "b"]], object)
    decoded = ask(found, {"instances": [["x", "y"]]})
    assert json.loads(found.encode(decoded, {"image_bytes": given})) == {
        "predictions": [[b64("ä".encode()), b64(b"b")]]
    }
    numbers = codec(spec("x"), outputs=(spec("y_bytes"),))
    decoded = ask(numbers, {"instances": [[1, 2, 3]]})
    assert numbers.encode(decoded, {"y_bytes": np.ones((1, 1), np.float32)}) == b'{"predictions":[[1.0]]}'


def test_a_model_without_a_batch_dimension_by_columns():
    found = codec(spec("x", "FP32", (2,)), outputs=(spec("y", "FP32", ()),))
    decoded = ask(found, {"inputs": [1, 2]})
    assert found.encode(decoded, {"y": np.array(2.5, np.float32)}) == b'{"outputs":2.5}'
    scalar = codec(spec("x", "FP32", ()))
    assert ask(scalar, {"inputs": 2.5}).inputs["x"].shape == ()
    assert ask(codec(spec("x", "BYTES", ())), {"inputs": b64(b"a")}).inputs["x"].tolist() == "a"
    unknown = codec(spec("x", "BYTES", ("...",)))
    assert ask(unknown, {"inputs": [[b64(b"a")]]}).inputs["x"].tolist() == [["a"]]
    with pytest.raises(FailedPrecondition, match="has no rows"):
        ask(scalar, {"instances": [2.5]})


def test_an_output_without_a_row_for_each_instance_is_refused():
    found = identity("FP32")
    decoded = ask(found, {"instances": [[1, 2, 3], [4, 5, 6]]})
    for output in (np.ones((1, 3), np.float32), np.array(1, np.float32)):
        with pytest.raises(FailedPrecondition, match="inconsistent batch size"):
            found.encode(decoded, {"y": output})
        assert found.encode(ask(found, {"inputs": [[1, 2, 3]]}), {"y": output})


PAIR = (spec("a"), spec("b"))


@pytest.mark.parametrize(
    ("inputs", "request_", "message"),
    [
        ((spec("x"),), {}, "Missing 'inputs' or 'instances' key"),
        ((spec("x"),), {"instances": [[1, 2, 3]], "inputs": [[1, 2, 3]]}, "only one of"),
        ((spec("x"),), {"instances": []}, "a list of one row or more"),
        ((spec("x"),), {"instances": 5}, "a list of one row or more"),
        ((spec("x"),), {"instances": None}, "a list of one row or more"),
        ((spec("x"),), {"instances": [[1, 2, 3]], "signature_name": "other"}, '"other" not found in signature def'),
        ((spec("x"),), {"inputs": [[1, 2, 3]], "signature_name": "other"}, '"other" not found in signature def'),
        ((spec("x"),), {"instances": [[1, 2, 3]], "signature_name": 5}, "Expected `str"),
        ((spec("x"),), {"instances": [[1, 2]]}, r"instance 0, input 'x': got shape \[2\], expected \[3\]"),
        ((spec("x"),), {"instances": [[1, 2, 3], [1, 2]]}, "instance 1"),
        ((spec("x"),), {"instances": [[1, 2, "3"]]}, "Expected `float`, got `str`"),
        ((spec("x"),), {"instances": [[1, 2, None]]}, "Expected `float`, got `null`"),
        ((spec("x"),), {"instances": [{"z": [1, 2, 3]}]}, "instance 0"),
        ((spec("x"),), {"instances": [[1, 2, 1e39]]}, "element 2 is 1e"),
        ((spec("x"),), {"inputs": []}, r"got shape \[0\], expected \[batch, 3\]"),
        ((spec("x", "FP32", ("batch",)),), {"inputs": []}, "at least one row"),
        ((spec("x"),), {"inputs": [[1, 2]]}, r"got shape \[1, 2\], expected \[batch, 3\]"),
        ((spec("x"),), {"inputs": [[1, 2, 3], [1, 2]]}, "2 items along dimension 1"),
        ((spec("x"),), {"inputs": {"z": [[1, 2, 3]]}}, "unknown input 'z'; missing input 'x'"),
        ((spec("x"),), {"inputs": {"x": [[1, 2, 3]], "z": 1}}, "unknown input 'z'"),
        ((spec("x"),), {"inputs": "text"}, "Expected `float`, got `str`"),
        ((spec("x"),), {"inputs": [[b64(b"a"), 1, 2]]}, "Expected `float`, got `object`"),
        ((spec("x", "INT8"),), {"instances": [[1, 2, 300]]}, "INT8 holds -128 to 127"),
        ((spec("x", "INT32"),), {"instances": [[1, 2, 2.5]]}, "Expected `int`"),
        ((spec("x", "BYTES"),), {"instances": [["a", "b", {"b64": "!"}]]}, "not base64"),
        ((spec("x", "BYTES"),), {"inputs": [["a", "b", b64(b"\xff")]]}, "not UTF-8"),
        ((spec("x", "BYTES"),), {"inputs": [["a", "b", {"b64": 5}]]}, "Expected `str`, got `object`"),
        (PAIR, {"inputs": [[1, 2, 3]]}, "'inputs' is a plain value, expected an object with 'a', 'b'"),
        (PAIR, {"inputs": {"a": [[1, 2, 3]]}}, "missing input 'b'"),
        (PAIR, {"instances": [[1, 2, 3]]}, "instance 0: got list, expected an object with 'a', 'b'"),
        (PAIR, {"inputs": {"a": [[1, 2, 3]], "b": [[1, 2, 3]] * 2}}, "with batch=1 from the other inputs"),
    ],
)
def test_what_does_not_fit_is_refused(inputs, request_, message):
    with pytest.raises(InvalidArgument, match=message):
        ask(codec(*inputs), request_)


def test_depth_is_no_danger():
    for shape in (("batch", 3), ("batch", "width"), ("...",)):
        for datatype in ("FP32", "BYTES"):
            found = identity(datatype, shape)
            for depth in (70, 900, 100_000):
                for body in (b'{"instances":%b}', b'{"inputs":%b}', b'{"inputs":{"x":%b}}'):
                    with pytest.raises(SalverError):
                        found.decode(body % (b"[" * depth + b"1" + b"]" * depth))


def test_limits():
    limits = CodecLimits(max_json_depth=5, max_string_bytes=10)
    text = TensorSpec(name="x", datatype="BYTES", shape=("batch", "width"))
    for inputs in ((text,), (TensorSpec(name="x", datatype="BYTES", shape=("batch", 1)),)):
        found = RowCodec(Signature(inputs=inputs, outputs=inputs), limits)
        assert ask(found, {"instances": [["ä" * 5]]}).inputs["x"].tolist() == [["ä" * 5]]
        for request_ in ({"instances": [["ä" * 6]]}, {"inputs": [["ä" * 6]]}):
            with pytest.raises(TooLarge, match="element 0 has 12 bytes") as caught:
                ask(found, request_)
            assert caught.value.limit == "max_string_bytes"
    with pytest.raises(TooLarge, match="nested more than 5 deep"):
        ask(found, {"instances": [[[[["a"]]]]]})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just({"b64": "YQ=="}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "a", "b", "b64"]), inner),
    max_leaves=8,
)


@given(
    st.sampled_from(DATATYPES),
    st.dictionaries(st.sampled_from(["instances", "inputs", "signature_name"]), json_values, min_size=1),
    st.sampled_from([("batch",), ("batch", 2), ("batch", "w"), (2,), (), ("...",)]),
)
def test_any_json_gives_arrays_that_fit_or_a_typed_error(datatype, request_, shape):
    for inputs in ((spec("x", datatype, shape),), (spec("a", datatype, shape), spec("b"))):
        found = codec(*inputs)
        try:
            decoded = ask(found, request_)
        except SalverError:
            continue
        assert found._signature.check(decoded.inputs) == decoded.rows


@given(st.binary(max_size=40), st.sampled_from([b"%b", b'{"instances":%b}', b'{"inputs":{"x":%b}}']))
def test_any_bytes_give_arrays_or_a_typed_error(data, around):
    for datatype in ("FP32", "BYTES", "BOOL"):
        try:
            identity(datatype, ("batch", "w")).decode(around % data)
        except SalverError:
            continue


def test_the_limit_of_strings_is_that_of_the_server():
    signature = Signature(inputs=(spec("a", "BYTES", ("batch",)), spec("b", "BYTES", ("batch",))), outputs=(spec("y"),))
    found = RowCodec(signature, CodecLimits(max_string_bytes=20 << 20))
    request = encode({"instances": [{"a": "x" * (17 << 20), "b": ""}]})
    assert len(found.decode(request).inputs["a"][0]) == 17 << 20
    with pytest.raises(TooLarge, match="max_string_bytes"):
        RowCodec(signature, CodecLimits(max_string_bytes=1 << 20)).decode(request)
