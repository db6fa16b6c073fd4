"""Examples to rows, and outputs to classes and numbers."""

from __future__ import annotations

import numpy as np
import pytest

from salver.core.errors import FailedPrecondition, InvalidArgument
from salver.core.tensors import Signature, TensorSpec
from salver.server.frontends.tfserving.examples import read_input, to_arrays, to_classes, to_numbers, to_rows
from salver.server.frontends.tfserving.tensors import PROTOS
from salver.wire.elements import to_bf16

INPUT = PROTOS.message("tensorflow.serving.Input")
EXAMPLE = PROTOS.message("tensorflow.Example")


def spec(name, datatype="FP32", shape=("batch",), labels=()):
    return TensorSpec(name=name, datatype=datatype, shape=shape, labels=labels)


def signature(*inputs, outputs=()):
    return Signature(inputs=inputs, outputs=outputs or (spec("y"),))


PERSON = signature(
    spec("age", "INT64"), spec("city", "BYTES"), spec("x", "FP32", ("batch", 2)), spec("member", "BOOL", ("batch", 1))
)


def example(**features):
    """Features by kind: floats, whole numbers or bytes, by the type of the first value."""
    message = EXAMPLE()
    for name, values in features.items():
        kind = {float: "float_list", int: "int64_list", bytes: "bytes_list"}[type(values[0])]
        getattr(message.features.feature[name], kind).value.extend(values)
    return message


def read(given, own):
    return to_arrays(read_input(given, own), own, 1 << 20)


def test_examples_of_every_kind():
    first = example(age=[41], city=[b"Bern"], x=[1.0, 2.5], member=[1])
    second = example(age=[7], city=["Zürich".encode()], x=[3.0, 4.0], member=[0], unknown=[b"left out"])
    inputs, rows = read(INPUT(example_list={"examples": [first, second]}), PERSON)
    assert rows == 2
    assert inputs["age"].tolist() == [41, 7]
    assert inputs["city"].tolist() == ["Bern", "Zürich"]
    assert inputs["x"].tolist() == [[1, 2.5], [3, 4]]
    assert inputs["member"].tolist() == [[True], [False]]


def test_the_context_holds_for_examples_that_do_not_say_otherwise():
    context = example(city=[b"Bern"], x=[1.0, 2.0], member=[1], age=[9])
    given = INPUT(example_list_with_context={"context": context, "examples": [example(age=[41]), EXAMPLE()]})
    inputs, rows = read(given, PERSON)
    assert rows == 2
    assert inputs["age"].tolist() == [41, 9]
    assert inputs["city"].tolist() == ["Bern", "Bern"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (INPUT(), "Input is empty"),
        (INPUT(example_list={}), "'examples' is empty"),
        (INPUT(example_list={"examples": [EXAMPLE()]}), "example 0: feature 'n' is missing"),
        (
            INPUT(example_list={"examples": [example(n=[1]), example(n=[1.5])]}),
            "example 1: .*float_list, expected int64",
        ),
        (INPUT(example_list={"examples": [example(n=[1, 2])]}), "instance 0, input 'n'"),
        (INPUT(example_list={"examples": [example(n=[300])]}), "INT8 holds -128 to 127"),
    ],
)
def test_examples_that_do_not_fit(given, message):
    with pytest.raises(InvalidArgument, match=message):
        read(given, signature(spec("n", "INT8")))


def test_a_feature_without_a_value_is_missing():
    empty = EXAMPLE()
    empty.features.feature["n"].SetInParent()
    with pytest.raises(InvalidArgument, match="feature 'n' is missing"):
        read(INPUT(example_list={"examples": [empty]}), signature(spec("n")))


@pytest.mark.parametrize(
    ("datatype", "values", "message"),
    [("BOOL", [2], "BOOL is 0 or 1"), ("BYTES", [b"\xff"], "not UTF-8"), ("FP32", [1], "expected float_list")],
)
def test_values_that_do_not_fit_their_kind(datatype, values, message):
    with pytest.raises(InvalidArgument, match=f"example 0: feature 'n'.*{message}"):
        read(INPUT(example_list={"examples": [example(n=values)]}), signature(spec("n", datatype)))


def test_a_model_without_rows_takes_no_examples():
    own = signature(spec("n", "FP32", ()))
    with pytest.raises(FailedPrecondition):
        read(INPUT(example_list={"examples": [example(n=[1.0])]}), own)


def test_features_in_json():
    rows = to_rows([{"age": 41, "more": 1}, {}], {"age": 7}, signature(spec("age", "INT64")))
    assert rows == [{"age": 41}, {"age": 7}]


SCORES = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)


def classes_of(outputs, *specs):
    return to_classes(outputs, signature(spec("x"), outputs=specs), 2)


def test_classes_are_those_of_the_signature_in_the_order_of_the_model():
    own = spec("probabilities", "FP32", ("batch", 2), ("cat", "dog"))
    found = classes_of({"label": np.array([0, 1]), "probabilities": SCORES}, spec("label", "INT64"), own)
    assert found == [[("cat", 0.25), ("dog", 0.75)], [("cat", 0.5), ("dog", 0.5)]]


def test_classes_come_from_an_output_of_that_name():
    names = np.array([["a", "b"], ["b", "c"]], object)
    scores, other = spec("scores", "FP64", ("batch", 2)), spec("more", "FP32", ("batch", 2))
    classes = spec("classes", "BYTES", ("batch", 2))
    outputs = {"more": SCORES, "scores": SCORES.astype(np.float64), "classes": names}
    assert classes_of(outputs, other, scores, classes) == [[("a", 0.25), ("b", 0.75)], [("b", 0.5), ("c", 0.5)]]


def test_without_names_classes_are_empty():
    assert classes_of({"y": SCORES}, spec("y", "FP32", ("batch", 2)))[0] == [("", 0.25), ("", 0.75)]
    bf16 = to_bf16(np.array([0.5, 0.25], np.float32))
    assert classes_of({"y": bf16}, spec("y", "BF16")) == [[("", 0.5)], [("", 0.25)]]
    wrong = spec("y", "FP32", ("batch", 2), ("one",))
    assert classes_of({"y": SCORES}, wrong)[0] == [("", 0.25), ("", 0.75)]


@pytest.mark.parametrize(
    ("outputs", "specs"),
    [
        ({"y": np.array([1, 2])}, [spec("y", "INT64")]),
        ({"p": SCORES, "q": SCORES}, [spec("p"), spec("q")]),
        ({"y": SCORES.reshape(1, 2, 2)}, [spec("y")]),
        ({"y": SCORES[:1]}, [spec("y")]),
    ],
)
def test_models_that_cannot_classify(outputs, specs):
    with pytest.raises(FailedPrecondition, match=r"this model cannot classify: .* Use predict"):
        classes_of(outputs, *specs)


def numbers_of(outputs, *specs):
    return to_numbers(outputs, signature(spec("x"), outputs=specs), 2)


def test_numbers():
    assert numbers_of({"y": np.array([1.5, 2], np.float32)}, spec("y")) == [1.5, 2]
    assert numbers_of({"y": np.array([[1.5], [2]])}, spec("y", "FP64", ("batch", 1))) == [1.5, 2]
    two = {"outputs": np.array([1, 2], np.float32), "z": SCORES}
    assert numbers_of(two, spec("z", "FP32", ("batch", 2)), spec("outputs")) == [1, 2]


@pytest.mark.parametrize(
    ("outputs", "specs"),
    [
        ({"y": SCORES}, [spec("y", "FP32", ("batch", 2))]),
        ({"y": np.array(1, np.float32)}, [spec("y", "FP32", ())]),
        ({"y": np.ones(3, np.float32)}, [spec("y", "FP32", ("n",))]),
        ({"y": np.array([1, 2])}, [spec("y", "INT64")]),
    ],
)
def test_models_that_cannot_regress(outputs, specs):
    with pytest.raises(FailedPrecondition, match=r"this model cannot regress: .* Use predict"):
        numbers_of(outputs, *specs)
