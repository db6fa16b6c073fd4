"""Parquet files; the only file that imports pyarrow."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from salver.core.arrays import Array
from salver.core.dataset import Batch, concat, cut
from salver.core.errors import InvalidArgument, MissingExtra
from salver.core.model import digest_file
from salver.core.tensors import TensorSpec
from salver.datasets.base import Reader, ReaderConfig, column_spec
from salver.datasets.typing_rules import object_array

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    raise MissingExtra("reading Parquet", "pyarrow", "parquet") from None


class ParquetConfig(ReaderConfig, frozen=True, kw_only=True):
    """Nothing but the label."""


class ParquetDataset(Reader):
    """One column per field (https://parquet.apache.org/docs/file-format/): numbers, booleans, text, dictionary-encoded
    text, and lists of numbers that have one length. Nulls are NaN in floating-point columns and refused elsewhere."""

    name: ClassVar[str] = "parquet"
    Config: ClassVar[type[Any]] = ParquetConfig

    def __init__(self, source: Path, config: ParquetConfig | None = None) -> None:
        self._path = source
        self._lengths: dict[str, int] = {}
        try:
            with pq.ParquetFile(source) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
                specs = {f.name: self._spec(f, file) for f in schema}
        except (pa.ArrowException, OSError) as error:
            raise InvalidArgument(f"'{source}' is not a Parquet file, or it is damaged: {_line(error)}") from None
        if len(specs) != len(schema):
            raise InvalidArgument(f"'{source}': two columns have the same name; rename one")
        super().__init__(str(source), specs, rows, (config or ParquetConfig()).label)

    @functools.cached_property
    def _digest(self) -> str:
        return digest_file(self._path)

    @property
    def digest(self) -> str:
        return self._digest

    def blocks(self, size: int) -> Iterator[dict[str, Array]]:
        pending: list[Batch] = []
        waiting = 0
        for block in self._read(size):
            pending.append(block)
            waiting += block.rows
            while waiting >= size:
                whole = concat(pending)
                yield cut(whole, 0, size).inputs
                waiting -= size
                pending = [cut(whole, size, whole.rows)] if waiting else []
        if waiting:
            yield concat(pending).inputs

    def _read(self, size: int) -> Iterator[Batch]:
        row = 0
        try:
            with pq.ParquetFile(self._path) as file:
                for record in file.iter_batches(batch_size=size):
                    columns = dict(zip(record.schema.names, record.columns, strict=True))
                    inputs = {name: self._to_numpy(name, column, row) for name, column in columns.items()}
                    yield Batch(inputs=inputs, labels=None, rows=record.num_rows)
                    row += record.num_rows
        except (pa.ArrowException, OSError) as error:
            raise InvalidArgument(f"'{self._path}', after row {row}: cannot be read: {_line(error)}") from None

    def _spec(self, field: Any, file: Any) -> TensorSpec:
        kind = field.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if _is_text(kind):
            return TensorSpec(name=field.name, datatype="BYTES", shape=("batch",))
        inner: tuple[int, ...] = ()
        if _is_list(kind):
            self._lengths[field.name] = length = self._length(field, file)
            inner, kind = (length,), kind.value_type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise InvalidArgument(
                f"'{self._path}', column '{field.name}': got Parquet type {field.type}, expected numbers, booleans, "
                "text or "
                "lists of numbers; convert or drop it"
            )
        return column_spec(str(self._path), field.name, np.dtype(kind.to_pandas_dtype()), inner)

    def _length(self, field: Any, file: Any) -> int:
        if pa.types.is_fixed_size_list(field.type):
            return int(field.type.list_size)
        for record in file.iter_batches(batch_size=1, columns=[field.name]):
            return len(record.column(0)[0].as_py() or [])
        return 0

    def _to_numpy(self, name: str, column: Any, row: int) -> Array:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if column.null_count and not pa.types.is_floating(column.type):
            at = row + int(np.flatnonzero(np.asarray(column.is_null()))[0]) + 1
            raise InvalidArgument(
                f"'{self._path}', row {at}, column '{name}': null; only floating-point columns may have them"
            )
        if _is_text(column.type):
            return object_array(column.to_pylist())
        if not _is_list(column.type):
            return np.array(column.to_numpy(zero_copy_only=False))
        length = self._lengths[name]
        lengths = np.array([len(v) for v in column])
        if np.any(lengths != length):
            at = int(np.flatnonzero(lengths != length)[0])
            raise InvalidArgument(
                f"'{self._path}', row {row + at + 1}, column '{name}': got a list of {lengths[at]}, expected {length} "
                "as in "
                "the first row; pad to one length"
            )
        flat = column.flatten()
        if flat.null_count and not pa.types.is_floating(flat.type):
            raise InvalidArgument(f"'{self._path}', after row {row}, column '{name}': null inside a list")
        return np.array(flat.to_numpy(zero_copy_only=False)).reshape(-1, length)


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
