from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import r2_score

from salver.core.errors import InvalidArgument
from salver.core.tensors import Signature, TensorSpec
from salver.evaluation.metrics import make_metric
from salver.testing.metrics import MetricConformance

SIGNATURE = Signature(inputs=(), outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch", 2)),))


class TestR2(MetricConformance):
    def make_metric(self):
        return make_metric("r2", SIGNATURE)

    def make_batch(self, rows, seed):
        labels = np.stack([np.linspace(-3, 3, rows), np.cos(np.arange(rows))], axis=1)
        return {"y": labels + np.random.default_rng(seed).normal(size=(rows, 2)) * 0.3}, labels

    def test_is_what_scikit_learn_says(self):
        outputs, labels = self.make_batch(100, 2)
        metric = self.make_metric()
        assert metric.value(metric.reduce(outputs, labels)) == pytest.approx(r2_score(labels, outputs["y"]))


def test_labels_without_variance_explain_nothing():
    metric = make_metric("r2", SIGNATURE)
    with pytest.raises(InvalidArgument, match="no variance"):
        metric.value(metric.reduce({"y": np.zeros((3, 2))}, np.ones((3, 2))))
