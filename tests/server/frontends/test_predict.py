"""``/predict``: rows in, predictions out."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from salver.backends.base import Session
from salver.core.errors import FailedPrecondition, InvalidArgument
from salver.core.tensors import Signature, TensorSpec
from salver.server.frontends import FRONTENDS, Services
from salver.server.frontends.instances import example_instance, to_inputs, to_predictions
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import ServeSettings
from salver.testing.frontends import FrontendConformance, InlineEngine, SessionModel, body_of, call


class Sizes(Session):
    """Says how many bytes a file has."""

    signature = Signature(
        inputs=(TensorSpec(name="file", datatype="BYTES", shape=("batch",), binary=True),),
        outputs=(TensorSpec(name="size", datatype="INT64", shape=("batch",)),),
    )

    def run(self, inputs, outputs=None):
        return {"size": np.array([len(file) for file in inputs["file"]])}

    def close(self):
        pass


def signature(inputs, outputs):
    return Signature(
        inputs=tuple(TensorSpec(name=n, datatype=d, shape=s) for n, d, s in inputs),
        outputs=tuple(TensorSpec(name=n, datatype=d, shape=s, labels=labels) for n, d, s, labels in outputs),
    )


class TestPredict(FrontendConformance):
    member = "predict"

    def test_classes_come_with_label_score_and_the_best_scores(self, frontend, models):
        answer = body_of(call(frontend, "POST", "/predict/linear", b'{"instances":[[1,2,3,4],[-1,0,0,9.5]]}'))
        model = [m for m in models if m.name == "linear"][-1]
        x = np.array([[1, 2, 3, 4], [-1, 0, 0, 9.5]], np.float32)
        scores = model.session.run({"x": x})["scores"]
        labels = ("cat", "dog", "bird")
        for row, prediction in zip(scores, answer["predictions"], strict=True):
            assert prediction["label"] == labels[int(row.argmax())]
            assert prediction["score"] == float(row.max())
            assert prediction["scores"] == {labels[i]: float(row[i]) for i in range(3)}
            assert list(prediction["scores"].values()) == sorted(prediction["scores"].values(), reverse=True)

    def test_several_inputs_are_objects_and_several_outputs_too(self, frontend):
        body = b'{"instances":[{"a":[1,2],"b":[3,4]},{"b":[0,0],"a":[7.9,-1]}]}'
        assert body_of(call(frontend, "POST", "/predict/pair", body)) == {
            "predictions": [
                {"total": [4.0, 6.0], "whole": [1, 2]},
                {"total": [7.900000095367432, -1.0], "whole": [7, -1]},
            ]
        }

    def test_one_output_without_labels_is_a_bare_row(self, frontend):
        answer = call(frontend, "POST", "/predict/id-bytes", '{"instances":[["a","é"],["",""]]}'.encode())
        assert body_of(answer) == {"predictions": [["a", "é"], ["", ""]]}

    def test_nan_goes_in_and_out(self, frontend):
        answer = call(frontend, "POST", "/predict/id-fp32", b'{"instances":[[NaN,-Infinity,1]]}')
        assert b"".join([answer.answer[1]]) == b'{"predictions":[[NaN,-Infinity,1.0]]}'

    def test_the_only_model_needs_no_name(self, models):
        engine = InlineEngine([m for m in models if m.name == "pair"])
        frontend = FRONTENDS.get("predict")(Services(engine, Metrics(engine.models), ServeSettings()))
        assert call(frontend, "POST", "/predict", b'{"instances":[{"a":[1],"b":[1]}]}').status == 200
        empty = InlineEngine([])
        frontend = FRONTENDS.get("predict")(Services(empty, Metrics(empty.models), ServeSettings()))
        assert call(frontend, "POST", "/predict", b'{"instances":[1]}').status == 404

    @pytest.mark.parametrize("kind", ["image/jpeg", "Application/Octet-Stream"])
    def test_a_file_is_a_row_of_a_model_that_takes_one(self, kind):
        engine = InlineEngine([SessionModel("files", Sizes())])
        frontend = FRONTENDS.get("predict")(Services(engine, Metrics(engine.models), ServeSettings()))
        answer = call(frontend, "POST", "/predict/files", b"\xff\xd8 no JSON", content_type=kind.encode())
        assert body_of(answer) == {"predictions": [10]}

    def test_several_models_need_a_name(self, frontend):
        assert "/predict/linear" in body_of(call(frontend, "POST", "/predict", b'{"instances":[1]}'))["error"]

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b'{"instances":[]}', "'instances' is empty"),
            (b'{"instances":[[1,2,3]]}', "instance 0, input 'x': got shape [3], expected [4]"),
            (
                b'{"instances":[[1,2,3,4],[1,2,3,"4"]]}',
                "instance 1, input 'x': data: Expected `float`, got `str` - at `$[3]`",
            ),
            (b'{"instances":[[1,2,3,4e40]]}', "element 3 is 4e+40"),
            (b'{"instances":[{"y":[1,2,3,4]}]}', "instance 0"),
            (b'{"instance":[[1,2,3,4]]}', "unknown field `instance`"),
            (b'{"instances":[[1,2,3,4]', "ends early"),
        ],
    )
    def test_what_does_not_fit_is_named(self, frontend, body, message):
        answer = call(frontend, "POST", "/predict/linear", body)
        assert answer.status == 400
        assert message in body_of(answer)["error"]


TEXTS = signature(
    [("text", "BYTES", ("n", 1))], [("label", "BYTES", ("n",), ()), ("p", "FP32", ("n", 2), ("neg", "pos"))]
)


def test_texts_are_written_bare_and_answered_with_class_names():
    inputs = to_inputs(["good", "bad é"], TEXTS)
    assert inputs["text"].tolist() == [["good"], ["bad é"]]
    outputs = {"label": np.array(["pos", "neg"], object), "p": np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)}
    assert to_predictions(outputs, TEXTS, 2) == [
        {"label": "pos", "score": 0.75, "scores": {"pos": 0.75, "neg": 0.25}},
        {"label": "neg", "score": 0.5, "scores": {"neg": 0.5, "pos": 0.5}},
    ]


@pytest.mark.parametrize("own", [np.array([1, 0]), np.array([[1], [0]])])
def test_the_models_own_decision_wins_over_the_largest_score(own):
    given = signature([("x", "FP32", ("n", 1))], [("label", "INT64", ("n",), ()), ("p", "FP32", ("n", 2), ("a", "b"))])
    outputs = {"label": own, "p": np.array([[0.9, 0.1], [0.9, 0.1]], np.float64)}
    first, second = to_predictions(outputs, given, 2)
    assert (first["label"], first["score"]) == ("b", 0.1)
    assert (second["label"], second["score"]) == ("a", 0.9)


def test_labels_that_are_numbers_are_names_not_places():
    given = signature([("x", "FP32", ("n", 1))], [("label", "INT64", ("n",), ()), ("p", "FP32", ("n", 2), ("7", "1"))])
    outputs = {"label": np.array([1]), "p": np.array([[0.9, 0.1]], np.float64)}
    assert to_predictions(outputs, given, 1)[0]["label"] == "1"


def test_a_score_that_is_nan_is_never_the_best():
    given = signature([("x", "FP32", ("n", 1))], [("p", "FP32", ("n", 3), ("a", "b", "c"))])
    assert to_predictions({"p": np.array([[np.nan, 0.1, 0.2]])}, given, 1)[0]["label"] == "c"


IMAGE = signature([("x", "FP32", ("n", 1, 2, 3))], [("y", "FP32", ("n", 1), ())])


@pytest.mark.parametrize("row", [[[[1, 2, 3], [4, 5, 6]]], [[1, 2, 3], [4, 5, 6]], [1, 2, 3, 4, 5, 6]])
def test_dimensions_of_one_may_be_left_out_and_fixed_shapes_written_flat(row):
    assert to_inputs([row, row], IMAGE)["x"].tolist() == [[[[1, 2, 3], [4, 5, 6]]]] * 2


@pytest.mark.parametrize("row", [[[1, 2], [3, 4], [5, 6]], [1, 2, 3, 4, 5], 1, [[[1, 2, 3], [4, 5]]], []])
def test_other_shapes_are_not_bent(row):
    with pytest.raises(InvalidArgument, match="instance 0, input 'x'"):
        to_inputs([row], IMAGE)


def test_rows_of_different_lengths_are_refused():
    ragged = signature([("x", "INT64", ("n", "w"))], [("y", "INT64", ("n", "w"), ())])
    with pytest.raises(InvalidArgument, match=r"different shapes \[1\], \[2\]"):
        to_inputs([[1], [1, 2]], ragged)


def test_a_model_without_rows_is_for_infer():
    scalar = signature([("x", "FP32", ())], [("y", "FP32", (), ())])
    with pytest.raises(FailedPrecondition, match="no rows"):
        to_inputs([1], scalar)
    whole = signature([("x", "FP32", ("n",))], [("y", "FP32", ("m",), ())])
    with pytest.raises(FailedPrecondition, match="no row for each of 2"):
        to_predictions({"y": np.zeros(3)}, whole, 2)
    assert to_predictions({"y": np.zeros(3)}, whole, 1) == [[0.0, 0.0, 0.0]]


def test_bf16_is_numbers():
    given = signature([("x", "BF16", ("n", 2))], [("y", "BF16", ("n", 2), ())])
    inputs = to_inputs([[1.5, -2]], given)
    assert inputs["x"].dtype == np.uint16
    assert msgspec.json.encode(to_predictions({"y": inputs["x"]}, given, 1)) == b"[[1.5,-2.0]]"


def test_an_example_fits_or_is_left_out():
    assert example_instance(IMAGE) == [[0.5] * 3] * 2
    assert to_inputs([example_instance(IMAGE)], IMAGE)["x"].shape == (1, 1, 2, 3)
    large = signature([("x", "FP32", ("n", 5000))], [("y", "FP32", ("n", 1), ())])
    assert example_instance(large) is None
    pair = signature([("a", "BYTES", ("n",)), ("b", "BOOL", ("n", "w"))], [("y", "FP32", ("n", 1), ())])
    assert example_instance(pair) == {"a": "text", "b": True}


def test_the_only_model_is_described_without_its_name(models):
    from salver.server.frontends import FRONTENDS, Services
    from salver.server.monitoring.metrics import Metrics
    from salver.server.settings import ServeSettings

    engine = InlineEngine([m for m in models if m.name == "pair"])
    frontend = FRONTENDS.get("predict")(Services(engine, Metrics(engine.models), ServeSettings()))
    assert set(frontend.openapi(engine.models())) == {"/predict", "/predict/pair"}


def test_outputs_without_rows_are_refused_unless_there_is_one():
    given = signature([("x", "FP32", ("n",))], [("y", "FP32", (), ()), ("z", "BF16", ("n",), ())])
    half = np.array([0x3F80], np.uint16)
    assert to_predictions({"y": np.array(2.0), "z": half}, given, 1) == [{"y": 2.0, "z": 1.0}]
    with pytest.raises(FailedPrecondition, match="output 'y' has shape \\[\\], no row for each of 2"):
        to_predictions({"y": np.array(2.0), "z": half}, given, 2)


def test_rows_written_alike_are_stacked_at_once_and_others_one_by_one():
    """A million rows one by one would keep the event loop for half a minute."""
    spec = TensorSpec(name="x", datatype="FP32", shape=("batch", 2))
    signature = Signature(inputs=(spec,), outputs=(spec,))
    many = 200_000
    assert to_inputs([[1, 2]] * many, signature)["x"].shape == (many, 2)
    assert to_inputs([[1, 2], [[3, 4]], [[5], [6]]], signature)["x"].tolist() == [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(InvalidArgument, match=r"input 'x'.*expected 2 for shape"):
        to_inputs([[1, 2]] * many + [[3]], signature)
    with pytest.raises(InvalidArgument, match="instance 2, input 'x'"):
        to_inputs([[1, 2]] * 2 + [[3]], signature)
    with pytest.raises(InvalidArgument, match="instance 0, input 'x'"):
        to_inputs([[3]] * many, signature)
