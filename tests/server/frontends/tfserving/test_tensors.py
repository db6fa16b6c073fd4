"""`TensorProto` both ways: every datatype, both forms of elements, and bytes that lie."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salver.core.errors import InvalidArgument, SalverError, TooLarge
from salver.core.tensors import NUMPY_DTYPES, TensorSpec
from salver.server.frontends.tfserving.signatures import DATA_TYPES
from salver.server.frontends.tfserving.tensors import PROTOS, to_array, to_bytes

TENSOR = PROTOS.message("tensorflow.TensorProto")
DATATYPES = list(NUMPY_DTYPES)
NUMERIC = [name for name in DATATYPES if name != "BYTES"]
MAX_BYTES = 1 << 20
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FIELDS = {
    **dict.fromkeys(["INT8", "INT16", "INT32", "UINT8", "UINT16"], "int_val"),
    **dict.fromkeys(["FP16", "BF16"], "half_val"),
    "INT64": "int64_val",
    "UINT32": "uint32_val",
    "UINT64": "uint64_val",
    "FP32": "float_val",
    "FP64": "double_val",
    "BOOL": "bool_val",
    "BYTES": "string_val",
}


def spec(datatype, shape=("batch", "width")):
    return TensorSpec(name="x", datatype=datatype, shape=shape)


def tensor(datatype, shape, **values):
    dims = [{"size": size} for size in shape]
    return TENSOR(dtype=DATA_TYPES[datatype][1], tensor_shape={"dim": dims}, **values)


def typed(array, datatype):
    """Elements as TensorFlow's ``make_tensor_proto`` would put them into typed fields."""
    if datatype == "BYTES":
        values = [value.encode() for value in array.ravel().tolist()]
    elif datatype in ("FP16", "BF16"):
        values = array.view(np.uint16).ravel().tolist()
    else:
        values = array.ravel().tolist()
    return {FIELDS[datatype]: values}


def read(message, datatype):
    """What a client's ``make_ndarray`` reads of typed fields."""
    shape = [dim.size for dim in message.tensor_shape.dim]
    values = list(getattr(message, FIELDS[datatype]))
    if datatype == "BYTES":
        array = np.empty(len(values), object)
        array[:] = [value.decode() for value in values]
    elif datatype in ("FP16", "BF16"):
        array = np.array(values, np.uint16).view(NUMPY_DTYPES[datatype])
    else:
        array = np.array(values, NUMPY_DTYPES[datatype])
    return array.reshape(shape)


def same(a, b):
    if a.dtype == object:
        return a.shape == b.shape and a.tolist() == b.tolist()
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@st.composite
def arrays(draw, datatype):
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    if datatype == "BYTES":
        array = np.empty(shape, object)
        array.ravel()[:] = [draw(TEXT) for _ in range(array.size)]
        return array.reshape(shape)
    if datatype == "BF16":
        return draw(hnp.arrays(np.uint16, shape))
    return draw(hnp.arrays(NUMPY_DTYPES[datatype], shape))


cases = st.sampled_from(DATATYPES).flatmap(lambda datatype: st.tuples(st.just(datatype), arrays(datatype)))


@given(cases)
def test_what_is_written_is_what_a_client_reads(case):
    datatype, array = case
    message = TENSOR.FromString(to_bytes(array, datatype))
    assert message.dtype == DATA_TYPES[datatype][1]
    assert same(read(message, datatype), array)


@given(cases)
def test_typed_fields_and_tensor_content_are_read_alike(case):
    datatype, array = case
    assert same(to_array(tensor(datatype, array.shape, **typed(array, datatype)), spec(datatype), MAX_BYTES), array)
    if datatype != "BYTES":
        given = tensor(datatype, array.shape, tensor_content=array.tobytes())
        assert same(to_array(given, spec(datatype), MAX_BYTES), array)


@given(cases)
def test_what_we_write_we_read(case):
    datatype, array = case
    assert same(to_array(TENSOR.FromString(to_bytes(array, datatype)), spec(datatype), MAX_BYTES), array)


def test_outputs_that_are_not_contiguous():
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert same(read(TENSOR.FromString(to_bytes(array, "FP32")), "FP32"), np.ascontiguousarray(array))
    halves = np.arange(12, dtype=np.float16).reshape(3, 4)[:, ::2]
    assert same(read(TENSOR.FromString(to_bytes(halves, "FP16")), "FP16"), np.ascontiguousarray(halves))


def test_halves_are_bit_patterns():
    values = np.array([[0.1, -2.5, np.inf]], np.float32)
    bf16 = values.astype(ml_dtypes.bfloat16)
    message = TENSOR.FromString(to_bytes(bf16.view(np.uint16), "BF16"))
    assert list(message.half_val) == bf16.view(np.uint16).ravel().tolist()
    fp16 = values.astype(np.float16)
    assert list(TENSOR.FromString(to_bytes(fp16, "FP16")).half_val) == fp16.view(np.uint16).ravel().tolist()


@pytest.mark.parametrize("datatype", NUMERIC)
def test_the_last_value_stands_for_those_left_out(datatype):
    array = np.array([0, 1, 1, 1], np.uint8).astype(NUMPY_DTYPES[datatype]).reshape(2, 2)
    given = tensor(datatype, (2, 2), **{FIELDS[datatype]: typed(array, datatype)[FIELDS[datatype]][:2]})
    assert same(to_array(given, spec(datatype), MAX_BYTES), array)
    zeros = to_array(tensor(datatype, (2, 2)), spec(datatype), MAX_BYTES)
    assert same(zeros, np.zeros((2, 2), NUMPY_DTYPES[datatype]))


def test_the_last_string_stands_for_those_left_out():
    found = to_array(tensor("BYTES", (3, 1), string_val=[b"a", b"b"]), spec("BYTES"), MAX_BYTES)
    assert found.tolist() == [["a"], ["b"], ["b"]]
    assert to_array(tensor("BYTES", (1, 2)), spec("BYTES"), MAX_BYTES).tolist() == [["", ""]]


def test_a_scalar():
    assert to_array(tensor("FP32", (), float_val=[2.5]), spec("FP32", ()), MAX_BYTES).shape == ()


def strings(*values):
    """``tensor_content`` of strings: all sizes as varints, then all bytes."""
    sizes = b"".join(bytes([len(v) & 0x7F | 0x80, len(v) >> 7]) if len(v) > 127 else bytes([len(v)]) for v in values)
    return sizes + b"".join(values)


def test_strings_in_tensor_content():
    given = tensor("BYTES", (2, 2), tensor_content=strings(b"", "ä".encode(), b"x" * 300, b"z"))
    assert to_array(given, spec("BYTES"), MAX_BYTES).tolist() == [["", "ä"], ["x" * 300, "z"]]


@pytest.mark.parametrize(
    ("datatype", "given", "message"),
    [
        ("FP32", tensor("FP64", (1, 2), double_val=[1, 2]), r"got DT_DOUBLE, expected DT_FLOAT \(FP32\)"),
        ("UINT16", tensor("BF16", (1, 1), half_val=[1]), "got DT_BFLOAT16, expected DT_UINT16"),
        ("FP32", TENSOR(dtype=8), "got data type 8, expected DT_FLOAT"),
        ("FP32", TENSOR(dtype=99), "got data type 99"),
        ("FP32", TENSOR(dtype=1, tensor_shape={"unknown_rank": True}), "no known rank"),
        ("FP32", tensor("FP32", (1, 2), float_val=[1, 2, 3]), r"got 3 elements, expected 2 for shape \[1, 2\]"),
        ("FP32", tensor("FP32", (1, 2), int_val=[1, 2]), "its elements are in int_val, expected float_val"),
        ("FP32", tensor("FP32", (1, 2), tensor_content=b"1234"), "got 4 bytes, expected 8"),
        ("FP32", tensor("FP32", (-1, 2), float_val=[1, 2]), "cannot be negative"),
        ("FP32", tensor("FP32", (1 << 40, 1 << 40), float_val=[1]), "larger than an array can be"),
        ("FP32", tensor("FP32", [1] * 65, float_val=[1]), "at most 64"),
        ("FP32", tensor("FP32", (1 << 20, 2), float_val=[1]), "1 values stand for 2097152, which is 8388608 bytes"),
        ("BYTES", tensor("BYTES", (1 << 15, 1), string_val=[b"x" * 1000]), "which is 32768000 bytes"),
        ("BOOL", tensor("BOOL", (1, 2), tensor_content=b"\0\2"), "BOOL is 0 or 1"),
        ("INT8", tensor("INT8", (1, 2), int_val=[1, 300]), "element 1 is 300, INT8 holds -128 to 127"),
        ("UINT8", tensor("UINT8", (1, 2), int_val=[1, -1]), "element 1 is -1, UINT8 holds 0 to 255"),
        (
            "INT16",
            tensor("INT16", (1, 5000), int_val=[*range(4999), 40000]),
            "element 4999 is 40000, INT16 holds -32768 to 32767",
        ),
        ("FP16", tensor("FP16", (1, 1), half_val=[1 << 16]), "element 0 is 65536, UINT16 holds 0 to 65535"),
        ("BF16", tensor("BF16", (1, 1), half_val=[-1]), "element 0 is -1, UINT16 holds 0 to 65535"),
        ("BYTES", tensor("BYTES", (1, 1), string_val=[b"\xff"]), "element 0 is not UTF-8"),
        ("BYTES", tensor("BYTES", (1, 2), tensor_content=b"\1"), "too few for 2 strings"),
        ("BYTES", tensor("BYTES", (1, 1), tensor_content=b"\xff\xff\xff\xff\xff\1"), "string 0 in tensor_content is m"),
        ("BYTES", tensor("BYTES", (1, 2), tensor_content=b"\1\x80"), "string 1 in tensor_content is malformed"),
        ("BYTES", tensor("BYTES", (1, 1), tensor_content=b"\2a"), "claim 2 bytes, 1 are there"),
        ("BYTES", tensor("BYTES", (1, 1), tensor_content=b"\1ab"), "claim 1 bytes, 2 are there"),
        ("BYTES", tensor("BYTES", (1, 1), tensor_content=b"\1\xff"), "is not UTF-8"),
    ],
)
def test_what_does_not_fit_is_refused(datatype, given, message):
    with pytest.raises(InvalidArgument, match=f"input 'x': .*{message}"):
        to_array(given, spec(datatype), MAX_BYTES)


def test_repeating_too_much_is_too_large():
    with pytest.raises(TooLarge):
        to_array(tensor("FP64", (MAX_BYTES,), double_val=[1]), spec("FP64", ("n",)), MAX_BYTES)


@given(st.sampled_from(DATATYPES), st.binary(max_size=60))
def test_any_bytes_give_an_array_or_a_typed_error(datatype, data):
    head = tensor(datatype, ()).SerializeToString()
    try:
        message = TENSOR.FromString(head + data)
    except DecodeError:
        return
    try:
        found = to_array(message, spec(datatype), MAX_BYTES)
    except SalverError:
        return
    assert found.dtype == NUMPY_DTYPES[datatype]
    assert found.shape == tuple(dim.size for dim in message.tensor_shape.dim)


dimensions = st.lists(st.integers(-2, 5) | st.integers(-(1 << 63), (1 << 63) - 1), max_size=4)
payloads = st.fixed_dictionaries(
    {},
    optional={
        "tensor_content": st.binary(max_size=40),
        "float_val": st.lists(st.floats(width=32), max_size=6),
        "int_val": st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=6),
        "half_val": st.lists(st.integers(-10, 70000), max_size=6),
        "string_val": st.lists(st.binary(max_size=4), max_size=6),
        "bool_val": st.lists(st.booleans(), max_size=6),
    },
)


@given(st.sampled_from(DATATYPES), dimensions, payloads)
def test_shapes_that_lie(datatype, shape, values):
    try:
        found = to_array(tensor(datatype, shape, **values), spec(datatype), MAX_BYTES)
    except InvalidArgument:
        return
    assert list(found.shape) == shape
    assert found.nbytes <= MAX_BYTES
