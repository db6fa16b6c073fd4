"""Columns of a table to the numbers that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.errors import InvalidArgument
from salver.core.tensors import TensorSpec
from salver.processing.base import FLOATS, ProcessingStep, Read, find, row_name

_TARGETS: Final = ("INT32", "INT64", *FLOATS)
_SHOWN: Final = 10


class Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One column.

    Args:
        name: what clients send it as.
        kind: ``number``, or one of a fixed set of ``values``.
        missing: what stands for a missing value (NaN, or an empty text); without it such rows are refused.
        mean, scale: a number becomes ``(number - mean) / scale``.
        values: of a category: texts, or whole numbers.
        encode: a category as one column per value, or as the index of its value.
        unknown: what happens to other values: ``refuse``; ``zeros`` in all columns, with ``index`` -1.
    """

    name: str
    kind: Literal["number", "category"] = "number"
    missing: float | str | None = None
    mean: float = 0.0
    scale: float = 1.0
    values: tuple[str | int, ...] = ()
    encode: Literal["onehot", "index"] = "onehot"
    unknown: Literal["refuse", "zeros"] = "refuse"


class TabularConfig(Config, frozen=True, kw_only=True):
    """Which columns make the model's input, in which order.

    Args:
        columns: side by side in this order.
        output: the model's input ``[batch, width]``; empty for its only one.
    """

    columns: tuple[Column, ...]
    output: str = ""


class TabularStep(ProcessingStep):
    """One matrix of numbers from columns of numbers, texts and whole numbers, each sent under its own name."""

    name = "tabular"
    Config: ClassVar[type[Any]] = TabularConfig

    def __init__(self, config: TabularConfig, read: Read) -> None:
        self._config = config
        self._encoders = [_Encoder(column) for column in config.columns]
        names = self.consumes
        if not names or len(set(names)) != len(names):
            raise InvalidArgument("columns: expected one or more, of different names")
        self._spec: TensorSpec

    @property
    def consumes(self) -> tuple[str, ...]:
        return tuple(column.name for column in self._config.columns)

    def raw(self, name: str, batch: int | str) -> TensorSpec:
        encoder = next(e for e in self._encoders if e.column.name == name)
        return TensorSpec(name=name, datatype=encoder.datatype, shape=(batch,))

    def bind(self, given: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
        name = self._config.output or (next(iter(wanted)) if len(wanted) == 1 else "")
        if name not in wanted:
            raise InvalidArgument(f"output: say which of the model's inputs the columns make: {', '.join(wanted)}")
        target = find(wanted, name, _TARGETS, (2,))
        for encoder in self._encoders:
            find(given, encoder.column.name, (encoder.datatype,), (1,))
        width = sum(encoder.width for encoder in self._encoders)
        batch = given[self.consumes[0]].shape[0]
        self._spec = TensorSpec(name=name, datatype=target.datatype, shape=(batch, width))
        return (self._spec,)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        parts = [encoder.encode(arrays[encoder.column.name]) for encoder in self._encoders]
        return {self._spec.name: np.concatenate(parts, axis=1).astype(self._spec.dtype)}


class _Encoder:
    """Turns one column into the columns that a model sees."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.width = 1
        self.datatype = "FP64"
        self._index: dict[Any, int] = {}
        if column.kind == "number":
            if column.scale == 0.0 or isinstance(column.missing, str):
                raise InvalidArgument(f"column '{column.name}': scale is a number but 0, and missing a number")
            return
        if not column.values or len(set(column.values)) != len(column.values):
            raise InvalidArgument(f"column '{column.name}': a category needs its values, each once")
        kinds = {type(value) for value in column.values}
        if len(kinds) != 1:
            raise InvalidArgument(f"column '{column.name}': its values are texts and numbers, expected one kind")
        self.datatype = "INT64" if kinds == {int} else "BYTES"
        self._index = {value: i for i, value in enumerate(column.values)}
        if column.missing is not None and column.missing not in self._index:
            raise InvalidArgument(f"column '{column.name}': missing is '{column.missing}', which is none of its values")
        self.width = len(column.values) if column.encode == "onehot" else 1

    def encode(self, array: Array) -> Array:
        """Numbers ``[rows, width]``."""
        return self._numbers(array) if self.column.kind == "number" else self._categories(array)

    def _numbers(self, array: Array) -> Array:
        column = self.column
        missing = np.isnan(array)
        if missing.any():
            if column.missing is None:
                where = row_name(column.name, int(np.argmax(missing)), len(array))
                raise InvalidArgument(f"{where}: the number is missing, and nothing stands for a missing one")
            array = np.where(missing, column.missing, array)
        return np.asarray((array - column.mean) / column.scale)[:, None]

    def _categories(self, array: Array) -> Array:
        column = self.column
        indices = np.empty(len(array), np.int64)
        for row, value in enumerate(array.tolist()):
            if value == "" and column.missing is not None:
                value = column.missing
            found = self._index.get(value, -1)
            if found < 0 and column.unknown == "refuse":
                known = ", ".join(str(v) for v in column.values[:_SHOWN])
                more = ", ..." if len(column.values) > _SHOWN else ""
                raise InvalidArgument(
                    f"{row_name(column.name, row, len(array))}: got {str(value)[: _SHOWN * 4]!r}, expected one of "
                    f"{known}{more}"
                )
            indices[row] = found
        if column.encode == "index":
            return indices[:, None].astype(np.float64)
        return np.asarray(indices[:, None] == np.arange(self.width), np.float64)
