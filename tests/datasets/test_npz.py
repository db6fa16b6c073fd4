"""`.npz` files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument, UnknownName
from salver.datasets import open_dataset
from salver.testing.datasets import DatasetConformance, read_all

DTYPES = [np.bool_, np.uint8, np.int16, np.int64, np.uint64, np.float16, np.float32, np.float64]


class TestNpz(DatasetConformance):
    @pytest.fixture(params=[True, False], ids=["compressed", "stored"])
    def case(self, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Dataset, dict[str, Array]]:
        arrays: dict[str, Any] = {
            "x": np.arange(28, dtype=np.float32).reshape(7, 2, 2),
            "fortran": np.asfortranarray(np.arange(21.0).reshape(7, 3)),
            "big_endian": np.arange(7, dtype=">i4"),
            "text": np.array(["a", "bb", "", "é", "日本", "f", "g"]),
            "empty_rows": np.zeros((7, 0), dtype=np.float32),
            "label": np.arange(7),
        }
        (np.savez_compressed if request.param else np.savez)(tmp_path / "a.npz", **arrays)
        return open_dataset(tmp_path / "a.npz"), arrays


@given(data=st.data(), rows=st.integers(1, 9), size=st.integers(1, 10))
def test_any_array_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, rows: int, size: int
) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    inner = data.draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=4)) if data.draw(st.booleans()) else ()
    array = data.draw(hnp.arrays(dtype, (rows, *inner)))
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    np.savez(path, x=array)
    read = np.concatenate([b.inputs["x"] for b in open_dataset(path).batches(size)])
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_columns_of_different_lengths_are_both_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.zeros((6, 2)), x_test=np.zeros((2, 2)))
    with pytest.raises(InvalidArgument, match=r"'x_train' has 6 rows, column 'x_test' has 2"):
        open_dataset(tmp_path / "a.npz")


def test_an_object_array_is_refused_as_the_pickle_it_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InvalidArgument, match=r"column 'x': an object array is a pickle"):
        open_dataset(tmp_path / "a.npz")


def test_zero_examples_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((0, 2)))
    with pytest.raises(InvalidArgument, match="zero examples"):
        open_dataset(tmp_path / "a.npz")


def test_a_damaged_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(1000))
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match="Bad CRC"):
        read_all(open_dataset(path))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(1000))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InvalidArgument, match=r"not a \.npz file, or it is truncated"):
        open_dataset(path)


def test_an_array_shorter_than_its_header_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.save(tmp_path / "x.npy", np.arange(100))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", (tmp_path / "x.npy").read_bytes()[:-8])
    with pytest.raises(InvalidArgument, match="column 'x' is truncated"):
        read_all(open_dataset(path))


def test_bytes_that_are_not_utf8_name_their_row(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([b"fine", b"\xff"]))
    with pytest.raises(InvalidArgument, match="row 2, column 'x': bytes that are not UTF-8"):
        read_all(open_dataset(tmp_path / "a.npz"))


def test_the_label_is_the_one_asked_for_or_the_one_that_is_known(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(2), y=np.ones(2), species=np.array(["a", "b"]))
    found, asked = open_dataset(path).label_spec, open_dataset(path, label="species").label_spec
    assert found is not None
    assert asked is not None
    assert (found.name, asked.name) == ("y", "species")
    with pytest.raises(UnknownName, match="Did you mean 'species'"):
        open_dataset(path, label="specie")


def test_two_possible_labels_are_not_chosen_between(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(2), y=np.ones(2), label=np.ones(2))
    with pytest.raises(InvalidArgument, match="'label', 'y' could each be the label"):
        open_dataset(tmp_path / "a.npz")


def test_y_test_is_not_guessed_to_be_the_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_test=np.zeros(2), y_test=np.ones(2))
    assert open_dataset(tmp_path / "a.npz").label_spec is None
