"""Tables as data scientists send them: a pandas data frame split, in records or as CSV, to rows for `to_inputs`."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from salver.core.errors import InvalidArgument
from salver.core.tensors import Signature, TensorSpec
from salver.wire.elements import JSON_KINDS

_TRUTHS: Final = {"true": True, "1": True, "false": False, "0": False}


class Frame(msgspec.Struct, frozen=True):
    """A table.

    Args:
        columns: names.
        rows: cells, a list for each row, as long as ``columns``.
        is_text: whether the cells are text to be read, as in CSV.
    """

    columns: tuple[str, ...]
    rows: list[list[Any]]
    is_text: bool = False


class SplitTable(msgspec.Struct, forbid_unknown_fields=True):
    """``DataFrame.to_dict(orient="split")``; the index has no meaning for a model."""

    data: list[list[Any]]
    columns: list[str | int | float | bool] | None = None
    index: list[Any] | None = None


def read_split(table: SplitTable) -> Frame:
    """A frame that was split.

    Raises:
        InvalidArgument: a row has more or fewer cells than there are columns, or a column comes twice.
    """
    width = len(table.data[0]) if table.data else 0
    names = [str(name) for name in (range(width) if table.columns is None else table.columns)]
    return _frame(names, table.data, "dataframe_split: row")


def read_records(records: Sequence[dict[str, Any]]) -> Frame:
    """A frame of records.

    Raises:
        InvalidArgument: a record has other columns than the first.
    """
    names = list(records[0]) if records else []
    for index, record in enumerate(records):
        if record.keys() != records[0].keys():
            raise InvalidArgument(
                f"dataframe_records: record {index} has the columns {_listed(record)}, the first has {_listed(names)}"
            )
    return _frame(names, [[record[name] for name in names] for record in records], "dataframe_records: record")


def read_csv(body: bytes) -> Frame:
    """CSV with a line of column names (RFC 4180).

    Raises:
        InvalidArgument: not UTF-8, not CSV, no line of names, or a line with more or fewer cells.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"CSV: not UTF-8: byte 0x{body[error.start]:02x} at position {error.start}") from None
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except csv.Error as error:
        raise InvalidArgument(f"CSV: {error}") from None
    if not lines:
        raise InvalidArgument("CSV: got nothing, expected a line of column names and a line for each row")
    return msgspec.structs.replace(_frame(lines[0], lines[1:], "CSV: row"), is_text=True)


def _frame(names: list[str], rows: list[list[Any]], where: str) -> Frame:
    [(name, count)] = Counter(names).most_common(1) or [("", 0)]
    if count > 1:
        raise InvalidArgument(f"column '{name}' comes {count} times")
    for index, row in enumerate(rows):
        if len(row) != len(names):
            raise InvalidArgument(f"{where} {index} has {len(row)} cells, expected {len(names)}")
    return Frame(tuple(names), rows)


def to_instances(frame: Frame, signature: Signature) -> list[Any]:
    """The rows of a frame as instances.

    A model with several inputs takes the column of each input's name, and leaves further columns aside. A model with
    one input takes all columns, in order, as one row; one column of the input's own name is the row itself.

    Raises:
        InvalidArgument: a column is missing, or a text is not of the input's datatype.
    """
    places = {name: index for index, name in enumerate(frame.columns)}
    specs = signature.inputs
    if len(specs) == 1 and frame.columns != (specs[0].name,):
        return [
            [_read_cell(cell, specs[0], frame.is_text, index) for cell in row] for index, row in enumerate(frame.rows)
        ]
    missing = [spec.name for spec in specs if spec.name not in places]
    if missing:
        raise InvalidArgument(f"missing column {_listed(missing)}; got {_listed(frame.columns)}")
    return [
        {spec.name: _read_cell(row[places[spec.name]], spec, frame.is_text, index) for spec in specs}
        for index, row in enumerate(frame.rows)
    ]


def _read_cell(cell: Any, spec: TensorSpec, is_text: bool, index: int) -> Any:
    """A cell as a value of the input. A missing number of a float column is NaN, as in pandas."""
    kind = JSON_KINDS[spec.datatype]
    if not is_text:
        return math.nan if cell is None and kind is float else cell
    if kind is str:
        return cell
    text = cell.strip()
    try:
        if kind is bool:
            return _TRUTHS[text.lower()]
        return float(text or "nan") if kind is float else int(text)
    except (KeyError, ValueError):
        raise InvalidArgument(f"CSV: row {index}, input '{spec.name}': {cell!r} is no {spec.datatype}") from None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
