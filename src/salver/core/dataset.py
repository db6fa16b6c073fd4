"""Labelled examples: the port that every reader fulfils, and views of a part of one.

A dataset streams: it may be read many times, from the start, but is never assumed to fit in memory twice.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy.typing as npt


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive examples.

    Args:
        inputs: column name -> array of shape ``[rows, ...]``.
        labels: array of shape ``[rows]`` (or ``[rows, ...]`` for regression on several targets), None without labels.
        rows: number of examples.
    """

    inputs: dict[str, Array]
    labels: Array | None
    rows: int


class Dataset(abc.ABC):
    """The port of the `datasets` family.

    Readers are deterministic (the same order each time), read-only, safe to iterate several times, and raise
    `InvalidArgument` naming file, row and column when the content is not what it claims to be. They never drop or
    truncate: the batches hold every example exactly once, the last batch may be smaller.
    """

    @property
    @abc.abstractmethod
    def columns(self) -> tuple[TensorSpec, ...]:
        """The input columns; the first dimension of each is ``batch``."""

    @property
    @abc.abstractmethod
    def label_spec(self) -> TensorSpec | None:
        """The label column, or None."""

    @property
    @abc.abstractmethod
    def digest(self) -> str:
        """``sha256:<hex>`` of the content the examples come from."""

    @property
    @abc.abstractmethod
    def source(self) -> str:
        """What the user named: a path or ``module:function``, for messages and lineage."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def batches(self, size: int) -> Iterator[Batch]:
        """All examples in order, ``size`` at a time."""


class Subset(Dataset):
    """Some examples of a dataset, in their order, read by streaming the whole.

    Args:
        base: the dataset.
        rows: sorted, distinct row numbers.
    """

    def __init__(self, base: Dataset, rows: npt.NDArray[np.int64]) -> None:
        if len(rows) and (rows[0] < 0 or rows[-1] >= len(base) or np.any(np.diff(rows) <= 0)):
            raise InvalidArgument(f"subset of '{base.source}': rows must be sorted, distinct and below {len(base)}")
        self._base = base
        self._rows = rows

    @property
    def columns(self) -> tuple[TensorSpec, ...]:
        return self._base.columns

    @property
    def label_spec(self) -> TensorSpec | None:
        return self._base.label_spec

    @property
    def digest(self) -> str:
        return self._base.digest

    @property
    def source(self) -> str:
        return self._base.source

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, size: int) -> Iterator[Batch]:
        pending: list[Batch] = []
        waiting = 0
        start = 0
        for batch in self._base.batches(max(size, 256)):
            low, high = np.searchsorted(self._rows, (start, start + batch.rows))
            picked = self._rows[low:high] - start
            start += batch.rows
            if len(picked):
                labels = None if batch.labels is None else batch.labels[picked]
                inputs = {k: v[picked] for k, v in batch.inputs.items()}
                pending.append(Batch(inputs=inputs, labels=labels, rows=len(picked)))
                waiting += len(picked)
            while waiting >= size:
                whole = concat(pending)
                yield cut(whole, 0, size)
                waiting -= size
                pending = [cut(whole, size, whole.rows)] if waiting else []
            if start > (self._rows[-1] if len(self._rows) else -1):
                break
        if waiting:
            yield concat(pending)


def concat(batches: list[Batch]) -> Batch:
    """Join batches of the same columns.

    Raises:
        InvalidArgument: row shapes differ (ragged data), naming the column.
    """
    if len(batches) == 1:
        return batches[0]
    inputs = {}
    for name in batches[0].inputs:
        shapes = sorted({b.inputs[name].shape[1:] for b in batches})
        if len(shapes) > 1:
            raise InvalidArgument(f"column '{name}': rows of different shapes {shapes} cannot stand in one batch")
        inputs[name] = np.concatenate([b.inputs[name] for b in batches])
    labels = [b.labels for b in batches if b.labels is not None]
    return Batch(inputs=inputs, labels=np.concatenate(labels) if labels else None, rows=sum(b.rows for b in batches))


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """Rows ``start:stop`` of a batch."""
    labels = None if batch.labels is None else batch.labels[start:stop]
    return Batch(inputs={k: v[start:stop] for k, v in batch.inputs.items()}, labels=labels, rows=stop - start)
