"""The tabular step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.tensors import TensorSpec
from salver.testing.processing import ProcessingConformance
from tests.processing.conftest import texts

COLUMNS: list[dict[str, Any]] = [
    {"name": "age", "mean": 40.0, "scale": 10.0, "missing": 40.0},
    {"name": "color", "kind": "category", "values": ["red", "green", "blue"], "missing": "blue"},
    {"name": "doors", "kind": "category", "values": [2, 4], "encode": "index", "unknown": "zeros"},
]


class TestTabular(ProcessingConformance):
    step = {"step": "tabular", "columns": COLUMNS}
    wanted = (TensorSpec(name="x", datatype="FP32", shape=("batch", 5)),)

    @pytest.fixture
    def rows(self) -> dict[str, Array]:
        return {
            "age": np.array([50.0, np.nan, 20.0]),
            "color": texts("green", "red", ""),
            "doors": np.array([4, 2, 3], np.int64),
        }

    def with_columns(self, index: int, **change: Any) -> dict[str, Any]:
        columns = [dict(column) for column in COLUMNS]
        columns[index].update(change)
        return {"columns": columns}

    def test_columns_stand_side_by_side(self, rows: dict[str, Array]) -> None:
        step = self.make()
        self.bind(step)
        assert step.run(rows)["x"].tolist() == [[1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [-2, 0, 0, 1, -1]]

    def test_clients_send_each_column_in_its_own_type(self) -> None:
        step = self.make()
        sent = {name: step.raw(name, "batch") for name in step.consumes}
        assert {name: spec.datatype for name, spec in sent.items()} == {
            "age": "FP64",
            "color": "BYTES",
            "doors": "INT64",
        }

    def test_what_is_missing_or_unknown_is_refused_by_name_and_row_unless_a_rule_is_declared(
        self, rows: dict[str, Array]
    ) -> None:
        for change, message in (
            (self.with_columns(0, missing=None), r"input 'age', row 1: the number is missing"),
            (self.with_columns(1, missing=None), r"input 'color', row 2: got '', expected one of red, green, blue"),
            (self.with_columns(2, unknown="refuse"), r"input 'doors', row 2: got '3', expected one of 2, 4"),
        ):
            step = self.make(change)
            self.bind(step)
            with pytest.raises(InvalidArgument, match=message):
                step.run(rows)

    def test_settings_that_cannot_be_are_refused(self) -> None:
        for change, message in (
            (self.with_columns(1, values=[]), "needs its values"),
            (self.with_columns(1, values=["a", 1]), "expected one kind"),
            (self.with_columns(1, missing="none"), "which is none of its values"),
            (self.with_columns(0, name="color"), "of different names"),
            (self.with_columns(0, scale=0.0), "scale"),
            (self.with_columns(0, kindd="number"), "kindd"),
        ):
            with pytest.raises(InvalidArgument, match=message):
                self.make(change)
