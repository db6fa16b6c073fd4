from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from salver.core.errors import InvalidArgument
from salver.core.tensors import Signature, TensorSpec
from salver.evaluation.metrics import make_metric
from salver.testing.metrics import MetricConformance


def signature(classes: int) -> Signature:
    return Signature(inputs=(), outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch", classes)),))


class TestAuc(MetricConformance):
    classes = 2

    def make_metric(self):
        return make_metric("auc", signature(self.classes))

    def make_batch(self, rows, seed):
        labels = np.arange(rows) % self.classes
        p = np.eye(self.classes)[labels] + np.random.default_rng(seed).normal(size=(rows, self.classes)).round(1)
        p = np.exp(p)
        return {"y": (p / p.sum(axis=1, keepdims=True)).astype(np.float64)}, labels

    def test_is_what_scikit_learn_says(self):
        outputs, labels = self.make_batch(300, 4)
        metric = self.make_metric()
        scores = outputs["y"][:, 1] if self.classes == 2 else outputs["y"]
        expected = roc_auc_score(labels, scores, multi_class="ovr")
        assert metric.value(metric.reduce(outputs, labels)) == pytest.approx(expected)


class TestMulticlassAuc(TestAuc):
    classes = 4


def test_variance_of_the_difference_is_that_of_delong():
    rng = np.random.default_rng(0)
    labels = np.r_[np.ones(40, int), np.zeros(70, int)]
    first, second = labels + rng.normal(size=110), labels + rng.normal(size=110)
    metric = make_metric(
        "auc", Signature(inputs=(), outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch",)),))
    )
    paired = metric.compare(*(metric.reduce({"y": s}, labels) for s in (first, second)))
    got = np.sum((paired.influence[0] - paired.influence[1]) ** 2) / 110**2
    placed = [
        (np.mean(s[:40, None] > s[None, 40:], axis=1), np.mean(s[:40, None] > s[None, 40:], axis=0))
        for s in (first, second)
    ]
    expected = np.var(placed[0][0] - placed[1][0]) / 40 + np.var(placed[0][1] - placed[1][1]) / 70
    assert got == pytest.approx(expected)


def test_one_class_has_no_curve():
    metric = make_metric("auc", signature(2))
    with pytest.raises(InvalidArgument, match="at least two classes"):
        metric.value(metric.reduce({"y": np.random.default_rng(0).random((5, 2))}, np.ones(5, int)))
