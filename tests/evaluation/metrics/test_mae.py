from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error

from salver.core.errors import InvalidArgument
from salver.core.tensors import Signature, TensorSpec
from salver.evaluation.metrics import make_metric
from salver.testing.metrics import MetricConformance

SIGNATURE = Signature(inputs=(), outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch", 1)),))


class TestMae(MetricConformance):
    def make_metric(self):
        return make_metric("mae", SIGNATURE)

    def make_batch(self, rows, seed):
        labels = np.linspace(-3, 3, rows)
        return {"y": (labels + np.random.default_rng(seed).normal(size=rows))[:, None].astype(np.float32)}, labels

    def test_is_what_scikit_learn_says(self):
        outputs, labels = self.make_batch(100, 2)
        metric = self.make_metric()
        assert not metric.higher_is_better
        assert metric.value(metric.reduce(outputs, labels)) == pytest.approx(mean_absolute_error(labels, outputs["y"]))


def test_nan_is_a_very_large_loss():
    metric = make_metric("mae", SIGNATURE)
    assert metric.value(metric.reduce({"y": np.array([1.0, np.nan])}, np.array([1.0, 1.0]))) > 1e20


def test_labels_must_be_numbers_of_the_same_shape():
    metric = make_metric("mae", SIGNATURE)
    with pytest.raises(InvalidArgument, match="needs numbers"):
        metric.reduce({"y": np.zeros((2, 1))}, np.array(["a", "b"]))
    with pytest.raises(InvalidArgument, match="one label per value"):
        metric.reduce({"y": np.zeros((2, 1))}, np.zeros((2, 3)))
