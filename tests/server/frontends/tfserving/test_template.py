"""The quick way gives what the long way gives, or nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.errors import SalverError
from salver.core.tensors import NUMPY_DTYPES, Signature, TensorSpec
from salver.server.frontends.tfserving.predict import PredictCodec
from salver.server.frontends.tfserving.signatures import DATA_TYPES
from salver.server.frontends.tfserving.template import Templates
from salver.server.frontends.tfserving.tensors import PROTOS
from salver.wire.protobuf import delimited

TENSOR = PROTOS.message("tensorflow.TensorProto")
REQUEST = PROTOS.message("tensorflow.serving.PredictRequest")
NAMED = ("m", None, None)
NUMERIC = [name for name in NUMPY_DTYPES if name not in ("BYTES", "BOOL")]


class Model:
    """Stands for a served model; only who it is counts."""


def codec(datatype="FP32"):
    spec = TensorSpec(name="x", datatype=datatype, shape=("batch", 4))
    outputs = (
        TensorSpec(name="y", datatype="FP32", shape=("batch", 4)),
        TensorSpec(name="z", datatype="FP32", shape=("batch",)),
    )
    return PredictCodec("m", "1", Signature(inputs=(spec,), outputs=outputs), 1 << 20)


def request(array, datatype="FP32", *, typed=False, wanted=(), name="m"):
    dims = [{"size": size} for size in array.shape]
    field = {"FP32": "float_val", "FP64": "double_val"}.get(datatype, "int64_val")
    elements = {field: array.ravel().tolist()} if typed else {"tensor_content": array.tobytes()}
    tensor = {"dtype": DATA_TYPES[datatype][1], "tensor_shape": {"dim": dims}, **elements}
    return REQUEST(model_spec={"name": name}, inputs={"x": tensor}, output_filter=wanted).SerializeToString()


def learned(message, found, model, templates=None):
    templates = Templates() if templates is None else templates
    templates.learn(message, NAMED, found.decode(REQUEST.FromString(message)), found, model)
    return templates


@pytest.mark.parametrize("datatype", NUMERIC)
@pytest.mark.parametrize("wanted", [(), ("y",)])
def test_the_next_message_is_read_the_quick_way(datatype, wanted):
    found, model = codec(datatype), Model()
    first = np.arange(8).astype(NUMPY_DTYPES[datatype]).reshape(2, 4)
    second = first[::-1].copy()
    templates = learned(request(first, datatype, wanted=wanted), found, model)
    message = request(second, datatype, wanted=wanted)
    template = templates.match(message)
    assert template.model() is model
    decoded = template.fill(message)
    assert decoded.inputs["x"].dtype == second.dtype
    assert np.array_equal(decoded.inputs["x"], second)
    assert decoded.inputs["x"].flags.aligned
    assert (decoded.rows, decoded.wanted) == (2, wanted or None)


@pytest.mark.parametrize(("datatype", "is_quick"), [("FP32", True), ("FP64", True), ("INT64", False)])
def test_packed_floats_are_as_good_as_tensor_content(datatype, is_quick):
    found = codec(datatype)
    first = np.arange(4).astype(NUMPY_DTYPES[datatype]).reshape(1, 4)
    model = Model()
    templates = learned(request(first, datatype, typed=True), found, model)
    message = request(first * 2, datatype, typed=True)
    template = templates.match(message)
    assert (template is not None) == is_quick
    if template is not None:
        assert np.array_equal(template.fill(message).inputs["x"], first * 2)


X = np.arange(4, dtype=np.float32).reshape(1, 4)


def test_another_model_shape_or_output_is_not_taken_for_the_same():
    model = Model()
    templates = learned(request(X), codec(), model)
    for other in (
        request(X, name="n"),
        request(X, wanted=["y"]),
        request(X.reshape(4, 1)),
        request(np.tile(X, (2, 1))),
    ):
        assert templates.match(other) is None


@given(st.data())
def test_a_message_with_changed_bytes_is_read_as_the_long_way_reads_it(data):
    message = bytearray(request(X))
    found, model = codec(), Model()
    templates = learned(bytes(message), found, model)
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    template = templates.match(bytes(message))
    if template is not None:
        quick = template.fill(bytes(message))
        slow = found.decode(REQUEST.FromString(bytes(message)))
        assert quick.inputs["x"].tobytes() == slow.inputs["x"].tobytes()
        assert (quick.inputs["x"].shape, quick.rows, quick.wanted) == (slow.inputs["x"].shape, slow.rows, slow.wanted)


@given(st.lists(st.sampled_from(["spec", "inputs", "more", "filter", "unknown"]), min_size=1, max_size=6))
def test_fields_in_any_order_and_number(order):
    """What is learned of odd but valid messages holds for the same message with other elements."""
    pieces = {
        "spec": REQUEST(model_spec={"name": "m"}).SerializeToString(),
        "filter": REQUEST(output_filter=["y"]).SerializeToString(),
        "unknown": delimited(9, b"\x01" * 16),
    }

    def build(x):
        tensor = request(x)[len(pieces["spec"]) :]
        return b"".join({**pieces, "inputs": tensor, "more": tensor}[piece] for piece in order)

    found, model = codec(), Model()
    try:
        templates = learned(build(X), found, model)
    except SalverError:
        return
    message = build(X + 1)
    template = templates.match(message)
    if template is not None:
        quick, slow = template.fill(message), found.decode(REQUEST.FromString(message))
        assert np.array_equal(quick.inputs["x"], slow.inputs["x"])
        assert quick.wanted == slow.wanted


def test_tensors_written_otherwise_go_the_long_way():
    found, model = codec(), Model()
    plain = {"dtype": 1, "tensor_shape": {"dim": [{"size": 1}, {"size": 4}]}}
    odd = [
        {**plain, "version_number": 1, "tensor_content": X.tobytes()},
        {**plain, "tensor_shape": {"dim": [{"size": 1, "name": "n"}, {"size": 4}]}, "tensor_content": X.tobytes()},
        {**plain, "float_val": [1]},
    ]
    for tensor in odd:
        message = REQUEST(model_spec={"name": "m"}, inputs={"x": tensor}).SerializeToString()
        assert learned(message, found, model).match(message) is None


def test_messages_it_cannot_split():
    """An unknown number among the fields, no element at all, and an entry that says its tensor twice."""
    found, model = codec(), Model()
    spec = REQUEST(model_spec={"name": "m"}).SerializeToString()
    tensor = TENSOR(dtype=1, tensor_shape={"dim": [{"size": 1}, {"size": 4}]}, tensor_content=X.tobytes())
    entry = delimited(1, b"x") + delimited(2, tensor.SerializeToString())
    for message in (request(X) + b"\x48\x01", spec + delimited(2, entry + delimited(2, b""))):
        assert learned(message, found, model).match(message) is None
    ragged = TensorSpec(name="x", datatype="FP32", shape=("batch", "width"))
    open_ended = PredictCodec("m", "1", Signature(inputs=(ragged,), outputs=(ragged,)), 1 << 20)
    empty = request(np.zeros((1, 0), np.float32))
    assert learned(empty, open_ended, model).match(empty) is None


def test_it_is_bounded():
    found, model = codec(), Model()
    templates = Templates()
    for rows in range(1, 700):
        learned(request(np.tile(X, (rows, 1))), found, model, templates)
    for index in range(20):
        learned(request(X, name=f"{index:03}"), found, model, templates)
    held = [template for alike in templates._by_size.values() for template in alike]
    assert 0 < len(held) <= 512
    assert templates._count == len(held)
    assert learned(request(X, name="m" * 5000), found, model).match(request(X, name="m" * 5000)) is None


def test_learning_again_replaces():
    found, old, new = codec(), Model(), Model()
    templates = learned(request(X), found, old)
    learned(request(X), found, new, templates)
    assert templates.match(request(X)).model() is new
    del new
    assert templates.match(request(X)).model() is None
