from __future__ import annotations

import numpy as np
import pytest

from salver.core.errors import InvalidArgument, NotFound
from salver.core.tensors import Signature, TensorSpec
from salver.evaluation.metrics import make_metric
from salver.testing.metrics import MetricConformance

SIGNATURE = Signature(inputs=(), outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch",)),))

METRICS = """
import numpy as np

def hit(outputs, labels):
    return np.abs(outputs["y"] - labels) < 0.5

def median_error(outputs, labels):
    return float(np.median(np.abs(outputs["y"] - labels)))

median_error.higher_is_better = False

def wrong_shape(outputs, labels):
    return np.zeros((2, 2))

unlabelled = 3
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_metrics.py").write_text(METRICS)
    monkeypatch.syspath_prepend(str(tmp_path))


class CustomConformance(MetricConformance):
    target = ""

    def make_metric(self):
        return make_metric(self.target, SIGNATURE)

    def make_batch(self, rows, seed):
        labels = np.linspace(-3, 3, rows)
        return {"y": labels + np.random.default_rng(seed).normal(size=rows)}, labels

    def test_missing_labels_are_named(self):
        """Labels are the function's own business."""


class TestPerExample(CustomConformance):
    target = "my_metrics:hit"


class TestScalar(CustomConformance):
    target = "my_metrics:median_error"

    def test_direction_is_the_functions(self):
        assert not self.make_metric().higher_is_better


def test_what_cannot_be_a_metric_is_named():
    with pytest.raises(NotFound, match="no_such_module"):
        make_metric("no_such_module:f", SIGNATURE)
    with pytest.raises(NotFound, match="nothing"):
        make_metric("my_metrics:nothing", SIGNATURE)
    with pytest.raises(InvalidArgument, match="is no function"):
        make_metric("my_metrics:unlabelled", SIGNATURE)
    with pytest.raises(InvalidArgument, match=r"expected one number, or one for each example: \[3\]"):
        make_metric("my_metrics:wrong_shape", SIGNATURE).reduce({"y": np.zeros(3)}, None)
