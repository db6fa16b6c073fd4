"""One ``.npy`` array, memory-mapped."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.model import digest_file
from salver.datasets.base import Reader, ReaderConfig, column_spec, to_carried


class NpyConfig(ReaderConfig, frozen=True, kw_only=True):
    """Nothing but the label, which an ``.npy`` file cannot hold beside its data."""


class NpyDataset(Reader):
    """An array ``[rows, ...]`` as the one column ``x``; pages are read as they are needed.

    Format: NumPy Enhancement Proposal 1 (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html).
    """

    name: ClassVar[str] = "npy"
    Config: ClassVar[type[Any]] = NpyConfig

    def __init__(self, source: Path, config: NpyConfig | None = None) -> None:
        self._path = source
        array = self._map()
        if array.ndim == 0:
            raise InvalidArgument(f"'{source}' holds a scalar; expected one row per example")
        spec = column_spec(str(source), "x", array.dtype, array.shape[1:])
        super().__init__(str(source), {"x": spec}, len(array), (config or NpyConfig()).label)

    def _map(self) -> Array:
        try:
            with self._path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            if dtype.hasobject:
                raise InvalidArgument(_object_message(str(self._path), "x"))
            if 0 in shape:
                return np.empty(shape, dtype)
            mapped: Array = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InvalidArgument(f"'{self._path}' is not a .npy file, or it is truncated: {error}") from None
        return mapped

    @functools.cached_property
    def _digest(self) -> str:
        return digest_file(self._path)

    @property
    def digest(self) -> str:
        return self._digest

    def blocks(self, size: int) -> Iterator[dict[str, Array]]:
        array = self._map()
        for start in range(0, len(self), size):
            yield {"x": to_carried(self.source, "x", np.array(array[start : start + size]), start)}


def _object_message(source: str, column: str) -> str:
    return (
        f"'{source}', column '{column}': an object array is a pickle, and reading one runs code from the file. Save "
        "text "
        "as np.array([...], dtype=str), and rows of different lengths padded to one length"
    )
