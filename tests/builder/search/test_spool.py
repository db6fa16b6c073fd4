"""The spool gives back what the source gave, whatever the column."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salver.builder.search.splits import split
from salver.builder.search.spool import SpooledDataset, spool
from salver.core.dataset import Batch, Dataset, concat
from salver.core.errors import InvalidArgument
from salver.datasets import open_dataset


def whole(dataset: Dataset, size: int) -> Batch:
    return concat(list(dataset.batches(size)))


def test_strings_numbers_and_labels_come_back(tmp_path: Path) -> None:
    texts = np.array(["", "naïve", "two\nlines", "𝄞"], dtype=object)
    numbers = np.arange(8, dtype=np.float32).reshape(4, 2)
    source = open_dataset({"text": texts, "number": numbers, "label": np.array([0, 1, 1, 0])})
    spooled = spool(source, tmp_path / "part")
    for size in (1, 3, 100):
        got = whole(spooled, size)
        assert got.inputs["text"].tolist() == texts.tolist()
        assert np.array_equal(got.inputs["number"], numbers)
        assert got.labels is not None
        assert got.labels.tolist() == [0, 1, 1, 0]
    assert len(SpooledDataset(tmp_path / "part")) == 4


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 700), size=st.integers(1, 300))
def test_every_row_is_in_exactly_one_batch(tmp_path_factory: pytest.TempPathFactory, rows: int, size: int) -> None:
    source = open_dataset({"x": np.arange(rows, dtype=np.int64)})
    spooled = spool(source, tmp_path_factory.mktemp("spool"))
    assert whole(spooled, size).inputs["x"].tolist() == list(range(rows))


class Ragged(Dataset):
    """Rows of two lengths."""

    columns = open_dataset({"x": np.zeros((2, 3), np.float32)}).columns
    label_spec = None
    digest = "sha256:0"
    source = "ragged"

    def __len__(self) -> int:
        return 2

    def batches(self, size: int) -> Iterator[Batch]:
        for width in (3, 4):
            yield Batch(inputs={"x": np.zeros((1, width), np.float32)}, labels=None, rows=1)


def test_ragged_rows_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"column 'x': row 1 has shape \[4\]"):
        spool(Ragged(), tmp_path / "part")


@given(rows=st.integers(3, 3000), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_splits_are_disjoint_and_complete(rows: int, seed: int) -> None:
    parts = split(open_dataset({"x": np.arange(rows)}), None, seed)
    dealt = [whole(part, 500).inputs["x"].tolist() for part in (parts.calibrate, parts.steer, parts.certify)]
    assert all(dealt)
    assert sorted(itertools.chain(*dealt)) == list(range(rows))


def test_own_calibration_data_leaves_the_rest_for_quality() -> None:
    own = open_dataset({"x": np.arange(7)})
    parts = split(open_dataset({"x": np.arange(100)}), own, 0)
    assert parts.calibrate is own
    assert len(parts.steer) + len(parts.certify) == 100
