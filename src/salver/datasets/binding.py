"""Map the columns of a dataset to the inputs of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.dataset import Batch, Dataset
from salver.core.errors import InvalidArgument, format_shape
from salver.core.tensors import Signature, TensorSpec
from salver.datasets.base import check_batch_size
from salver.datasets.casting import can_cast, cast_values


class _Feed(msgspec.Struct, frozen=True):
    """How one input is filled: from one column, or from many scalar columns side by side."""

    spec: TensorSpec
    columns: tuple[TensorSpec, ...]
    inner: tuple[int, ...]


class BoundDataset(Dataset):
    """A dataset whose columns are a model's inputs, by name, in datatype and shape."""

    def __init__(self, base: Dataset, feeds: Sequence[_Feed]) -> None:
        self._base = base
        self._feeds = tuple(feeds)

    @property
    def columns(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name=f.spec.name, datatype=f.spec.datatype, shape=("batch", *f.inner)) for f in self._feeds
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
        check_batch_size(size)
        row = 0
        for batch in self._base.batches(size):
            inputs = {f.spec.name: self._fill(f, batch, row) for f in self._feeds}
            yield Batch(inputs=inputs, labels=batch.labels, rows=batch.rows)
            row += batch.rows

    def _fill(self, feed: _Feed, batch: Batch, row: int) -> Array:
        parts = []
        for column in feed.columns:
            what = f"'{self.source}', column '{column.name}'"
            parts.append(cast_values(batch.inputs[column.name], column.datatype, feed.spec.datatype, what, row))
        whole = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
        return whole.reshape(batch.rows, *feed.inner)


def bind(dataset: Dataset, signature: Signature) -> BoundDataset:
    """Map columns to inputs.

    By name; else the only column to the only input; else, for the only input ``[batch, n]``, n scalar columns of
    numbers in their order. A column ``[batch]`` may stand for ``[batch, 1]`` and the reverse; no other layout is
    guessed. Where the inputs share no first dimension, a row may also be a whole input. Values are cast only if they
    stay the same (floating-point ones may be rounded to a narrower floating-point type). Columns that no input wants
    are left out where inputs were found by name.

    Raises:
        InvalidArgument: names, datatypes or shapes that do not fit; zero examples; a model whose batch is fixed at a
            size that does not divide the number of examples. Values that cannot be cast are found while reading.
    """
    if isinstance(dataset, BoundDataset):
        dataset = dataset._base
    if len(dataset) == 0:
        raise InvalidArgument(f"'{dataset.source}' has zero examples; expected at least one")
    feeds = _match(dataset, signature)
    _check_symbols(dataset, feeds)
    _check_fixed_batch(dataset, feeds)
    return BoundDataset(dataset, feeds)


def _match(dataset: Dataset, signature: Signature) -> list[_Feed]:
    columns = {spec.name: spec for spec in dataset.columns}
    if all(spec.name in columns for spec in signature.inputs):
        alone = _share_no_leading(signature)
        return [_feed(dataset, spec, columns[spec.name], alone) for spec in signature.inputs]
    if len(signature.inputs) == 1:
        (spec,) = signature.inputs
        if len(columns) == 1:
            return [_feed(dataset, spec, next(iter(columns.values())), not spec.shape)]
        width = spec.shape[1] if len(spec.shape) == 2 else None
        scalars = all(len(c.shape) == 1 and can_cast(c.datatype, spec.datatype) for c in columns.values())
        if scalars and columns and (width == len(columns) or isinstance(width, str)):
            return [_Feed(spec, tuple(columns.values()), (len(columns),))]
    missing = ", ".join(f"'{s.name}'" for s in signature.inputs if s.name not in columns)
    raise InvalidArgument(
        f"'{dataset.source}' does not fit the model: no column for input {missing}. It has "
        f"{_listing(dataset.columns)}; the "
        f"model wants {_listing(signature.inputs)}. Rename the columns to the input names, or leave only as many as "
        "the "
        "model has features"
    )


def _feed(dataset: Dataset, spec: TensorSpec, column: TensorSpec, alone: bool) -> _Feed:
    where = f"input '{spec.name}', column '{column.name}' of '{dataset.source}'"
    if not can_cast(column.datatype, spec.datatype):
        raise InvalidArgument(f"{where}: got datatype {column.datatype}, expected {spec.datatype}; convert the column")
    given = column.shape[1:]
    if not spec.rank_known:
        return _Feed(spec, (column,), _sizes(given))
    whole = _is_one_example(spec, column) or (alone and len(column.shape) == len(spec.shape) + 1)
    expected = spec.shape if whole else spec.shape[1:]
    if not given and len(expected) == 1 and (expected[0] == 1 or isinstance(expected[0], str)):
        return _Feed(spec, (column,), (1,))
    if given == (1,) and not expected:
        return _Feed(spec, (column,), ())
    fits = len(given) == len(expected) and all(
        isinstance(e, str) or g == e for g, e in zip(given, expected, strict=True)
    )
    if not fits:
        raise InvalidArgument(
            f"{where}: got shape {format_shape(column.shape)}, expected {format_shape(spec.shape)}; reshape or "
            "transpose the "
            "data (a layout is never guessed)"
        )
    return _Feed(spec, (column,), _sizes(given))


def takes_single_examples(dataset: Dataset, signature: Signature) -> bool:
    """Whether a whole row of the dataset is one run of the model: its inputs have no dimension for more than one
    example, as a column with just one dimension more than each tells."""
    columns = {spec.name: spec for spec in dataset.columns}
    if len(signature.inputs) == len(columns) == 1:
        columns = {signature.inputs[0].name: dataset.columns[0]}
    return all(
        s.name in columns and s.rank_known and s.shape and _is_one_example(s, columns[s.name]) for s in signature.inputs
    )


def _share_no_leading(signature: Signature) -> bool:
    """Whether the inputs' first dimensions differ, or one has none: the model then takes one example at a time."""
    first = {s.shape[0] if s.shape else None for s in signature.inputs if s.rank_known}
    return len(first) > 1 or None in first


def _is_one_example(spec: TensorSpec, column: TensorSpec) -> bool:
    """Whether the input takes one example and has no dimension for more: a column has just one dimension more."""
    leading = spec.shape[0] if spec.shape else None
    return isinstance(leading, int) and leading > 1 and len(column.shape) == len(spec.shape) + 1


def _sizes(shape: Sequence[int | str]) -> tuple[int, ...]:
    return tuple(d for d in shape if isinstance(d, int))


def _check_symbols(dataset: Dataset, feeds: list[_Feed]) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for feed in feeds:
        if not feed.spec.rank_known:
            continue
        for size, dim in zip(feed.inner, feed.spec.shape[-len(feed.inner) :] if feed.inner else (), strict=True):
            if isinstance(dim, int) or dim.startswith("?"):
                continue
            known, by = sizes.setdefault(dim, (size, feed.spec.name))
            if known != size:
                raise InvalidArgument(
                    f"'{dataset.source}': dimension '{dim}' is {known} in input '{by}' and {size} in input "
                    f"'{feed.spec.name}'; the model wants one size"
                )


def _check_fixed_batch(dataset: Dataset, feeds: list[_Feed]) -> None:
    fixed = {f.spec.shape[0] for f in feeds if f.spec.shape and len(f.inner) < len(f.spec.shape)}
    for size in fixed:
        if isinstance(size, int) and (size == 0 or len(dataset) % size):
            raise InvalidArgument(
                f"the model's batch dimension is fixed at {size} and '{dataset.source}' has {len(dataset)} examples, "
                "which "
                f"is no multiple of it; give a multiple of {size} examples, or export the model with a dynamic batch"
            )


def _listing(specs: Sequence[TensorSpec]) -> str:
    shown = ", ".join(f"'{s.name}' {s.datatype} {format_shape(s.shape)}" for s in specs[:8])
    return f"{shown}, ... ({len(specs)} in all)" if len(specs) > 8 else shown or "no columns besides the label"
