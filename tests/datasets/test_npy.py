"""`.npy` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument
from salver.datasets import open_dataset
from salver.testing.datasets import DatasetConformance


class TestNpy(DatasetConformance):
    @pytest.fixture(params=["C", "F"])
    def case(self, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Dataset, dict[str, Array]]:
        array = np.array(np.arange(21, dtype=np.int16).reshape(7, 3), order=request.param)
        np.save(tmp_path / "a.npy", array)
        return open_dataset(tmp_path / "a.npy"), {"x": array}


def test_batches_belong_to_the_caller(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(4))
    dataset = open_dataset(tmp_path / "a.npy")
    next(iter(dataset.batches(4))).inputs["x"][:] = 1
    assert next(iter(dataset.batches(4))).inputs["x"].sum() == 0


def test_an_object_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}, {}], dtype=object))
    with pytest.raises(InvalidArgument, match="is a pickle"):
        open_dataset(tmp_path / "a.npy")


@pytest.mark.parametrize("content", [b"", b"not numpy at all", b"\x93NUMPY\x01\x00"])
def test_what_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"not a \.npy file"):
        open_dataset(tmp_path / "a.npy")


def test_a_truncated_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(100))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    with pytest.raises(InvalidArgument, match="truncated"):
        open_dataset(tmp_path / "a.npy")
