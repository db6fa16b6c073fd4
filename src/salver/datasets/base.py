"""What every reader of the `datasets` family builds on: named columns of one length, one of which may be the label."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

import numpy as np

from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.dataset import Batch, Dataset
from salver.core.errors import InvalidArgument, UnknownName
from salver.core.tensors import TensorSpec, to_datatype

LABEL_NAMES: Final = ("label", "labels", "y", "target", "targets", "class")
"""Columns taken as the label when the user names none. ``y_test`` and the like are not guessed."""


class ReaderConfig(Config, frozen=True, kw_only=True):
    """Settings every reader has.

    Args:
        label: the label column; None takes the one column named as in `LABEL_NAMES`, or none.
    """

    label: str | None = None


class Reader(Dataset):
    """A dataset read from one kind of source. Subclasses tell their columns and give them in blocks.

    A reader is constructed as ``Reader(source, config)``; construction reads what is needed to know names, types and
    the number of rows, and raises `InvalidArgument` or `NotFound`. `blocks` may be called many times.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Any]] = ReaderConfig

    def __init__(self, source: str, columns: Mapping[str, TensorSpec], rows: int, label: str | None) -> None:
        if rows == 0:
            raise InvalidArgument(f"'{source}' has zero examples; expected named columns with one row per example")
        self._source = source
        self._rows = rows
        self._label = choose_label(source, columns, label)
        self._label_spec = columns[self._label] if self._label else None
        self._columns = tuple(spec for name, spec in columns.items() if name != self._label)

    @property
    def columns(self) -> tuple[TensorSpec, ...]:
        return self._columns

    @property
    def label_spec(self) -> TensorSpec | None:
        return self._label_spec

    @property
    def source(self) -> str:
        return self._source

    def __len__(self) -> int:
        return self._rows

    @abc.abstractmethod
    def blocks(self, size: int) -> Iterator[dict[str, Array]]:
        """All columns, the label among them, ``size`` rows at a time; the last block may be smaller."""

    def batches(self, size: int) -> Iterator[Batch]:
        check_batch_size(size)
        for block in self.blocks(size):
            labels = block.pop(self._label) if self._label else None
            rows = len(next(iter(block.values()))) if block else len(labels) if labels is not None else 0
            yield Batch(inputs=block, labels=labels, rows=rows)


def check_batch_size(size: int) -> None:
    """Refuse a batch size below 1."""
    if size < 1:
        raise InvalidArgument(f"batch size: got {size}, expected at least 1")


def choose_label(source: str, columns: Mapping[str, TensorSpec], label: str | None) -> str | None:
    """The label column: the one named, else the only one of `LABEL_NAMES`.

    Raises:
        UnknownName: the column named does not exist.
        InvalidArgument: several columns could be the label.
    """
    if label is not None:
        if label not in columns:
            raise UnknownName(f"label column of '{source}'", label, columns)
        return label
    found = [name for name in LABEL_NAMES if name in columns]
    if len(found) > 1:
        names = ", ".join(f"'{n}'" for n in found)
        raise InvalidArgument(f"'{source}': columns {names} could each be the label; name one (label=...)")
    return found[0] if found else None


def column_spec(source: str, name: str, dtype: np.dtype[Any], inner: tuple[int, ...]) -> TensorSpec:
    """The spec of a column whose rows have shape ``inner``.

    Raises:
        InvalidArgument: the dtype has no tensor datatype.
    """
    try:
        return TensorSpec(name=name, datatype=to_datatype(dtype), shape=("batch", *inner))
    except InvalidArgument as error:
        raise InvalidArgument(f"'{source}', column '{name}': {error}") from None


def common_rows(source: str, rows: Mapping[str, int]) -> int:
    """The number of rows that all columns have.

    Raises:
        InvalidArgument: they differ; names two that do.
    """
    if not rows:
        return 0
    first, count = next(iter(rows.items()))
    for name, other in rows.items():
        if other != count:
            raise InvalidArgument(
                f"'{source}': column '{first}' has {count} rows, column '{name}' has {other}; every column needs one "
                "row "
                "per example. Keep one split (train or test) per file"
            )
    return count


def to_carried(source: str, name: str, array: Array, first_row: int = 0) -> Array:
    """An array as Salver carries it: native byte order, text as an ``object`` array of ``str``.

    Raises:
        InvalidArgument: bytes that are not UTF-8, or objects that are not text, naming the row (the first is 1).
    """
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind not in "SO":
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    out = np.empty(array.shape, dtype=object)
    flat = out.reshape(-1)
    per_row = max(1, array.size // max(1, len(array)))
    for i, value in enumerate(array.reshape(-1).tolist()):
        row = first_row + i // per_row + 1
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError:
                raise InvalidArgument(f"'{source}', row {row}, column '{name}': bytes that are not UTF-8") from None
        if not isinstance(value, str):
            raise InvalidArgument(
                f"'{source}', row {row}, column '{name}': got a {type(value).__name__} in an object array, expected "
                "text"
            )
        flat[i] = value
    return out
