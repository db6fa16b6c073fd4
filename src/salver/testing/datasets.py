"""Conformance of the `datasets` family: subclass `DatasetConformance` once per reader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument


class DatasetConformance:
    """What every reader keeps.

    A member's test has a fixture ``case`` that gives the reader opened on real content and what it must give: column
    name -> array of all rows, the label column under its own name.
    """

    @pytest.fixture
    def case(self) -> tuple[Dataset, dict[str, Array]]:
        """The dataset and its expected columns."""
        raise NotImplementedError

    @pytest.mark.parametrize("size", [1, 2, 3, 1000])
    def test_batches_hold_every_example_once_in_order(self, case: tuple[Dataset, dict[str, Array]], size: int) -> None:
        dataset, expected = case
        batches = list(dataset.batches(size))
        assert [b.rows for b in batches[:-1]] == [size] * (len(batches) - 1)
        assert sum(b.rows for b in batches) == len(dataset)
        for column in dataset.columns:
            whole = np.concatenate([b.inputs[column.name] for b in batches])
            np.testing.assert_array_equal(whole, expected[column.name])
        if dataset.label_spec is not None:
            labels = np.concatenate([b.labels for b in batches if b.labels is not None])
            np.testing.assert_array_equal(labels, expected[dataset.label_spec.name])

    def test_arrays_are_what_the_columns_say(self, case: tuple[Dataset, dict[str, Array]]) -> None:
        dataset, expected = case
        label = [dataset.label_spec] if dataset.label_spec else []
        assert {c.name for c in (*dataset.columns, *label)} == set(expected)
        for batch in dataset.batches(2):
            assert set(batch.inputs) == {c.name for c in dataset.columns}
            for column in dataset.columns:
                array = batch.inputs[column.name]
                assert (array.dtype, array.shape) == (column.dtype, (batch.rows, *column.shape[1:]))
                if column.datatype == "BYTES":
                    assert all(isinstance(v, str) for v in array.reshape(-1))

    def test_reading_twice_gives_the_same(self, case: tuple[Dataset, dict[str, Array]]) -> None:
        dataset, _ = case
        first, second = (list(dataset.batches(2)) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            for name in a.inputs:
                np.testing.assert_array_equal(a.inputs[name], b.inputs[name])

    def test_the_digest_is_stable(self, case: tuple[Dataset, dict[str, Array]]) -> None:
        dataset, _ = case
        assert dataset.digest == dataset.digest
        assert dataset.digest.startswith("sha256:")

    def test_a_batch_size_below_one_is_refused(self, case: tuple[Dataset, dict[str, Array]]) -> None:
        dataset, _ = case
        with pytest.raises(InvalidArgument, match="expected at least 1"):
            list(dataset.batches(0))


def read_all(dataset: Dataset) -> dict[str, Any]:
    """All rows of a dataset: column name -> array, the label under its own name."""
    batches = list(dataset.batches(2))
    whole: dict[str, Any] = {c.name: np.concatenate([b.inputs[c.name] for b in batches]) for c in dataset.columns}
    if dataset.label_spec is not None:
        whole[dataset.label_spec.name] = np.concatenate([b.labels for b in batches if b.labels is not None])
    return whole
