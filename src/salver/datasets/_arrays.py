"""Arrays in memory: a dictionary of columns, or ``(inputs, labels)``."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.datasets.base import Reader, ReaderConfig, column_spec, common_rows, to_carried


class ArraysConfig(ReaderConfig, frozen=True, kw_only=True):
    """Nothing but the label."""


class ArraysDataset(Reader):
    """Columns held by the caller; they are neither copied nor changed.

    Args:
        source: column name -> array ``[rows, ...]``; or ``(inputs, labels)`` where inputs is such a dictionary or
        one array,
            which becomes column ``x``; the labels become column ``label``.
        described: what messages and lineage call it.
    """

    name: ClassVar[str] = "arrays"
    Config: ClassVar[type[Any]] = ArraysConfig

    def __init__(self, source: Any, config: ArraysConfig | None = None, described: str = "arrays in memory") -> None:
        config = config or ArraysConfig()
        given, label = _columns(source, config.label, described)
        arrays = {name: np.asarray(value) for name, value in given.items()}
        for name, array in arrays.items():
            if array.ndim == 0:
                raise InvalidArgument(f"'{described}', column '{name}': got a scalar, expected one row per example")
        rows = common_rows(described, {name: len(array) for name, array in arrays.items()})
        self._arrays = {name: to_carried(described, name, array) for name, array in arrays.items()}
        specs = {name: column_spec(described, name, a.dtype, a.shape[1:]) for name, a in self._arrays.items()}
        super().__init__(described, specs, rows, label)

    @functools.cached_property
    def _digest(self) -> str:
        sha = hashlib.sha256()
        for name, array in self._arrays.items():
            sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            if array.dtype == object:
                for value in array.reshape(-1).tolist():
                    data = value.encode()
                    sha.update(f"{len(data)}:".encode() + data)
            else:
                sha.update(np.ascontiguousarray(array).data if array.size else b"")
        return f"sha256:{sha.hexdigest()}"

    @property
    def digest(self) -> str:
        return self._digest

    def blocks(self, size: int) -> Iterator[dict[str, Array]]:
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self._arrays.items()}


def _columns(source: Any, label: str | None, described: str) -> tuple[dict[str, Any], str | None]:
    if isinstance(source, Mapping):
        return dict(source), label
    if isinstance(source, tuple) and len(source) == 2:
        inputs, labels = source
        columns = dict(inputs) if isinstance(inputs, Mapping) else {"x": inputs}
        name = label or "label"
        if name in columns:
            raise InvalidArgument(f"'{described}': the inputs have a column '{name}' and labels were given beside them")
        return ({**columns, name: labels}, name) if labels is not None else (columns, None)
    raise InvalidArgument(
        f"'{described}': got a {type(source).__name__}, expected a dictionary of arrays or a tuple (inputs, labels)"
    )
