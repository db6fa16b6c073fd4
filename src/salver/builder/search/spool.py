"""Examples laid out on disk once, so that every trial process can map them instead of reading the source again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.dataset import Batch, Dataset
from salver.core.errors import InvalidArgument
from salver.core.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy.typing as npt

_WRITE_ROWS: Final = 256


class _Layout(msgspec.Struct, frozen=True):
    columns: tuple[TensorSpec, ...]
    label: TensorSpec | None
    rows: int
    digest: str
    source: str


class SpooledDataset(Dataset):
    """A dataset in a folder of ``.npy`` files, memory-mapped. Strings lie end to end with an index of offsets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._layout = msgspec.json.decode((folder / "layout.json").read_bytes(), type=_Layout)
        names = [*(spec.name for spec in self._layout.columns), *(["label"] if self._layout.label else [])]
        specs = [*self._layout.columns, *([self._layout.label] if self._layout.label else [])]
        self._files = [_Column(folder, i, spec) for i, spec in enumerate(specs)]
        self._names = names

    @property
    def columns(self) -> tuple[TensorSpec, ...]:
        return self._layout.columns

    @property
    def label_spec(self) -> TensorSpec | None:
        return self._layout.label

    @property
    def digest(self) -> str:
        return self._layout.digest

    @property
    def source(self) -> str:
        return self._layout.source

    def __len__(self) -> int:
        return self._layout.rows

    def batches(self, size: int) -> Iterator[Batch]:
        inputs_end = len(self._layout.columns)
        for start in range(0, self._layout.rows, size):
            stop = min(start + size, self._layout.rows)
            arrays = [column.read(start, stop) for column in self._files]
            inputs = dict(zip(self._names[:inputs_end], arrays[:inputs_end], strict=True))
            labels = arrays[inputs_end] if self._layout.label else None
            yield Batch(inputs=inputs, labels=labels, rows=stop - start)


def spool(dataset: Dataset, folder: Path) -> SpooledDataset:
    """Write a dataset below ``folder``, streaming; every row of a column must have the same shape.

    Raises:
        InvalidArgument: a column has rows of different shapes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writers: list[_Writer] | None = None
    label_spec = dataset.label_spec
    for batch in dataset.batches(_WRITE_ROWS):
        arrays = [batch.inputs[spec.name] for spec in dataset.columns]
        if label_spec is not None and batch.labels is not None:
            arrays.append(batch.labels)
        if writers is None:
            names = [spec.name for spec in dataset.columns] + ["label"]
            writers = [_Writer(folder, i, names[i], a, len(dataset)) for i, a in enumerate(arrays)]
        for writer, array in zip(writers, arrays, strict=True):
            writer.write(array)
    for writer in writers or []:
        writer.close()
    layout = _Layout(dataset.columns, label_spec, len(dataset), dataset.digest, dataset.source)
    (folder / "layout.json").write_bytes(msgspec.json.encode(layout))
    return SpooledDataset(folder)


class _Writer:
    """Writes one column, block after block."""

    def __init__(self, folder: Path, number: int, name: str, first: Array, rows: int) -> None:
        self._name = name
        self._row = 0
        self._shape = first.shape[1:]
        self._folder, self._number = folder, number
        self._is_text = first.dtype == object
        if self._is_text:
            self._file = (folder / f"{number}.txt").open("wb")
            self._ends: list[int] = []
            self._end = 0
        else:
            path = folder / f"{number}.npy"
            shape = (rows, *self._shape)
            self._map: Any = np.lib.format.open_memmap(path, mode="w+", dtype=first.dtype, shape=shape)

    def write(self, array: Array) -> None:
        if array.shape[1:] != self._shape:
            raise InvalidArgument(
                f"column '{self._name}': row {self._row} has shape {list(array.shape[1:])}, rows before it "
                f"{list(self._shape)}; pad the examples to one shape"
            )
        if self._is_text:
            for item in array.ravel():
                data = str(item).encode()
                self._file.write(data)
                self._end += len(data)
                self._ends.append(self._end)
        else:
            self._map[self._row : self._row + len(array)] = array
        self._row += len(array)

    def close(self) -> None:
        if self._is_text:
            self._file.close()
            np.save(self._folder / f"{self._number}.ends.npy", np.array(self._ends, np.int64))
            (self._folder / f"{self._number}.shape.json").write_bytes(msgspec.json.encode(self._shape))
        else:
            self._map.flush()


class _Column:
    """Reads rows of one column."""

    def __init__(self, folder: Path, number: int, spec: TensorSpec) -> None:
        self._is_text = spec.datatype == "BYTES"
        self._data: Any = None
        if self._is_text:
            self._text = folder / f"{number}.txt"
            ends: npt.NDArray[np.int64] = np.load(folder / f"{number}.ends.npy")
            self._starts = np.concatenate([np.zeros(1, np.int64), ends])
            self._shape = tuple(msgspec.json.decode((folder / f"{number}.shape.json").read_bytes(), type=list[int]))
        else:
            self._data = np.load(folder / f"{number}.npy", mmap_mode="r")

    def read(self, start: int, stop: int) -> Array:
        if not self._is_text:
            return np.array(self._data[start:stop])
        width = int(np.prod(self._shape, dtype=np.int64))
        bounds = self._starts[start * width : stop * width + 1]
        with self._text.open("rb") as file:
            file.seek(int(bounds[0]))
            raw = file.read(int(bounds[-1] - bounds[0]))
        cuts = (bounds - bounds[0]).tolist()
        texts = [raw[a:b].decode() for a, b in itertools.pairwise(cuts)]
        made = np.empty(len(texts), object)
        made[:] = texts
        return made.reshape(stop - start, *self._shape)
