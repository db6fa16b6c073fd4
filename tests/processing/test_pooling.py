"""The pooling step."""

from __future__ import annotations

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.tensors import TensorSpec
from salver.testing.processing import ProcessingConformance


class TestPooling(ProcessingConformance):
    step = {"step": "pooling", "input": "states"}
    given = (
        TensorSpec(name="states", datatype="FP32", shape=("batch", "tokens", 2)),
        TensorSpec(name="attention_mask", datatype="INT64", shape=("batch", "tokens")),
    )

    @pytest.fixture
    def rows(self) -> dict[str, Array]:
        states = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
        states[0, 3] = np.nan  # of a token that does not count
        mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], np.int64)
        return {"states": states, "attention_mask": mask}

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("mean", [[1, 2], [11, 12], [0, 0]]),
            ("max", [[2, 3], [14, 15]]),
            ("first", [[0, 1], [8, 9]]),
            ("last", [[2, 3], [14, 15]]),
        ],
    )
    def test_only_tokens_that_count_are_pooled(
        self, rows: dict[str, Array], kind: str, expected: list[list[int]]
    ) -> None:
        step = self.make({"kind": kind})
        self.bind(step)
        assert step.run(rows)["embedding"][: len(expected)].tolist() == expected

    def test_another_shape_is_refused(self) -> None:
        self.given = (TensorSpec(name="states", datatype="FP32", shape=("batch", 2)), self.given[1])
        with pytest.raises(InvalidArgument, match=r"'states' is FP32 \[batch, 2\]; it takes .* of 3 dimensions"):
            self.bind(self.make())
