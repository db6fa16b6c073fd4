"""JSON Lines: one JSON object per line, plain or gzip-compressed."""

from __future__ import annotations

import functools
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.model import digest_file
from salver.core.tensors import NUMPY_DTYPES, TensorSpec
from salver.datasets._csv import open_text
from salver.datasets.base import Reader, ReaderConfig
from salver.datasets.typing_rules import object_array


class JsonlConfig(ReaderConfig, frozen=True, kw_only=True):
    """Nothing but the label."""


class JsonlDataset(Reader):
    """One column per key (https://jsonlines.org). Values are numbers, booleans, text, or nested lists of them that
    have the same shape in every row. Read twice: once for the types of whole columns, then in blocks. ``null`` is
    refused."""

    name: ClassVar[str] = "jsonl"
    Config: ClassVar[type[Any]] = JsonlConfig

    def __init__(self, source: Path, config: JsonlConfig | None = None) -> None:
        self._path = source
        self._specs: dict[str, TensorSpec] = {}
        rows = 0
        for rows, values in enumerate(self._objects(), start=1):
            self._learn(rows, values)
        super().__init__(str(source), self._specs, rows, (config or JsonlConfig()).label)

    @functools.cached_property
    def _digest(self) -> str:
        return digest_file(self._path)

    @property
    def digest(self) -> str:
        return self._digest

    def blocks(self, size: int) -> Iterator[dict[str, Array]]:
        pending: list[dict[str, Any]] = []
        for values in self._objects():
            pending.append(values)
            if len(pending) == size:
                yield self._to_block(pending)
                pending = []
        if pending:
            yield self._to_block(pending)

    def _to_block(self, rows: list[dict[str, Any]]) -> dict[str, Array]:
        block: dict[str, Array] = {}
        for name, spec in self._specs.items():
            values = [row[name] for row in rows]
            if spec.datatype == "BYTES" and len(spec.shape) == 1:
                block[name] = object_array(values)
            else:
                block[name] = np.array(values, dtype=NUMPY_DTYPES[spec.datatype])
        return block

    def _learn(self, row: int, values: dict[str, Any]) -> None:
        if row > 1 and values.keys() != self._specs.keys():
            odd = sorted(values.keys() ^ self._specs.keys())[0]
            what = "is missing" if odd in self._specs else "is not in the first row"
            raise InvalidArgument(f"'{self._path}', row {row}, column '{odd}': {what}; every line needs the same keys")
        for name, value in values.items():
            shape, datatype = self._describe(row, name, value)
            known = self._specs.get(name)
            if known is not None:
                if known.shape[1:] != shape:
                    raise InvalidArgument(
                        f"'{self._path}', row {row}, column '{name}': got a value of shape {list(shape)}, rows before "
                        "it "
                        f"have {list(known.shape[1:])}; pad to one shape"
                    )
                datatype = self._join(row, name, known.datatype, datatype)
                if datatype == known.datatype:
                    continue
            self._specs[name] = TensorSpec(name=name, datatype=datatype, shape=("batch", *shape))

    def _join(self, row: int, name: str, known: str, given: str) -> str:
        if known != given and {known, given} != {"INT64", "FP64"}:
            raise InvalidArgument(
                f"'{self._path}', row {row}, column '{name}': got {_WORDS[given]}, rows before it have {_WORDS[known]}"
            )
        return known if known == given else "FP64"

    def _describe(self, row: int, name: str, value: Any) -> tuple[tuple[int, ...], str]:
        if isinstance(value, list):
            inner = [self._describe(row, name, v) for v in value]
            if not inner or any(shape != inner[0][0] for shape, _ in inner):
                raise InvalidArgument(
                    f"'{self._path}', row {row}, column '{name}': got an empty or ragged list; pad it"
                )
            datatype = inner[0][1]
            for _, other in inner[1:]:
                datatype = self._join(row, name, datatype, other)
            return (len(value), *inner[0][0]), datatype
        for kind, datatype in ((bool, "BOOL"), (float, "FP64"), (str, "BYTES")):
            if isinstance(value, kind):
                return (), datatype
        if isinstance(value, int):
            return (), "INT64" if -(2**63) <= value < 2**63 else "FP64"
        what = "null" if value is None else f"a {type(value).__name__}"
        raise InvalidArgument(
            f"'{self._path}', row {row}, column '{name}': got {what}, expected a number, text or a list"
        )

    def _objects(self) -> Iterator[dict[str, Any]]:
        decoder = msgspec.json.Decoder(dict[str, Any])
        row = 0
        try:
            with open_text(self._path) as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    row += 1
                    try:
                        values = decoder.decode(line)
                    except msgspec.DecodeError as error:
                        raise InvalidArgument(f"'{self._path}', row {row} (line {number}): {error}") from None
                    yield values
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"'{self._path}', after row {row}: not UTF-8 ({error.reason}); save it as UTF-8"
            ) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InvalidArgument(f"'{self._path}', after row {row}: damaged or truncated gzip: {error}") from None


_WORDS = {"BOOL": "a boolean", "INT64": "an integer", "FP64": "a number", "BYTES": "text"}
