"""CSV files with a header line, plain or gzip-compressed."""

from __future__ import annotations

import csv
import functools
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.model import digest_file
from salver.core.tensors import TensorSpec
from salver.datasets.base import Reader, ReaderConfig
from salver.datasets.typing_rules import text_array, text_datatype, widest


class CsvConfig(ReaderConfig, frozen=True, kw_only=True):
    """How the file is written.

    Args:
        delimiter: the one character between cells.
    """

    delimiter: str = ","


class CsvDataset(Reader):
    """One column per header cell, as RFC 4180 writes them, UTF-8.

    The file is read twice: once for the types of whole columns (INT64, else FP64, else text), then in blocks. An
    empty cell in a column of numbers is NaN.
    """

    name: ClassVar[str] = "csv"
    Config: ClassVar[type[Any]] = CsvConfig

    def __init__(self, source: Path, config: CsvConfig | None = None) -> None:
        self._path = source
        self._config = config or CsvConfig()
        if len(self._config.delimiter) != 1:
            raise InvalidArgument(f"delimiter: got {self._config.delimiter!r}, expected one character")
        self._types, rows = self._infer()
        specs = {n: TensorSpec(name=n, datatype=t, shape=("batch",)) for n, t in self._types.items()}
        super().__init__(str(source), specs, rows, self._config.label)
        self._refuse_missing_labels()

    @functools.cached_property
    def _digest(self) -> str:
        return digest_file(self._path)

    @property
    def digest(self) -> str:
        return self._digest

    def blocks(self, size: int) -> Iterator[dict[str, Array]]:
        pending: list[list[str]] = []
        for cells in self._records():
            pending.append(cells)
            if len(pending) == size:
                yield self._to_block(pending)
                pending = []
        if pending:
            yield self._to_block(pending)

    def _to_block(self, rows: list[list[str]]) -> dict[str, Array]:
        columns = zip(*rows, strict=True)
        return {n: text_array(list(c), t) for (n, t), c in zip(self._types.items(), columns, strict=True)}

    def _infer(self) -> tuple[dict[str, str], int]:
        header: list[str] = []
        types: list[str | None] = []
        empty_only: list[bool] = []
        rows = 0
        for cells in self._records(header):
            if not rows:
                types, empty_only = [None] * len(header), [True] * len(header)
            rows += 1
            for i, cell in enumerate(cells):
                if types[i] != "BYTES":
                    types[i] = widest(types[i], text_datatype(cell))
                empty_only[i] = empty_only[i] and not cell
        found = {n: "BYTES" if e or t is None else t for n, t, e in zip(header, types, empty_only, strict=False)}
        return found, rows

    def _records(self, header: list[str] | None = None) -> Iterator[list[str]]:
        """Cells of each record after the header, which is written into the list given."""
        row = 0
        try:
            with open_text(self._path) as file:
                reader = csv.reader(file, delimiter=self._config.delimiter, strict=True)
                names = self._check_header(next(reader, []))
                if header is not None:
                    header.extend(names)
                for cells in reader:
                    if not cells and len(names) != 1:  # a blank line, as editors leave at the end
                        continue
                    row += 1
                    if len(cells) != len(names) and not (len(names) == 1 and not cells):
                        at = names[min(len(cells), len(names) - 1)]
                        raise InvalidArgument(
                            f"'{self._path}', row {row} (line {reader.line_num}), column '{at}': got {len(cells)} "
                            "cells, "
                            f"expected {len(names)}, one per name in the header"
                        )
                    yield cells or [""]
        except csv.Error as error:
            raise InvalidArgument(f"'{self._path}', row {row + 1}: {error}") from None
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"'{self._path}', after row {row}: not UTF-8 ({error.reason}); save it as UTF-8"
            ) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InvalidArgument(f"'{self._path}', after row {row}: damaged or truncated gzip: {error}") from None

    def _check_header(self, names: list[str]) -> list[str]:
        if not names:
            raise InvalidArgument(f"'{self._path}' is empty; expected a header line with the column names")
        for name in names:
            if not name or names.count(name) > 1:
                what = f"column '{name}' stands twice" if name else "a column has no name"
                raise InvalidArgument(f"'{self._path}', header: {what}; expected distinct names")
        return names

    def _refuse_missing_labels(self) -> None:
        spec = self.label_spec
        if spec is None or spec.datatype == "INT64":
            return
        index = list(self._types).index(spec.name)
        for row, cells in enumerate(self._records(), start=1):
            if not cells[index].strip():
                raise InvalidArgument(f"'{self._path}', row {row}, column '{spec.name}': the label is missing")


def open_text(path: Path) -> IO[str]:
    """Open a UTF-8 text file, decompressing it when its name ends in ``.gz``."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open("r", encoding="utf-8-sig", newline="")
