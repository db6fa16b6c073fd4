"""OIP v2 gRPC requests and responses: every datatype, raw and typed, the quick way and the long one."""

from __future__ import annotations

import math
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2

from salver.core.errors import InvalidArgument, SalverError, TooLarge, UnknownName
from salver.core.tensors import NUMPY_DTYPES, Signature, TensorSpec
from salver.server.engine.base import unpack
from salver.server.frontends.access import Peer
from salver.server.frontends.oip.grpc_codec import GrpcCodec
from salver.server.frontends.oip.grpc_shortcut import Templates
from salver.server.frontends.oip.messages import CodecLimits
from salver.server.frontends.oip.protos import parser
from salver.server.frontends.shared_memory import SharedMemory
from salver.wire.protobuf import CONTENTS

DATATYPES = list(NUMPY_DTYPES)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PARSE = parser("ModelInferRequest")
SERVED = type("Served", (), {})()


def identity(datatype, shape=("batch", "width"), **more):
    spec = TensorSpec(name="x", datatype=datatype, shape=shape)
    out = TensorSpec(name="y", datatype=datatype, shape=shape)
    return GrpcCodec("m", "1", Signature(inputs=(spec,), outputs=(out,)), **more)


@st.composite
def arrays(draw, datatype):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=5))
    if datatype == "BYTES":
        values = draw(st.lists(TEXT, min_size=math.prod(shape), max_size=math.prod(shape)))
        return np.array([*values, None], object)[:-1].reshape(shape)
    return draw(hnp.arrays(NUMPY_DTYPES[datatype], shape))


def raw_bytes(array, datatype):
    if datatype != "BYTES":
        return array.tobytes()
    return b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in array.ravel())


def raw_request(array, datatype, name="x", **more):
    request = service_pb2.ModelInferRequest(model_name="m", **more)
    request.inputs.add(name=name, datatype=datatype, shape=array.shape)
    request.raw_input_contents.append(raw_bytes(array, datatype))
    return request


def typed_request(array, datatype, **more):
    request = service_pb2.ModelInferRequest(model_name="m", **more)
    tensor = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    values = [v.encode() for v in array.ravel()] if datatype == "BYTES" else array.ravel().tolist()
    getattr(tensor.contents, CONTENTS[datatype]).extend(values)
    return request


def decode(codec, request, **more):
    return codec.decode(PARSE(request.SerializeToString()), **more)


def response(data):
    return service_pb2.ModelInferResponse.FromString(data)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


@pytest.mark.parametrize("datatype", DATATYPES)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), id=TEXT)
def test_raw_round_trip(datatype, data, id):
    """Bit for bit, and raw answers to raw requests."""
    array = data.draw(arrays(datatype))
    codec = identity(datatype)
    inputs, plan = decode(codec, raw_request(array, datatype, id=id))
    assert plan.rows == len(array)
    assert raw_bytes(inputs["x"], datatype) == raw_bytes(array, datatype)
    answer = response(codec.encode(plan, id, {"y": array}))
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", id)
    [output] = answer.outputs
    assert (output.name, output.datatype, tuple(output.shape)) == ("y", datatype, array.shape)
    assert not output.HasField("contents")
    assert list(answer.raw_output_contents) == [raw_bytes(array, datatype)]


@pytest.mark.parametrize("datatype", CONTENTS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_typed_round_trip(datatype, data):
    array = data.draw(arrays(datatype))
    codec = identity(datatype)
    inputs, plan = decode(codec, typed_request(array, datatype))
    assert same(inputs["x"], array)
    answer = response(codec.encode(plan, "", {"y": array}))
    assert not answer.raw_output_contents
    values = getattr(answer.outputs[0].contents, CONTENTS[datatype])
    expected = [v.encode() for v in array.ravel()] if datatype == "BYTES" else array.ravel().tolist()
    assert all(a == b or (a != a and b != b) for a, b in zip(values, expected, strict=True))


@pytest.mark.parametrize("datatype", DATATYPES)
def test_the_form_of_an_answer_is_that_of_the_request_unless_it_has_none(datatype):
    """FP16 and BF16 have no typed contents: beside them everything is raw."""
    x = TensorSpec(name="x", datatype="INT64", shape=("batch",))
    y, z = (TensorSpec(name=n, datatype=d, shape=("batch",)) for n, d in (("y", datatype), ("z", "INT64")))
    codec = GrpcCodec("m", "1", Signature(inputs=(x,), outputs=(y, z)))
    _, plan = decode(codec, typed_request(np.array([1, 2]), "INT64"))
    first = np.array(["a", "b"], object) if datatype == "BYTES" else np.ones(2, NUMPY_DTYPES[datatype])
    answer = response(codec.encode(plan, "", {"y": first, "z": np.array([5, 6])}))
    if datatype in CONTENTS:
        assert list(answer.outputs[1].contents.int64_contents) == [5, 6]
        assert not answer.raw_output_contents
    else:
        assert [len(raw) for raw in answer.raw_output_contents] == [4, 16]


def changed(**fields):
    request = raw_request(np.ones((1, 2), np.float32), "FP32")
    for name, value in fields.items():
        target = request if name == "raw_input_contents" else request.inputs[0]
        if isinstance(value, list):
            getattr(target, name)[:] = value
        elif isinstance(value, dict):
            target.contents.CopyFrom(service_pb2.InferTensorContents(**value))
        else:
            setattr(target, name, value)
    return request


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (changed(name="z"), "unknown input 'z'; missing input 'x'; the model's inputs are 'x'"),
        (changed(datatype="INT32"), "input 'x': got datatype INT32, expected FP32"),
        (changed(datatype="FLOAT"), "input 'x': unknown datatype 'FLOAT'"),
        (changed(shape=[2]), r"input 'x': got shape \[2\], expected \[batch, 2\]"),
        (changed(shape=[-1, -2]), "a size cannot be negative"),
        (changed(shape=[0, 2], raw_input_contents=[b""]), "at least one row"),
        (changed(shape=[2**62, 2**62]), "larger than an array can be"),
        (changed(shape=[1] * 65), "65 dimensions"),
        (changed(raw_input_contents=[]), r"got 0 elements, expected 2 for shape \[1, 2\]"),
        (changed(raw_input_contents=[b"\0" * 7]), "got 7 bytes, expected 8"),
        (changed(raw_input_contents=[b"\0" * 8, b""]), "2 raw_input_contents for 1 inputs that take one"),
        (changed(contents={"fp32_contents": [1, 2]}), "has contents, which cannot stand beside raw_input_contents"),
        (
            changed(raw_input_contents=[], contents={"fp64_contents": [1, 2]}),
            "input 'x': got fp64_contents, FP32 goes into fp32_contents",
        ),
        (
            changed(raw_input_contents=[], contents={"fp32_contents": [1]}),
            "input 'x': got 1 elements, expected 2",
        ),
        (service_pb2.ModelInferRequest(model_name="m"), "missing input 'x'"),
    ],
)
def test_what_does_not_fit_is_said(request_, message):
    with pytest.raises(InvalidArgument, match=message):
        decode(identity("FP32", ("batch", 2)), request_)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_have_no_typed_form(datatype):
    request = service_pb2.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[1, 1])
    with pytest.raises(InvalidArgument, match=f"{datatype} has no typed contents; send it in raw_input_contents"):
        decode(identity(datatype), request)
    tensor.contents.fp32_contents.append(1)
    with pytest.raises(InvalidArgument, match=f"got fp32_contents, {datatype} goes into raw_input_contents"):
        decode(identity(datatype), request)


@pytest.mark.parametrize(
    ("datatype", "values", "message"),
    [
        ("INT8", [1, 128], "element 1 is 128, INT8 holds -128 to 127"),
        ("UINT16", [65536, 0], "element 0 is 65536, UINT16 holds 0 to 65535"),
        ("BYTES", [b"ok", b"\xff"], "element 1 is not UTF-8"),
    ],
)
def test_typed_elements_out_of_range(datatype, values, message):
    request = service_pb2.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[1, 2])
    getattr(tensor.contents, CONTENTS[datatype]).extend(values)
    with pytest.raises(InvalidArgument, match=message):
        decode(identity(datatype), request)


def test_strings_have_a_limit():
    codec = identity("BYTES", limits=CodecLimits(max_string_bytes=3))
    decode(codec, typed_request(np.array([["abc"]], object), "BYTES"))
    with pytest.raises(TooLarge, match="element 0 has 4 bytes, over the limit of 3"):
        decode(codec, raw_request(np.array([["abcd"]], object), "BYTES"))


def test_inputs_must_come_once_and_all():
    spec = [TensorSpec(name=n, datatype="FP32", shape=("batch",)) for n in ("a", "b")]
    codec = GrpcCodec("m", "1", Signature(inputs=tuple(spec), outputs=(spec[0],)))
    request = raw_request(np.ones(1, np.float32), "FP32", "a")
    request.inputs.add(name="b", datatype="FP32", shape=[1])
    with pytest.raises(InvalidArgument, match="input 'b' has no data: there are only 1 raw_input_contents"):
        decode(codec, request)
    request.inputs[1].name = "a"
    with pytest.raises(InvalidArgument, match="input 'a' is given twice"):
        decode(codec, request)


class TestOutputs:
    CODEC = GrpcCodec(
        "m",
        "1",
        Signature(
            inputs=(TensorSpec(name="x", datatype="FP32", shape=("n",)),),
            outputs=(
                TensorSpec(name="p", datatype="FP32", shape=("n", 3), labels=("cat", "dog", "bird")),
                TensorSpec(name="q", datatype="INT64", shape=("n",)),
            ),
        ),
    )
    OUTPUTS = {"p": np.array([[0.1, 0.2, 0.5]], np.float32), "q": np.array([-2])}
    X = np.ones(1, np.float32)

    def ask(self, *outputs, build=raw_request, **more):
        request = build(self.X, "FP32", **more)
        for name, parameters in outputs:
            output = request.outputs.add(name=name)
            for key, value in parameters.items():
                kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
                setattr(output.parameters[key], kind, value)
        return decode(self.CODEC, request)[1]

    def test_selection_in_the_order_asked_for(self):
        plan = self.ask(("q", {}), ("p", {}))
        assert plan.outputs == ("q", "p")
        answer = response(self.CODEC.encode(plan, "7", self.OUTPUTS))
        assert [o.name for o in answer.outputs] == ["q", "p"]
        assert list(answer.raw_output_contents) == [self.OUTPUTS["q"].tobytes(), self.OUTPUTS["p"].tobytes()]
        assert answer.id == "7"

    def test_all_in_order_is_all(self):
        assert self.ask(("p", {}), ("q", {})).outputs is None
        assert self.ask().outputs is None

    @pytest.mark.parametrize("build", [raw_request, typed_request])
    def test_classification(self, build):
        answer = response(self.CODEC.encode(self.ask(("p", {"classification": 2}), build=build), "", self.OUTPUTS))
        [output] = answer.outputs
        assert (output.datatype, list(output.shape)) == ("BYTES", [1, 2])
        texts = [b"0.500000:2:bird", b"0.200000:1:dog"]
        if build is raw_request:
            assert list(answer.raw_output_contents) == [b"".join(struct.pack("<I", len(t)) + t for t in texts)]
        else:
            assert list(output.contents.bytes_contents) == texts

    @pytest.mark.parametrize(
        ("outputs", "error", "message"),
        [
            ([("z", {})], UnknownName, "unknown output 'z'"),
            ([("p", {}), ("p", {})], InvalidArgument, "asked for twice"),
            ([("p", {"classification": -1})], InvalidArgument, "classification is -1"),
            ([("p", {"classification": True})], InvalidArgument, "classification is True"),
            ([("p", {"shared_memory_region": "r"})], InvalidArgument, "shared_memory_byte_size is None"),
            ([("p", {"shared_memory_region": 5})], InvalidArgument, "shared_memory_region is 5"),
        ],
    )
    def test_what_cannot_be_wished_for(self, outputs, error, message):
        with pytest.raises(error, match=message):
            self.ask(*outputs)

    def test_parameters_of_every_kind(self):
        request = raw_request(self.X, "FP32")
        values = {"a": True, "b": -5, "c": "text", "d": 0.5, "e": 1 << 63}
        for (name, value), kind in zip(values.items(), ("bool", "int64", "string", "double", "uint64"), strict=True):
            setattr(request.parameters[name], f"{kind}_param", value)
        assert decode(self.CODEC, request)[1].parameters == values
        request.parameters["f"].SetInParent()
        with pytest.raises(InvalidArgument, match="request: parameter 'f' has no value"):
            decode(self.CODEC, request)

    @pytest.mark.parametrize("sequence", [7, 1 << 63, "chat"])
    def test_a_sequence_is_repeated_in_the_answer(self, sequence):
        request = raw_request(self.X, "FP32")
        kind = "string_param" if sequence == "chat" else "uint64_param"
        setattr(request.parameters["sequence_id"], kind, sequence)
        request.parameters["sequence_end"].bool_param = True
        answer = response(self.CODEC.encode(decode(self.CODEC, request)[1], "", self.OUTPUTS))
        told = answer.parameters["sequence_id"]
        assert getattr(told, told.WhichOneof("parameter_choice")) == sequence
        assert answer.parameters["sequence_end"].bool_param
        assert not answer.parameters["sequence_start"].bool_param
        assert len(answer.raw_output_contents) == 2


def test_outputs_that_are_not_contiguous():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    codec = identity("FP32")
    _, plan = decode(codec, raw_request(x, "FP32"))
    assert response(codec.encode(plan, "", {"y": x[:, ::2]})).raw_output_contents[0] == x[:, ::2].tobytes()
    assert response(codec.encode(plan, "", {"y": x[:, ::2].T})).raw_output_contents[0] == x[:, ::2].T.tobytes()


def test_shared_memory_both_ways(tmp_path):
    """Inputs and outputs in one region; the answer counts a raw output for each, as clients do."""
    memory = SharedMemory("/mine-", folder=tmp_path)
    peer = Peer(uid=os.geteuid())
    x = np.arange(4, dtype=np.float32).reshape(2, 2)
    (tmp_path / "mine-a").write_bytes(x.tobytes() + b"\0" * 16)
    memory.register("r", "/mine-a", 0, 32, peer)
    codec = identity("FP32", memory=memory)
    request = service_pb2.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[2, 2])
    output = request.outputs.add(name="y")
    for target, offset in ((tensor, 0), (output, 16)):
        target.parameters["shared_memory_region"].string_param = "r"
        target.parameters["shared_memory_byte_size"].int64_param = 16
        target.parameters["shared_memory_offset"].int64_param = offset
    inputs, plan = decode(codec, request, peer=peer)
    assert same(inputs["x"], x)
    answer = response(codec.encode(plan, "", {"y": -x}, peer))
    assert list(answer.raw_output_contents) == [b""]
    assert answer.outputs[0].parameters["shared_memory_region"].string_param == "r"
    assert (tmp_path / "mine-a").read_bytes() == x.tobytes() + (-x).tobytes()
    with pytest.raises(InvalidArgument, match="output 'y' has 32 bytes, the request gave 16"):
        codec.encode(plan, "", {"y": x.astype(np.float64)}, peer)
    tensor.contents.fp32_contents.append(1)
    with pytest.raises(InvalidArgument, match="both contents and shared_memory_region"):
        decode(codec, request, peer=peer)
    memory.close()


# The quick way


SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="a", datatype="FP32", shape=("n", "w")),
        TensorSpec(name="b", datatype="BOOL", shape=("n",)),
        TensorSpec(name="c", datatype="INT16", shape=(2,)),
    ),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=("n",)),),
)


COMMON_IDS = ["", "1", "22", "é", "x" * 127]


@st.composite
def messages(draw, names=("m", "", "n" * 130), ids=(*COMMON_IDS, "y" * 128)):
    """A request of the common form or near it, and another of the same."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    shapes = {"a": (rows, width), "b": (rows,), "c": (2,)}
    request = service_pb2.ModelInferRequest(model_name=draw(st.sampled_from(names)))
    request.model_version = draw(st.sampled_from(["", "1"]))
    for spec in draw(st.permutations(SIGNATURE.inputs)):
        request.inputs.add(name=spec.name, datatype=spec.datatype, shape=shapes[spec.name])
    if draw(st.booleans()):
        request.parameters["timeout"].int64_param = draw(st.integers(0, 10**6))
    if draw(st.booleans()):
        request.outputs.add(name="y").parameters["classification"].int64_param = draw(st.integers(0, 2))
    twins = []
    for _ in range(2):
        twin = service_pb2.ModelInferRequest()
        twin.CopyFrom(request)
        twin.id = draw(st.sampled_from(ids))
        for tensor in twin.inputs:
            spec = SIGNATURE.input(tensor.name)
            array = draw(hnp.arrays(spec.dtype, tuple(tensor.shape)))
            raw = array.tobytes()
            if tensor.name == "b" and draw(st.integers(0, 4)) == 0:
                raw = b"\x02" * len(raw)
            twin.raw_input_contents.append(raw)
        twins.append(twin.SerializeToString())
    return twins


def slowly(codec, message):
    request = PARSE(message)
    inputs, plan = codec.decode(request)
    return inputs, plan, request.id


def outcome(decode_, *args):
    try:
        inputs, plan, id = decode_(*args)
    except SalverError as error:
        return type(error), error.message
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in inputs.items()}, plan, id


def check_quick_is_slow(codec, known, message):
    """Whatever a template makes of a message is what the long way makes of it."""
    templates = Templates()
    try:
        inputs, plan, _ = slowly(codec, known)
    except SalverError:
        return None
    templates.learn(known, ("m", ""), inputs, plan, codec, SERVED)
    match = templates.match(message)
    if match is None:
        return False
    template, id, shift = match

    def quickly():
        found = template.fill(message, shift)
        return (unpack(found), template.plan, id) if found is not None else slowly(codec, message)

    assert outcome(quickly) == outcome(slowly, codec, message)
    return True


@settings(max_examples=100, deadline=None)
@given(messages())
def test_the_quick_way_is_as_the_long_one(twins):
    codec = GrpcCodec("m", "1", SIGNATURE)
    check_quick_is_slow(codec, *twins)


@settings(max_examples=100, deadline=None)
@given(messages(names=["m", "model"], ids=COMMON_IDS))
def test_the_quick_way_is_taken_for_the_common_form(twins):
    assert check_quick_is_slow(GrpcCodec("m", "1", SIGNATURE), *twins) is not False


@settings(max_examples=300, deadline=None)
@given(messages(), st.data())
def test_the_quick_way_is_as_the_long_one_for_damaged_messages(twins, data):
    """Bytes changed, added or removed, in the message that is learned from or in the one that follows it."""
    damaged = [bytearray(twin) for twin in twins]
    for _ in range(data.draw(st.integers(1, 3))):
        target = data.draw(st.sampled_from(damaged))
        place = data.draw(st.integers(0, len(target) - 1))
        kind = data.draw(st.sampled_from(["change", "add", "remove"]))
        if kind == "change":
            target[place] = data.draw(st.integers(0, 255))
        elif kind == "add":
            target[place:place] = data.draw(st.binary(min_size=1, max_size=4))
        elif len(target) > 1:
            del target[place]
    check_quick_is_slow(GrpcCodec("m", "1", SIGNATURE), *map(bytes, damaged))


class TestTemplates:
    CODEC = identity("FP32", ("batch", 2))

    def learn(self, message, templates=None):
        templates = templates or Templates()
        inputs, plan, _ = slowly(self.CODEC, message)
        templates.learn(message, ("m", ""), inputs, plan, self.CODEC, SERVED)
        return templates

    def message(self, value, id="", tail=b"", **more):
        x = np.full((1, 2), value, np.float32)
        return raw_request(x, "FP32", id=id, **more).SerializeToString() + tail

    @pytest.mark.parametrize(("first", "second"), [("", ""), ("", "abc"), ("7", ""), ("7", "1234")])
    def test_other_elements_and_another_id(self, first, second):
        template, id, shift = self.learn(self.message(1, first)).match(self.message(2, second))
        assert id == second
        assert unpack(template.fill(self.message(2, second), shift))["x"].tolist() == [[2, 2]]

    def test_elements_are_not_taken_from_an_unknown_field(self):
        """Field 100 ends as a message with elements would."""
        inner = self.message(1)[-10:]
        odd = self.message(1, tail=b"\xa2\x06" + bytes([len(inner)]) + inner)
        other = odd[:-8] + np.full(2, 9, np.float32).tobytes()
        assert self.learn(odd).match(other) is None

    @pytest.mark.parametrize(
        "tail", [b"\x1a\x01z", b"\x0a\x01m", b"\xa0\x06\x01", b"\x22\x08\x0a\x01k\x12\x03\x1a\x01v"]
    )
    def test_fields_after_the_elements_are_left_to_the_long_way(self, tail):
        message = self.message(1, tail=tail)
        assert self.learn(message).match(message) is None

    def test_a_model_that_is_gone_keeps_nothing_alive(self):
        served = type("Served", (), {})()
        templates = Templates()
        inputs, plan, _ = slowly(self.CODEC, self.message(1))
        templates.learn(self.message(1), ("m", ""), inputs, plan, self.CODEC, served)
        del served
        template, _, _ = templates.match(self.message(1))
        assert template.model() is None

    def test_there_are_never_many(self):
        templates = Templates()
        for number in range(2000):
            request = raw_request(np.ones((1, 2), np.float32), "FP32", model_version=str(number % 1500))
            self.learn(request.SerializeToString(), templates)
        kept = [template for alike in templates._by_size.values() for template in alike]
        assert 0 < len(kept) <= 512

    def test_long_beginnings_are_not_kept(self):
        request = raw_request(np.ones((1, 2), np.float32), "FP32")
        request.parameters["note"].string_param = "x" * 5000
        message = request.SerializeToString()
        assert self.learn(message).match(message) is None


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), messages().map(lambda twins: twins[0][: len(twins[0]) // 2])))
def test_any_bytes_are_a_request_or_an_error_of_ours(message):
    try:
        slowly(GrpcCodec("m", "1", SIGNATURE), message)
    except SalverError as error:
        assert error.message


def test_lists_without_end_are_refused_before_they_are_walked():
    """Of millions of outputs or inputs, which take two bytes each, only those that the message needs are looked at."""
    request = raw_request(np.ones((1, 2), np.float32), "FP32")
    many = 500_000
    for field, message in ((0x32, "unknown output ''"), (0x2A, "unknown input ''")):
        with pytest.raises(InvalidArgument, match=f"{message}|unknown datatype"):
            identity("FP32").decode(PARSE(request.SerializeToString() + bytes((field, 0)) * many))
    for index in range(1025):
        request.parameters[str(index)].bool_param = True
    with pytest.raises(InvalidArgument, match="got 1025 parameters, at most 1024"):
        decode(identity("FP32"), request)
