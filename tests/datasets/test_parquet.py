"""Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument
from salver.datasets import open_dataset
from salver.testing.datasets import DatasetConformance, read_all

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def written(path: Path, table: Any, **options: Any) -> Path:
    pq.write_table(pa.table(table), path, **options)
    return path


class TestParquet(DatasetConformance):
    @pytest.fixture
    def case(self, tmp_path: Path) -> tuple[Dataset, dict[str, Array]]:
        table = {
            "i": pa.array([1, 2, 3, 4, 5], pa.int8()),
            "f": pa.array([0.5, None, 1.5, 2.5, 3.5], pa.float32()),
            "t": pa.array(["a", "b", "a", "é", ""]).dictionary_encode(),
            "x": pa.array([[1.0, 2.0]] * 5, pa.list_(pa.float32(), 2)),
            "v": pa.array([[1, 2, 3]] * 5, pa.list_(pa.int64())),
            "b": [True, False, True, True, False],
            "label": ["x", "y", "x", "y", "x"],
        }
        expected: dict[str, Array] = {
            "i": np.array([1, 2, 3, 4, 5], np.int8),
            "f": np.array([0.5, np.nan, 1.5, 2.5, 3.5], np.float32),
            "t": np.array(["a", "b", "a", "é", ""], dtype=object),
            "x": np.tile(np.array([1, 2], np.float32), (5, 1)),
            "v": np.tile(np.array([1, 2, 3]), (5, 1)),
            "b": np.array([True, False, True, True, False]),
            "label": np.array(["x", "y", "x", "y", "x"], dtype=object),
        }
        return open_dataset(written(tmp_path / "a.parquet", table, row_group_size=2)), expected


def test_a_null_that_has_no_value_names_its_row(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", {"i": pa.array([1, 2, None, 4], pa.int32())})
    with pytest.raises(InvalidArgument, match="row 3, column 'i': null"):
        read_all(open_dataset(path))


def test_a_list_of_another_length_names_its_row(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", {"x": pa.array([[1, 2], [1, 2], [1]], pa.list_(pa.int64()))})
    with pytest.raises(InvalidArgument, match="row 3, column 'x': got a list of 1, expected 2"):
        read_all(open_dataset(path))


def test_a_type_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", {"d": pa.array([1], pa.timestamp("s"))})
    with pytest.raises(InvalidArgument, match=r"column 'd': got Parquet type timestamp"):
        open_dataset(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", {"i": [1, 2]})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InvalidArgument, match="not a Parquet file"):
        open_dataset(path)


def test_zero_examples_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", {"i": pa.array([], pa.int32())})
    with pytest.raises(InvalidArgument, match="zero examples"):
        open_dataset(path)
