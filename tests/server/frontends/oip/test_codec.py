"""OIP v2 requests and responses: every datatype, both forms, and what does not fit."""

from __future__ import annotations

import gc
import json
import math
import struct
import weakref

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salver.core.errors import FailedPrecondition, InvalidArgument, SalverError, UnknownName
from salver.core.tensors import NUMPY_DTYPES, Signature, TensorSpec
from salver.server.engine.base import unpack
from salver.server.frontends.oip.codec import ModelCodec
from salver.wire.elements import from_bf16, to_bf16

DATATYPES = list(NUMPY_DTYPES)


def identity(datatype, shape=("batch", "width"), labels=()):
    spec = TensorSpec(name="x", datatype=datatype, shape=shape)
    return ModelCodec(
        "m",
        "1",
        Signature(inputs=(spec,), outputs=(TensorSpec(name="y", datatype=datatype, shape=shape, labels=labels),)),
    )


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def arrays(draw, datatype):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=5))
    if datatype == "BYTES":
        values = draw(st.lists(TEXT, min_size=math.prod(shape), max_size=math.prod(shape)))
        array = np.empty(len(values), object)
        array[:] = values
        return array.reshape(shape)
    return draw(hnp.arrays(NUMPY_DTYPES[datatype], shape))


def same(a, b):
    if a.dtype.kind == "f":
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
    return a.dtype == b.dtype and np.array_equal(a, b)


def to_list(array, datatype):
    return (from_bf16(array) if datatype == "BF16" else array).ravel().tolist()


def request(array, datatype, nested=False, **more):
    values = from_bf16(array) if datatype == "BF16" else array
    data = values.tolist() if nested else values.ravel().tolist()
    tensor = {"name": "x", "shape": list(array.shape), "datatype": datatype, "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


def wire_bytes(array, datatype):
    if datatype != "BYTES":
        return array.tobytes()
    return b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in array.ravel())


def binary_request(array, datatype, padding=0, **more):
    raw = wire_bytes(array, datatype)
    tensor = {
        "name": "x",
        "shape": list(array.shape),
        "datatype": datatype,
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor], **more}).encode() + b" " * padding
    return head + raw, len(head)


def whole(body):
    return body if isinstance(body, bytes) else b"".join(body)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("datatype", DATATYPES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_json_round_trip(datatype, nested, fixed, data):
    """Through the short way (fixed rows, flat) and the long one, NaN and infinities included."""
    array = data.draw(arrays(datatype))
    if datatype == "BF16":
        array = np.where(np.isnan(from_bf16(array)), np.uint16(0x7FC0), array)
    codec = identity(datatype, ("batch", array.shape[1]) if fixed else ("batch", "width"))
    decoded = codec.decode(request(array, datatype, nested, id="7"), None)
    assert decoded.rows == len(array)
    assert same(unpack(decoded.inputs)["x"], array)
    body, length = codec.encode(decoded, {"y": array})
    answer = json.loads(whole(body))
    assert length is None
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("m", "1", "7")
    [output] = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", datatype, list(array.shape))
    expected = to_list(array, datatype)
    assert len(output["data"]) == len(expected)
    assert all(a == b or (a != a and b != b) for a, b in zip(output["data"], expected, strict=True))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("datatype", DATATYPES)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), padding=st.integers(0, 8))
def test_binary_round_trip(datatype, fixed, data, padding):
    """Bit for bit, wherever in the body the tensor lies."""
    array = data.draw(arrays(datatype))
    codec = identity(datatype, ("batch", array.shape[1]) if fixed else ("batch", "width"))
    body, length = binary_request(array, datatype, padding, parameters={"binary_data_output": True})
    decoded = codec.decode(body, length)
    taken = unpack(decoded.inputs)["x"]
    assert taken.shape == array.shape
    assert taken.flags.aligned
    assert wire_bytes(taken, datatype) == wire_bytes(array, datatype)
    answer, head_length = codec.encode(decoded, {"y": array})
    answer = whole(answer)
    [output] = json.loads(answer[:head_length])["outputs"]
    assert output["parameters"] == {"binary_data_size": len(answer) - head_length}
    assert "data" not in output
    assert answer[head_length:] == wire_bytes(array, datatype)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, 8))
def test_bf16_rounds_as_ml_dtypes_does(values):
    with np.errstate(all="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    ours = to_bf16(values)
    assert np.array_equal(np.isnan(from_bf16(ours)), np.isnan(values))
    numbers = ~np.isnan(values)
    assert np.array_equal(ours[numbers], expected.view(np.uint16)[numbers])


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 300)))
def test_any_bytes_are_a_request_or_an_error_of_ours(body, length):
    for codec in (identity("FP32", ("batch", 2)), identity("BYTES"), identity("BOOL")):
        try:
            decoded = codec.decode(body, length)
        except SalverError as error:
            assert error.message
        else:
            assert decoded.rows >= 1


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_request_is_a_request_or_an_error_of_ours(data):
    array = np.arange(4, dtype=np.float32).reshape(2, 2)
    body, length = data.draw(st.sampled_from([(request(array, "FP32"), None), binary_request(array, "FP32")]))
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        identity("FP32", ("batch", 2)).decode(bytes(damaged), length)
    except SalverError as error:
        assert error.message


def tensor(**changes):
    given = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2], **changes}
    return json.dumps({"inputs": [{k: v for k, v in given.items() if v is not None}]}).encode()


@pytest.mark.parametrize("shape", [("batch", 2), ("batch", "width")])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (tensor(name="z"), r"unknown input 'z'; missing input 'x'; the model's inputs are 'x'"),
        (tensor(datatype="INT32"), "input 'x': got datatype INT32, expected FP32"),
        (tensor(datatype="FLOAT"), "input 'x': unknown datatype 'FLOAT'"),
        (tensor(shape=[2]), r"input 'x': got shape \[2\], expected \[batch, "),
        (tensor(shape=[1, 2, 1]), r"input 'x': got shape \[1, 2, 1\], expected"),
        (tensor(shape=[-1, -2]), r"got shape \[-1, -2\], a size cannot be negative"),
        (tensor(shape=[0, 2], data=[]), "at least one row"),
        (tensor(data=[1]), r"input 'x': got 1 elements, expected 2 for shape \[1, 2\]"),
        (tensor(shape=[1, 10**15]), "input 'x': got 2 elements, expected 1000000"),
        (tensor(shape=[1, 10**30]), "larger than an array can be"),
        (tensor(shape=[2**32, 2**32]), "larger than an array can be"),
        (tensor(shape=[0, 2**63], data=[]), "larger than an array can be"),
        (tensor(shape=[0, 2**62, 2**62], data=[]), "larger than an array can be"),
        (tensor(shape=[0, 2**63], data=None, parameters={"binary_data_size": 0}), "larger than an array can be"),
        (tensor(shape=[1] * 65), "65 dimensions"),
        (tensor(data=[1, "2"]), r"input 'x': data: Expected `float`, got `str` - at `\$\[1\]`"),
        (tensor(data=[1, None]), r"Expected `float`, got `null`"),
        (tensor(data=[1, True]), r"Expected `float`, got `bool`"),
        (tensor(data=[1, 1e39]), r"element 1 is 1e\+39, FP32 holds"),
        (tensor(data=[[1], [2]]), r"nested data has 2 items along dimension 0, expected 1"),
        (tensor(data=[[[1, 2]]]), "nested 3 deep"),
        (tensor(data={"a": 1}), "input 'x': data: Expected `array`"),
        (tensor(data=None), "neither 'data' nor 'binary_data_size'"),
        (tensor(parameters={"binary_data_size": 8}), "both 'data' and 'binary_data_size'"),
        (tensor(data=None, parameters={"binary_data_size": -1}), "binary_data_size is -1"),
        (tensor(data=None, parameters={"binary_data_size": 8}), "but 0 bytes are left"),
        (b'{"inputs":[]}', "missing input 'x'"),
        (b'{"inputs":1}', r"Expected `array`, got `int` - at `\$.inputs`"),
        (b'{"outputs":[]}', "missing required field `inputs`"),
        (b"[]", "Expected `object`"),
        (b"", "it is empty"),
        (b'{"inputs":', "ends early"),
        (b'{"inputs":[}', r"not valid JSON: .*\(byte 11\)"),
        (b'{"inputs":[{"name":"\xff"}]}', "not UTF-8: byte 0xff at position 20"),
        (b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[NaN,1', "character 68"),
        (b"[" * 100_000, "nested more than 100 deep"),
        (b'{"parameters":{"a":' + b"[" * 100_000, "nested more than 100 deep"),
    ],
)
def test_what_does_not_fit_is_named(shape, body, message):
    with pytest.raises(InvalidArgument, match=message):
        identity("FP32", shape).decode(body, None)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("UINT8", 256), ("UINT8", -1), ("INT8", 128), ("INT16", -32769), ("UINT32", 1 << 32), ("INT64", 1 << 63),
     ("UINT64", 1 << 64), ("UINT64", -1), ("FP16", 70000.0), ("BF16", 3.4e38), ("FP32", 3.5e38)],
)  # fmt: skip
def test_numbers_out_of_range_are_named(datatype, value):
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": datatype, "data": [0, value]}]}).encode()
    for shape in (("batch", 2), ("batch", "width")):
        with pytest.raises(InvalidArgument, match=r"input 'x': element 1 is .*" + datatype + " holds"):
            identity(datatype, shape).decode(body, None)


@pytest.mark.parametrize("value", [1.5, "1", True, None])
def test_integers_take_integers_only(value):
    with pytest.raises(InvalidArgument, match="Expected `int`"):
        identity("INT32").decode(
            json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT32", "data": [value]}]}).encode(),
            None,
        )


def test_large_tensors_take_the_other_road_and_agree():
    values = np.random.default_rng(3).normal(size=(1, 6000)).astype(np.float32)
    for datatype, array in (("FP32", values), ("INT64", (values * 1e6).astype(np.int64)), ("BF16", to_bf16(values))):
        decoded = identity(datatype, ("batch", 6000)).decode(request(array, datatype), None)
        assert same(unpack(decoded.inputs)["x"], array)
    with pytest.raises(InvalidArgument, match=r"element 5999 is 1e\+39"):
        identity("FP32", ("batch", 6000)).decode(request(np.array([[0.0] * 5999 + [1e39]]), "FP32"), None)


def strings(*raw):
    data = b"".join(struct.pack("<I", len(r)) + r for r in raw)
    head = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}]}
    ).encode()
    return head, data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (strings(b"ok", b"a\xffb"), "input 'x': element 1 is not UTF-8: byte 0xff at position 1"),
        (strings(b"ok"), "got 1 elements, expected 2"),
        (strings(b"ok", b"b", b"c"), "more than 2 elements, 5 bytes are left over"),
        (strings(b"ok", b"b"), None),
    ],
)
def test_binary_strings(data, message):
    head, blob = data
    if message is None:
        assert unpack(identity("BYTES").decode(head + blob, len(head)).inputs)["x"].tolist() == [["ok", "b"]]
        lying = blob[:6] + struct.pack("<I", 1 << 31) + b"b"
        with pytest.raises(InvalidArgument, match="element 1 claims more bytes"):
            identity("BYTES").decode(head + lying, len(head))
    else:
        with pytest.raises(InvalidArgument, match=message):
            identity("BYTES").decode(head + blob, len(head))


def test_a_lone_surrogate_is_refused_on_both_roads():
    for extra in (b"", b',"parameters":{"x":NaN}'):
        body = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"BYTES","data":["\\ud800"]}]' + extra + b"}"
        with pytest.raises(InvalidArgument, match="surrogate"):
            identity("BYTES").decode(body, None)


def test_bool_bytes_are_0_or_1():
    head = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"BOOL","parameters":{"binary_data_size":2}}]}'
    with pytest.raises(InvalidArgument, match="element 1 is byte 2"):
        identity("BOOL").decode(head + b"\x01\x02", len(head))


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"{}", 3, "got 3, but the body has 2 bytes"),
        (
            binary_request(np.zeros((1, 2), np.float32), "FP32")[0] + b"!",
            None,
            "1 bytes of the body belong to no input",
        ),
    ],
)
def test_lengths_that_lie(body, length, message):
    length = length or len(body) - 9
    with pytest.raises(InvalidArgument, match=message):
        identity("FP32", ("batch", 2)).decode(body, length)


def test_binary_size_must_be_that_of_the_shape():
    body, length = binary_request(np.zeros((1, 3), np.float32), "FP32")
    wrong = body[:length].replace(b"[1, 3]", b"[1, 2]") + body[length:]
    with pytest.raises(InvalidArgument, match=r"input 'x': got 12 bytes, expected 8 for FP32 of shape \[1, 2\]"):
        identity("FP32", ("batch", 2)).decode(wrong, length)


def test_numbers_that_equal_others_are_not_taken_for_them():
    codec = identity("FP32", ("batch", 3))
    body, length = binary_request(np.zeros((1, 3), np.float32), "FP32")
    head = body[:length].replace(b"12", b"12.0")
    with pytest.raises(InvalidArgument, match=r"binary_data_size is 12\.0, expected a number of bytes"):
        codec.decode(head + body[length:], len(head))
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    with pytest.raises(InvalidArgument, match="binary_data_output is 1, expected true or false"):
        codec.decode(json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": 1}}).encode(), None)


class TestRaw:
    def test_one_dimension_may_be_open(self):
        x = np.arange(6, dtype=np.float32)
        decoded = identity("FP32", ("batch", "width")).decode(x.tobytes(), 0)
        assert unpack(decoded.inputs)["x"].tolist() == [x.tolist()]
        assert [w.binary for w in decoded.wishes] == [True]

    def test_a_string_is_the_whole_body(self):
        assert unpack(identity("BYTES", ("batch", 1)).decode("é!".encode(), 0).inputs)["x"].tolist() == [["é!"]]
        with pytest.raises(InvalidArgument, match="element 0 is not UTF-8"):
            identity("BYTES", ("batch", 1)).decode(b"\xff\xd8", 0)

    @pytest.mark.parametrize(
        ("shape", "body", "message"),
        [
            (("batch", 3), b"\0" * 8, "got 8 bytes, expected 12"),
            (("batch", "a", "b"), b"\0" * 8, "can leave one dimension open"),
            (("batch", "a", 2), b"\0" * 12, "a multiple of 8"),
        ],
    )
    def test_what_does_not_fit(self, shape, body, message):
        with pytest.raises(InvalidArgument, match=message):
            identity("FP32", shape).decode(body, 0)


def test_a_codec_is_freed_with_its_model():
    """Each swap makes a new one, and the garbage collector may look for reference cycles only long after."""
    gc.disable()
    try:
        codec = identity("FP32", ("batch", 2))
        codec.decode(b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}', None)
        gone = weakref.ref(codec)
        del codec
        assert gone() is None
    finally:
        gc.enable()


PAIR = ModelCodec(
    "m",
    "1",
    Signature(
        inputs=(
            TensorSpec(name="a", datatype="FP32", shape=("n", 2)),
            TensorSpec(name="b", datatype="BYTES", shape=("n",)),
        ),
        outputs=(
            TensorSpec(name="p", datatype="FP32", shape=("n", 3), labels=("cat", "dog", "bird")),
            TensorSpec(name="q", datatype="INT64", shape=("n",)),
        ),
    ),
)
OUTPUTS = {"p": np.array([[0.1, np.nan, 0.5], [0.25, 0.25, 0.125]], np.float32), "q": np.array([1, -2])}


def pair(**more):
    return json.dumps(
        {
            "inputs": [
                {"name": "b", "shape": [2], "datatype": "BYTES", "data": ["é", ""]},
                {"name": "a", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]},
            ],
            **more,
        }
    ).encode()


class TestOutputs:
    def test_selection_in_the_order_asked_for(self):
        decoded = PAIR.decode(pair(outputs=[{"name": "q"}, {"name": "p", "parameters": {"binary_data": True}}]), None)
        assert PAIR.output_names(decoded.wishes) == ("q", "p")
        pieces, length = PAIR.encode(decoded, OUTPUTS)
        body = whole(pieces)
        q, p = json.loads(body[:length])["outputs"]
        assert (q["name"], q["data"]) == ("q", [1, -2])
        assert (p["name"], p["parameters"]) == ("p", {"binary_data_size": 24})
        assert body[length:] == OUTPUTS["p"].tobytes()

    def test_all_in_order_is_all(self):
        decoded = PAIR.decode(pair(outputs=[{"name": "p"}, {"name": "q"}]), None)
        assert PAIR.output_names(decoded.wishes) is None

    def test_one_output_may_differ_from_the_rest(self):
        given = {"name": "q", "parameters": {"binary_data": False}}
        decoded = PAIR.decode(pair(outputs=[{"name": "p"}, given], parameters={"binary_data_output": True}), None)
        assert [w.binary for w in decoded.wishes] == [True, False]

    def test_nan_is_written_as_triton_writes_it(self):
        body, _ = PAIR.encode(PAIR.decode(pair(), None), {**OUTPUTS, "p": np.array([[np.nan, np.inf, -np.inf]], "f4")})
        assert b'"data":[NaN,Infinity,-Infinity]}' in whole(body)

    def test_classification(self):
        wish = {"name": "p", "parameters": {"classification": 2}}
        decoded = PAIR.decode(pair(outputs=[wish]), None)
        body, length = PAIR.encode(decoded, OUTPUTS)
        [p] = json.loads(whole(body))["outputs"]
        assert (length, p["datatype"], p["shape"]) == (None, "BYTES", [2, 2])
        assert p["data"] == ["0.500000:2:bird", "0.100000:0:cat", "0.250000:0:cat", "0.250000:1:dog"]

    def test_classification_of_integers_has_no_fraction_and_k_may_be_too_large(self):
        wish = {"name": "q", "parameters": {"classification": 5, "binary_data": True}}
        pieces, length = PAIR.encode(PAIR.decode(pair(outputs=[wish]), None), OUTPUTS)
        body = whole(pieces)
        assert json.loads(body[:length])["outputs"][0]["shape"] == [2, 1]
        assert body[length:] == b"\x03\0\0\x001:0\x04\0\0\x00-2:0"

    @pytest.mark.parametrize(
        ("outputs", "error", "message"),
        [
            ([{"name": "z"}], UnknownName, "unknown output 'z'"),
            ([{"name": "p"}, {"name": "p"}], InvalidArgument, "asked for twice"),
            ([{"name": "p", "parameters": {"classification": -1}}], InvalidArgument, "classification is -1"),
            ([{"name": "p", "parameters": {"binary_data": 1}}], InvalidArgument, "binary_data is 1"),
            ([{"name": "p", "parameters": {"shared_memory_region": "r"}}], InvalidArgument, "byte_size is None"),
        ],
    )
    def test_what_cannot_be_wished_for(self, outputs, error, message):
        with pytest.raises(error, match=message):
            PAIR.decode(pair(outputs=outputs), None)


def test_inputs_of_both_forms_in_one_request():
    blob = np.ones((2, 2), np.float32).tobytes()
    head = json.dumps(
        {
            "inputs": [
                {"name": "a", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}},
                {"name": "b", "shape": [2], "datatype": "BYTES", "data": ["x", "y"]},
            ]
        }
    ).encode()
    decoded = PAIR.decode(head + blob, len(head))
    assert unpack(decoded.inputs)["a"].tolist() == [[1, 1], [1, 1]]
    assert decoded.rows == 2


def test_rows_must_agree_between_inputs():
    body = pair().replace(
        b'"shape": [2], "datatype": "BYTES", "data": ["\\u00e9", ""]',
        b'"shape": [1], "datatype": "BYTES", "data": ["x"]',
    )
    with pytest.raises(InvalidArgument, match=r"input '[ab]': got shape .* from the other inputs"):
        PAIR.decode(body, None)


def test_an_input_given_twice_is_refused():
    body = msgspec.json.encode({"inputs": json.loads(pair())["inputs"] * 2})
    with pytest.raises(InvalidArgument, match="input 'b' is given twice"):
        PAIR.decode(body, None)


def test_shared_memory_is_off_unless_given():
    parameters = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    with pytest.raises(FailedPrecondition, match="shared memory is off"):
        identity("FP32").decode(tensor(data=None, parameters=parameters), None)


def binary(rows, id, pad=0):
    """A binary request whose JSON is different for each id, and so long."""
    head = {"id": id, "inputs": [{"name": "x", "shape": list(rows.shape), "datatype": "FP32"}]}
    head["inputs"][0]["parameters"] = {"binary_data_size": rows.nbytes}
    text = json.dumps(head).encode()
    text += b" " * (pad - len(text))
    return text + rows.tobytes(), len(text)


def test_more_heads_than_are_kept_are_still_read_rightly():
    codec = identity("FP32", ("batch", 3))
    for number in (*range(150), *range(150)):
        rows = np.full((1, 3), number, np.float32)
        decoded = codec.decode(*binary(rows, str(number)))
        assert decoded.id == str(number)
        assert same(unpack(decoded.inputs)["x"], rows)


@pytest.mark.parametrize("pad", [128, 129, 4096])
def test_large_tensors_and_long_heads_are_read_wherever_they_begin(pad):
    codec = identity("FP32", ("batch", 3))
    rows = np.arange(6000, dtype=np.float32).reshape(2000, 3)
    for _ in range(2):
        decoded = codec.decode(*binary(rows, "a", pad))
        assert same(unpack(decoded.inputs)["x"], rows)
        assert unpack(decoded.inputs)["x"].flags.aligned
