"""The labels step."""

from __future__ import annotations

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.errors import Internal, InvalidArgument
from salver.core.tensors import TensorSpec
from salver.testing.processing import ProcessingConformance


class TestLabels(ProcessingConformance):
    step = {"step": "labels", "input": "scores", "labels": ["cat", "dog", "fox"]}
    given = (TensorSpec(name="scores", datatype="FP32", shape=("batch", 3)),)

    @pytest.fixture
    def rows(self) -> dict[str, Array]:
        return {"scores": np.array([[1, 3, 2], [5, np.nan, 4], [7, 7, 7]], np.float32)}

    def test_the_best_class_has_its_name_and_its_score(self, rows: dict[str, Array]) -> None:
        step = self.make()
        label, _ = self.bind(step)
        made = step.run(rows)
        assert label.labels == ("cat", "dog", "fox")
        assert made["label"].tolist() == ["dog", "cat", "cat"]
        assert made["score"].tolist() == [3, 5, 7]

    def test_the_best_few_stand_in_order(self, rows: dict[str, Array]) -> None:
        step = self.make({"top_k": 2})
        self.bind(step)
        made = step.run(rows)
        assert made["label"].tolist() == [["dog", "fox"], ["cat", "fox"], ["cat", "dog"]]
        assert made["score"][0].tolist() == [3, 2]

    def test_names_come_from_a_file_or_from_the_model(self, rows: dict[str, Array]) -> None:
        self.files = {"names.txt": "älg\nbäver\nvarg\n".encode()}
        step = self.make({"labels": [], "file": "names.txt"})
        self.bind(step)
        assert step.run(rows)["label"].tolist() == ["bäver", "älg", "älg"]
        self.given = (TensorSpec(name="scores", datatype="FP32", shape=("batch", 3), labels=("x", "y", "z")),)
        own = self.make({"labels": []})
        self.bind(own)
        assert own.run(rows)["label"].tolist() == ["y", "x", "x"]

    def test_numbers_of_classes_get_names_too(self) -> None:
        self.given = (TensorSpec(name="scores", datatype="INT64", shape=("batch",)),)
        step = self.make()
        assert [spec.name for spec in self.bind(step)] == ["label"]
        assert step.run({"scores": np.array([2, 0])})["label"].tolist() == ["fox", "cat"]
        with pytest.raises(Internal, match="answered class 3, there are 3 names"):
            step.run({"scores": np.array([3])})

    def test_names_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(InvalidArgument, match="got 2 names for the 3 classes"):
            self.bind(self.make({"labels": ["a", "b"]}))
        with pytest.raises(InvalidArgument, match="the classes have no names"):
            self.bind(self.make({"labels": []}))
        with pytest.raises(InvalidArgument, match="top_k: got 4"):
            self.bind(self.make({"top_k": 4}))
        self.files = {"names.txt": b"\xff\xfe"}
        with pytest.raises(InvalidArgument, match="is not UTF-8"):
            self.make({"labels": [], "file": "names.txt"})
