from __future__ import annotations

import numpy as np
import pytest

from salver.core.tensors import Signature, TensorSpec
from salver.evaluation.metrics import make_metric
from salver.testing.metrics import MetricConformance

SIGNATURE = Signature(inputs=(), outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch", 3)),))


class TestAgreement(MetricConformance):
    def make_metric(self):
        return make_metric("agreement", SIGNATURE)

    def make_batch(self, rows, seed):
        return {"y": np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)}, None


@pytest.mark.parametrize(
    ("own", "theirs", "expected"),
    [
        (np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.6, 0.4], [0.7, 0.3]]), 0.5),  # classes
        (np.array([0.9, 0.2]), np.array([0.7, 0.6]), 0.5),  # probabilities of one class
        (np.array([10.0, 20.0]), np.array([10.05, 20.5]), 0.5),  # values
        (np.array([1, 2]), np.array([1, 3]), 0.5),  # integer classes
        (np.array(["a", "b"], object), np.array(["a", "c"], object), 0.5),  # text classes
        (np.zeros((2, 2, 2)), np.array([np.zeros((2, 2)), np.ones((2, 2))]), 0.5),  # anything else, by value
    ],
)
def test_agreement_needs_no_labels(own, theirs, expected):
    metric = make_metric("agreement", SIGNATURE)
    paired = metric.compare(metric.reduce({"y": own}, None), metric.reduce({"y": theirs}, None))
    assert paired.baseline == 1.0
    assert paired.candidate == expected
