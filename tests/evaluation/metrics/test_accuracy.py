from __future__ import annotations

import numpy as np
import pytest

from salver.core.errors import InvalidArgument, UnknownName
from salver.core.tensors import Signature, TensorSpec
from salver.evaluation.metrics import Metric, make_metric
from salver.testing.metrics import MetricConformance

CLASSES = ("cat", "dog", "owl")


def signature(*outputs: TensorSpec) -> Signature:
    return Signature(inputs=(TensorSpec(name="x", datatype="FP32", shape=("batch", 2)),), outputs=outputs)


def scores(name: str = "scores", labels: tuple[str, ...] = ()) -> TensorSpec:
    return TensorSpec(name=name, datatype="FP32", shape=("batch", 3), labels=labels)


class TestAccuracy(MetricConformance):
    def make_metric(self) -> Metric:
        return make_metric("accuracy", signature(scores()))

    def make_batch(self, rows, seed):
        labels = np.arange(rows) % 3
        noise = np.random.default_rng(seed).normal(size=(rows, 3))
        return {"scores": (np.eye(3)[labels] + noise).astype(np.float32)}, labels


ROWS = np.array([[0.1, 0.7, 0.2], [0.9, 0.0, 0.1], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]], np.float32)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([1, 0, 2, 1]),
        np.array([1.0, 0.0, 2.0, 1.0]),
        np.array(["dog", "cat", "owl", "dog"]),
        np.array(["dog", "cat", "owl", "dog"], object),
        np.array([[1], [0], [2], [1]], np.int8),
    ],
)
def test_labels_may_be_indices_or_names(labels):
    metric = make_metric("accuracy", signature(scores(labels=CLASSES)))
    assert metric.value(metric.reduce({"scores": ROWS}, labels)) == 0.75


def test_class_names_that_are_numbers_are_names_not_positions():
    metric = make_metric("accuracy", signature(scores(labels=("3", "1", "0"))))
    assert metric.value(metric.reduce({"scores": ROWS}, np.array([1, 3, 0, 1]))) == 0.75


def test_an_output_of_classes_is_preferred_and_compared_as_text():
    specs = signature(TensorSpec(name="label", datatype="INT64", shape=("batch",)), scores("probabilities"))
    metric = make_metric("accuracy", specs)
    outputs = {"label": np.array([7, 8, 9, 7]), "probabilities": ROWS}
    assert metric.value(metric.reduce(outputs, np.array(["7", "8", "9", "8"]))) == 0.75


def test_names_answered_to_numeric_labels_need_class_names():
    spec = TensorSpec(name="label", datatype="BYTES", shape=("batch",))
    outputs = {"label": np.array(["dog", "cat", "owl", "cat"], object)}
    with pytest.raises(InvalidArgument, match="give the class names"):
        make_metric("accuracy", signature(spec)).reduce(outputs, np.array([1, 0, 2, 1]))
    named = TensorSpec(name="label", datatype="BYTES", shape=("batch",), labels=CLASSES)
    metric = make_metric("accuracy", signature(named))
    assert metric.value(metric.reduce(outputs, np.array([1, 0, 2, 1]))) == 0.75


@pytest.mark.parametrize(("shift", "shape"), [(0.0, (4,)), (0.0, (4, 1)), (-0.5, (4,))])
def test_a_binary_score_is_a_probability_or_a_logit(shift, shape):
    spec = TensorSpec(name="p", datatype="FP32", shape=("batch",))
    metric = make_metric("accuracy", signature(spec))
    p = (np.array([0.9, 0.2, 0.6, 0.4]) + shift).astype(np.float32).reshape(shape)
    assert metric.value(metric.reduce({"p": p}, np.array([1, 0, 0, 0]))) == 0.75


def test_the_candidate_is_cut_where_the_baseline_is():
    metric = make_metric("accuracy", signature(TensorSpec(name="p", datatype="FP32", shape=("batch",))))
    labels = np.array([1, 0, 1, 0])
    logits = metric.reduce({"p": np.array([2.0, -2.0, 0.3, -0.3])}, labels)
    all_in_unit_range = metric.reduce({"p": np.array([0.9, 0.0, 0.2, 0.0])}, labels)
    assert metric.compare(logits, all_in_unit_range).candidate == 1.0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([1, 0, 3, 1]), "label 3 is out of range; the model has 3 classes"),
        (np.array([1, 0, -1, 1]), "label -1 is out"),
        (np.array([1, 0, 0.5, 1]), "label 0.5 is no class"),
        (
            np.array(["dog", "cat", "cow", "dog"]),
            "label 'cow' is no class of the model; valid: cat, dog, owl",
        ),
        (np.zeros((4, 2), int), r"labels of shape \[4, 2\] for 4 examples"),
        (np.zeros(3, int), "for 4 examples"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, message):
    with pytest.raises(InvalidArgument, match=message):
        make_metric("accuracy", signature(scores(labels=CLASSES))).reduce({"scores": ROWS}, labels)


def test_two_outputs_that_fit_must_be_told_apart():
    specs = signature(scores("a"), scores("b"))
    outputs = {"a": ROWS, "b": ROWS[:, ::-1]}
    labels = np.array([1, 0, 2, 0])
    with pytest.raises(InvalidArgument, match=r"2 outputs fit \('a', 'b'\); name one: 'accuracy@a'"):
        make_metric("accuracy", specs).reduce(outputs, labels)
    metric = make_metric("accuracy@a", specs)
    assert metric.value(metric.reduce(outputs, labels)) == 1.0
    with pytest.raises(UnknownName, match="unknown output 'c'"):
        make_metric("accuracy@c", specs)


def test_an_output_that_is_no_answer_is_refused():
    spec = TensorSpec(name="mask", datatype="FP32", shape=("batch", 3, 4, 4))
    with pytest.raises(InvalidArgument, match=r"no output fits.*output 'mask' float32"):
        make_metric("accuracy", signature(spec)).reduce({"mask": np.zeros((2, 3, 4, 4), np.float32)}, np.zeros(2, int))


def test_a_nan_never_wins():
    metric = make_metric("accuracy", signature(scores()))
    rows = np.array([[np.nan, 0.1, 0.3]], np.float32)
    assert metric.value(metric.reduce({"scores": rows}, np.array([2]))) == 1.0


def test_unknown_metrics_get_the_valid_names():
    with pytest.raises(UnknownName, match="Did you mean 'accuracy'"):
        make_metric("acuracy", signature(scores()))
    with pytest.raises(UnknownName, match="top-5"):
        make_metric("top-k", signature(scores()))
