"""The normalize step."""

from __future__ import annotations

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.tensors import TensorSpec
from salver.testing.processing import ProcessingConformance


class TestNormalize(ProcessingConformance):
    step = {"step": "normalize"}
    given = (TensorSpec(name="embedding", datatype="FP32", shape=("batch", 2)),)

    @pytest.fixture
    def rows(self) -> dict[str, Array]:
        return {"embedding": np.array([[3, 4], [0, 0], [-2, 0]], np.float32)}

    def test_vectors_have_length_one_and_zeros_stay(self, rows: dict[str, Array]) -> None:
        step = self.make()
        self.bind(step)
        np.testing.assert_allclose(step.run(rows)["embedding"], [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)
