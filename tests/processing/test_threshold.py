"""The threshold step."""

from __future__ import annotations

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.tensors import TensorSpec
from salver.testing.processing import ProcessingConformance


class TestThreshold(ProcessingConformance):
    step = {"step": "threshold", "input": "score", "at": 0.7, "yes": "spam", "no": "ham"}
    given = (TensorSpec(name="score", datatype="FP32", shape=("batch", 1)),)

    @pytest.fixture
    def rows(self) -> dict[str, Array]:
        return {"score": np.array([[0.71], [0.69], [np.nan]], np.float32)}

    def test_a_score_from_the_border_on_says_yes(self, rows: dict[str, Array]) -> None:
        step = self.make()
        (spec,) = self.bind(step)
        assert step.run(rows)["label"].tolist() == ["spam", "ham", "ham"]
        assert spec.labels == ("ham", "spam")

    def test_each_class_has_its_border(self) -> None:
        self.given = (TensorSpec(name="score", datatype="FP32", shape=("batch", 2), labels=("a", "b")),)
        step = self.make({"at": [0.5, 0.9], "yes": "", "no": ""})
        (spec,) = self.bind(step)
        assert (spec.datatype, spec.labels) == ("BOOL", ("a", "b"))
        assert step.run({"score": np.array([[0.6, 0.6], [0.1, 0.95]])})["label"].tolist() == [
            [True, False],
            [False, True],
        ]

    def test_one_column_may_decide(self) -> None:
        self.given = (TensorSpec(name="score", datatype="FP32", shape=("batch", 2)),)
        step = self.make({"column": 1})
        self.bind(step)
        assert step.run({"score": np.array([[0.9, 0.1], [0.2, 0.8]])})["label"].tolist() == ["ham", "spam"]

    def test_settings_that_cannot_be_are_refused(self) -> None:
        with pytest.raises(InvalidArgument, match="two different texts, or neither"):
            self.make({"no": ""})
        with pytest.raises(InvalidArgument, match="column: got 5"):
            self.bind(self.make({"column": 5}))
        with pytest.raises(InvalidArgument, match="got 3 borders for 1 classes"):
            self.bind(self.make({"at": [0.1, 0.2, 0.3]}))
