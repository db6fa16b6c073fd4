"""Examples as clients send them -> the same examples as the graph takes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from salver.core.dataset import Batch, Dataset, Subset
from salver.core.errors import InvalidArgument
from salver.core.tensors import Signature, TensorSpec
from salver.datasets import bind, open_dataset
from salver.processing.pipeline import Pipeline

_ROWS: Final = 64


class ProcessedDataset(Dataset):
    """What the steps before a graph make of examples; texts are filled up to the longest of all.

    Args:
        base: examples bound to what clients send.
        pipeline: steps that nothing else uses, for their lengths are fixed here.
        inner: the graph's signature.
    """

    def __init__(self, base: Dataset, pipeline: Pipeline, inner: Signature) -> None:
        self._base = base
        self._pipeline = pipeline
        self._inner = inner
        is_open = any(isinstance(dim, str) for spec in inner.inputs for dim in spec.shape[1:])
        self._sizes = self._measure() if is_open else {}
        pipeline.pad_to(self._sizes)

    @property
    def columns(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name=s.name, datatype=s.datatype, shape=("batch", *(self._sizes.get(d, d) for d in s.shape[1:])))
            for s in self._inner.inputs
        )

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
        return len(self._base)

    def batches(self, size: int) -> Iterator[Batch]:
        first = 1
        for batch in self._base.batches(size):
            try:
                inputs, _ = self._pipeline.run_before(batch.inputs)
            except InvalidArgument as error:
                last = first + batch.rows - 1
                raise error.reworded(f"'{self.source}', examples {first} to {last}: {error.message}") from None
            first += batch.rows
            yield Batch(inputs=inputs, labels=batch.labels, rows=batch.rows)

    def _measure(self) -> dict[Any, int]:
        """The largest size of each dimension that the graph leaves open."""
        sizes: dict[Any, int] = {}
        for batch in self.batches(_ROWS):
            for spec in self._inner.inputs:
                for dim, size in zip(spec.shape[1:], batch.inputs[spec.name].shape[1:], strict=True):
                    if isinstance(dim, str):
                        sizes[dim] = max(size, sizes.get(dim, 0))
        return sizes


def open_examples(source: Any, *, files: bool, label: str | None = None) -> Dataset:
    """Open examples of what clients send.

    Args:
        source, label: as `open_dataset`.
        files: whether images are sent as files, so that a folder of them is read as it is.

    Raises:
        SalverError: as `open_dataset`.
    """
    if files and isinstance(source, str | Path) and Path(source).is_dir():
        return open_dataset(source, label=label, mode="file")
    return open_dataset(source, label=label)


def process(examples: Dataset, pipeline: Pipeline, inner: Signature, most: int) -> Dataset:
    """Examples as the graph takes them, ``most`` of them, evenly spread; see `ProcessedDataset`.

    Raises:
        InvalidArgument: the examples do not fit what clients send, or a step refuses one.
    """
    bound: Dataset = bind(examples, pipeline.signature)
    if len(bound) > most:
        bound = Subset(bound, np.arange(most, dtype=np.int64) * len(bound) // most)
    return ProcessedDataset(bound, pipeline, inner)
