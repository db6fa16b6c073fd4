from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from salver.core.tensors import Signature, TensorSpec
from salver.evaluation.metrics import make_metric
from salver.testing.metrics import MetricConformance

SIGNATURE = Signature(inputs=(), outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch", 4)),))


class TestMacroF1(MetricConformance):
    def make_metric(self):
        return make_metric("macro-f1", SIGNATURE)

    def make_batch(self, rows, seed):
        labels = np.minimum(np.arange(rows) % 7, 3)
        noise = np.random.default_rng(seed).normal(size=(rows, 4))
        return {"y": (np.eye(4)[labels] * 1.5 + noise).astype(np.float32)}, labels

    def test_is_what_scikit_learn_says(self):
        outputs, labels = self.make_batch(300, 4)
        metric = self.make_metric()
        expected = f1_score(labels, outputs["y"].argmax(axis=1), average="macro")
        assert metric.value(metric.reduce(outputs, labels)) == pytest.approx(expected)

    def test_influence_predicts_what_leaving_one_out_does(self):
        metric = self.make_metric()
        stats = metric.reduce(*self.make_batch(400, 5))
        paired = metric.compare(stats, stats)
        for i in (0, 17, 399):
            rest = {name: np.delete(array, i) for name, array in stats.items()}
            change = metric.value(rest) - paired.baseline
            assert change == pytest.approx(-paired.influence[0][i] / 400, rel=0.05, abs=1e-5)
