"""The activation step."""

from __future__ import annotations

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.tensors import TensorSpec
from salver.testing.processing import ProcessingConformance


class TestActivation(ProcessingConformance):
    step = {"step": "activation", "input": "logits"}
    given = (TensorSpec(name="logits", datatype="FP32", shape=("batch", 3), labels=("a", "b", "c")),)

    @pytest.fixture
    def rows(self) -> dict[str, Array]:
        return {"logits": np.array([[0, 0, 0], [1000, 0, -1000], [1, 2, 3]], np.float32)}

    def test_softmax_of_large_scores_is_finite_and_keeps_the_names_of_classes(self, rows: dict[str, Array]) -> None:
        step = self.make()
        (spec,) = self.bind(step)
        made = step.run(rows)["probabilities"]
        assert spec.labels == ("a", "b", "c")
        np.testing.assert_allclose(made.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(made[1], [1, 0, 0])
        np.testing.assert_allclose(made[2], np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum(), rtol=1e-6)

    def test_sigmoid_and_temperature(self, rows: dict[str, Array]) -> None:
        step = self.make({"kind": "sigmoid", "temperature": 2.0})
        self.bind(step)
        made = step.run(rows)["probabilities"]
        np.testing.assert_allclose(made[2], 1 / (1 + np.exp(-np.array([0.5, 1, 1.5]))), rtol=1e-6)
        np.testing.assert_allclose(made[1], [1, 0.5, 0])
        with pytest.raises(InvalidArgument, match="temperature: got 0"):
            self.make({"temperature": 0.0})
