from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.dataset import Batch, Dataset, Subset, concat, cut
from salver.core.errors import InvalidArgument
from salver.core.tensors import TensorSpec


class Numbers(Dataset):
    """0, 1, 2, ... and whether each is odd."""

    columns = (TensorSpec(name="x", datatype="INT64", shape=("batch",)),)
    label_spec = TensorSpec(name="odd", datatype="BOOL", shape=("batch",))
    digest = "sha256:0"
    source = "numbers"

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, self._count, size):
            x = np.arange(start, min(start + size, self._count))
            yield Batch(inputs={"x": x}, labels=x % 2 == 1, rows=len(x))


@given(st.integers(0, 900), st.data(), st.integers(1, 400))
def test_a_subset_gives_its_rows_in_order_and_full_batches(count: int, data: st.DataObject, size: int) -> None:
    rows = sorted(data.draw(st.sets(st.integers(0, count - 1)))) if count else []
    subset = Subset(Numbers(count), np.array(rows, np.int64))
    batches = list(subset.batches(size))
    assert [x for batch in batches for x in batch.inputs["x"].tolist()] == rows
    assert all(batch.rows == size for batch in batches[:-1])
    assert all(np.array_equal(batch.labels, batch.inputs["x"] % 2 == 1) for batch in batches)
    assert len(subset) == len(rows)
    assert (subset.columns, subset.label_spec, subset.digest, subset.source) == (
        Numbers.columns,
        Numbers.label_spec,
        Numbers.digest,
        Numbers.source,
    )


@pytest.mark.parametrize("rows", [[3, 1], [1, 1], [-1], [5]])
def test_rows_that_are_no_subset(rows: list[int]) -> None:
    with pytest.raises(InvalidArgument, match="rows must be sorted, distinct and below 5"):
        Subset(Numbers(5), np.array(rows, np.int64))


def test_ragged_rows_are_named() -> None:
    parts = [Batch(inputs={"x": np.zeros((1, n))}, labels=None, rows=1) for n in (2, 3)]
    with pytest.raises(InvalidArgument, match="column 'x': rows of different shapes"):
        concat(parts)


def test_concat_and_cut_without_labels() -> None:
    whole = concat([Batch(inputs={"x": np.arange(n)}, labels=None, rows=n) for n in (2, 3)])
    part = cut(whole, 1, 4)
    assert (part.inputs["x"].tolist(), part.labels, part.rows) == ([1, 0, 1], None, 3)
