from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from salver.core.errors import InvalidArgument
from salver.core.tensors import Signature, TensorSpec
from salver.evaluation.metrics import make_metric
from salver.testing.metrics import MetricConformance

SIGNATURE = Signature(inputs=(), outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch", 6)),))


class TestTopK(MetricConformance):
    def make_metric(self):
        return make_metric("top-3", SIGNATURE)

    def make_batch(self, rows, seed):
        return {"y": np.random.default_rng(seed).normal(size=(rows, 6)).astype(np.float32)}, np.arange(rows) % 6

    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_is_what_scikit_learn_says(self, k):
        outputs, labels = self.make_batch(200, 3)
        metric = make_metric(f"top-{k}", SIGNATURE)
        assert metric.name == f"top-{k}"
        expected = top_k_accuracy_score(labels, outputs["y"], k=k)
        assert metric.value(metric.reduce(outputs, labels)) == pytest.approx(expected)


def test_equal_scores_do_not_make_everything_right():
    metric = make_metric("top-2", SIGNATURE)
    stats = metric.reduce({"y": np.zeros((6, 6), np.float32)}, np.arange(6))
    assert metric.value(stats) == pytest.approx(2 / 6)


@pytest.mark.parametrize("k", [6, 100])
def test_k_must_leave_something_out(k):
    with pytest.raises(InvalidArgument, match="k must be from 1 to 5"):
        make_metric(f"top-{k}", SIGNATURE).reduce({"y": np.zeros((1, 6), np.float32)}, np.zeros(1, int))
