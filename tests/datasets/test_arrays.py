"""Arrays in memory, and the choice of the reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument, NotFound, UnknownName
from salver.datasets import open_dataset
from salver.testing.datasets import DatasetConformance


class TestArrays(DatasetConformance):
    @pytest.fixture
    def case(self) -> tuple[Dataset, dict[str, Array]]:
        arrays: dict[str, Any] = {"x": np.zeros((5, 2)), "t": np.array(list("abcde")), "label": [1, 2, 3, 4, 5]}
        return open_dataset(arrays), arrays


def test_a_tuple_is_inputs_and_labels() -> None:
    dataset = open_dataset((np.zeros((3, 2)), [0, 1, 2]))
    assert [c.name for c in dataset.columns] == ["x"]
    assert dataset.label_spec is not None
    assert open_dataset((np.zeros((3, 2)), None)).label_spec is None


def test_the_digest_is_of_the_content() -> None:
    one, same, other = (open_dataset({"x": np.array(v)}).digest for v in ([1.0, 2.0], [1.0, 2.0], [1.0, 3.0]))
    assert one == same != other
    assert open_dataset({"t": np.array(["ab", "c"])}).digest != open_dataset({"t": np.array(["a", "bc"])}).digest


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3), "y": np.zeros(2)}, "'x' has 3 rows, column 'y' has 2"),
        ({"x": np.zeros(0)}, "zero examples"),
        ({}, "zero examples"),
        ({"x": np.float32(1)}, "got a scalar"),
        ({"x": np.array([1 + 2j])}, "complex128"),
        ({"x": np.array([1, "a"], dtype=object)}, "row 1, column 'x': got a int in an object array"),
        (3, "got a int, expected a dictionary"),
    ],
)
def test_bad_arrays_are_named(arrays: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        open_dataset(arrays)


def test_a_dataset_is_returned_as_it_is() -> None:
    dataset = open_dataset({"x": np.zeros(2), "y": np.zeros(2)})
    assert open_dataset(dataset) is dataset
    assert open_dataset(dataset, label="y") is dataset
    with pytest.raises(InvalidArgument, match="open already"):
        open_dataset(dataset, label="x")


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no such file or folder: 'nothing\.npz'"):
        open_dataset("nothing.npz")
    (tmp_path / "a.npq").write_bytes(b"")
    with pytest.raises(UnknownName, match="Did you mean 'npz'"):
        open_dataset(tmp_path / "a.npq")
    (tmp_path / "a.npz.gz").write_bytes(b"")
    with pytest.raises(InvalidArgument, match="decompress it"):
        open_dataset(tmp_path / "a.npz.gz")
