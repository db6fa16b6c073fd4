"""What inputs a scikit-learn model needs, and examples of them; imports nothing of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import FailedPrecondition, InvalidArgument

try:
    import pandas as pd
except ImportError:
    pd = None

_TEXT_COLUMN: Final = "text"
_MATRIX: Final = "x"
ROWS: Final = 32
"""Of the examples that are made up."""
_WORDS: Final = ("good", "bad", "a", "the", "film", "was", "not", "very", "It", "is", "great", "awful")


class Column(msgspec.Struct, frozen=True):
    """One input.

    Args:
        name: input name.
        datatype: ``FP32`` or ``FP64`` for numbers, ``INT64``, or ``BYTES``.
        inner: the shape of a row: ``(n,)`` of a matrix, ``(1,)`` of a column, ``()`` of a text.
        role: ``matrix``, ``column`` of a table, or ``text``.
    """

    name: str
    datatype: str
    inner: tuple[int, ...]
    role: str

    def with_number(self, datatype: str) -> Column:
        """The same input with its floating-point numbers in another precision."""
        return msgspec.structs.replace(self, datatype=datatype) if self.datatype in ("FP32", "FP64") else self


def plan_inputs(estimator: Any, data: Dataset | None) -> list[Column]:
    """The inputs of a fitted model.

    A text model takes ``text``, one string per row. A pipeline that begins with a `ColumnTransformer` on named
    columns takes one input ``[batch, 1]`` per column that is used. Everything else takes one matrix ``x`` of
    ``n_features_in_`` numbers.

    Raises:
        InvalidArgument: the data's columns stand in another order than the features the model was fitted on.
        FailedPrecondition: the number of features is not known.
    """
    first = _first(estimator)
    if _takes_text(estimator):
        return [Column(_TEXT_COLUMN, "BYTES", (), "text")]
    names = [str(n) for n in getattr(estimator, "feature_names_in_", getattr(first, "feature_names_in_", ()))]
    if hasattr(first, "transformers_"):
        return _plan_table(first, names, data)
    width = getattr(estimator, "n_features_in_", getattr(first, "n_features_in_", None))
    if width is None:
        raise FailedPrecondition(
            f"{type(first).__name__} does not say how many features it was fitted on (n_features_in_)"
        )
    if names and data is not None:
        _check_order(names, data)
    return [Column(_MATRIX, "FP32", (int(width),), "matrix")]


def _first(estimator: Any) -> Any:
    while hasattr(estimator, "steps"):
        estimator = next((step for _, step in estimator.steps if step not in (None, "passthrough")), None)
    return estimator


def _takes_text(part: Any) -> bool:
    """Whether it begins with a vectorizer; functions before it turn texts into texts."""
    if hasattr(part, "steps"):
        steps = [step for _, step in part.steps if step not in (None, "passthrough")]
        return _takes_text(next((step for step in steps if not hasattr(step, "inverse_func")), None))
    parts = [each for _, each in getattr(part, "transformer_list", [])]
    if parts:
        return all(_takes_text(each) for each in parts)
    return hasattr(part, "build_analyzer")


def _plan_table(transformer: Any, names: list[str], data: Dataset | None) -> list[Column]:
    given = {c.name: c for c in data.columns} if data is not None else {}
    strings = _string_columns(transformer)
    used = _used_columns(transformer)
    if not names:
        if strings:
            raise FailedPrecondition(
                "this ColumnTransformer was fitted on an array that mixes text and numbers; fit it on a table "
                "with named columns"
            )
        return [Column(_MATRIX, "FP32", (int(transformer.n_features_in_),), "matrix")]
    columns = []
    for i, name in enumerate(names):
        if i not in used:
            continue
        is_text = i in strings or (name in given and given[name].datatype == "BYTES")
        columns.append(Column(name, "BYTES" if is_text else "FP32", (1,), "column"))
    return columns


def _used_columns(transformer: Any) -> set[int]:
    """Numbers of the columns that reach some step."""
    used: set[int] = set()
    for _, part, columns in transformer.transformers_:
        if isinstance(part, str) and part == "drop":
            continue
        used.update(_indices(transformer, columns))
    return used


def _string_columns(transformer: Any) -> set[int]:
    """Numbers of the columns that hold text: those an encoder learned text categories of, and those a vectorizer
    reads."""
    found: set[int] = set()
    for _, part, columns in transformer.transformers_:
        indices = _indices(transformer, columns)
        first = _first(part) if not isinstance(part, str) else None
        if first is None:
            continue
        if _takes_text(part):
            found.update(indices)
        for index, categories in zip(indices, getattr(first, "categories_", ()), strict=False):
            if np.asarray(categories).dtype.kind in "OUS":
                found.add(index)
        for index, value in zip(indices, getattr(first, "statistics_", ()), strict=False):
            if isinstance(value, str):
                found.add(index)
    return found


def _indices(transformer: Any, columns: Any) -> list[int]:
    names = [str(n) for n in getattr(transformer, "feature_names_in_", ())]
    total = int(transformer.n_features_in_)
    if isinstance(columns, slice):
        return list(range(total))[columns]
    wanted = np.atleast_1d(np.asarray(columns, dtype=object)).tolist()
    if wanted and all(isinstance(c, bool | np.bool_) for c in wanted):
        return [i for i, keep in enumerate(wanted) if keep]
    return [names.index(c) if isinstance(c, str) else int(c) % total for c in wanted]


def _check_order(names: list[str], data: Dataset) -> None:
    given = [c.name for c in data.columns]
    if sorted(given) == sorted(names) and given != names:
        at = next(i for i, (a, b) in enumerate(zip(given, names, strict=True)) if a != b)
        raise InvalidArgument(
            f"'{data.source}': column {at + 1} is '{given[at]}', the model was fitted with '{names[at]}' there; put "
            "the columns "
            "in the model's order"
        )


def to_frame(estimator: Any, columns: list[Column], inputs: Mapping[str, Array]) -> Any:
    """Inputs by name as what the estimator takes: a matrix, a list of texts, or a table with its column names.

    Raises:
        FailedPrecondition: a table is needed and pandas is not installed.
    """
    first = columns[0]
    if first.role == "text":
        return inputs[first.name].reshape(-1).tolist()
    step = _first(estimator)
    names = [str(n) for n in getattr(estimator, "feature_names_in_", getattr(step, "feature_names_in_", ()))]
    if first.role == "matrix":
        return inputs[first.name] if not names else _table()(inputs[first.name], columns=names)
    rows = len(inputs[first.name])
    known = {c.name: inputs[c.name].reshape(-1) for c in columns}
    # A column that every step drops must still be there; nothing reads it.
    return _table()({name: known.get(name, np.zeros(rows)) for name in names})


def _table() -> Any:
    if pd is None:
        raise FailedPrecondition(
            "the model was fitted on a table with named columns, and comparing it needs pandas: pip install pandas"
        )
    return pd.DataFrame


def synthetic(estimator: Any, columns: list[Column]) -> dict[str, Array]:
    """Examples from a fixed seed, `ROWS` of them: words the model knows, categories it learned, numbers at the
    scale it was fitted on."""
    random = np.random.default_rng(0)
    first = _first(estimator)
    inputs: dict[str, Array] = {}
    for column in columns:
        if column.role == "text":
            inputs[column.name] = _texts(first, random)
        elif column.role == "matrix":
            center, scale = getattr(first, "mean_", None), getattr(first, "scale_", None)
            made = random.standard_normal((ROWS, *column.inner))
            made = made if scale is None else made * scale
            inputs[column.name] = made if center is None else made + center
        else:
            inputs[column.name] = _values(first, column, random).reshape(ROWS, 1)
    return inputs


def _objects(values: list[Any]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _texts(first: Any, random: np.random.Generator) -> Array:
    parts = [part for _, part in getattr(first, "transformer_list", [])]
    vocabulary = getattr(_first(parts[0]) if parts else first, "vocabulary_", None)
    words = sorted(vocabulary)[:2000] if vocabulary else list(_WORDS)
    return _objects([" ".join(random.choice(words, random.integers(1, 12)).tolist()) for _ in range(ROWS)])


def _values(transformer: Any, column: Column, random: np.random.Generator) -> Array:
    names = [str(n) for n in transformer.feature_names_in_]
    index = names.index(column.name)
    for _, part, columns in transformer.transformers_:
        indices = _indices(transformer, columns)
        if isinstance(part, str) or index not in indices:
            continue
        steps = [s for _, s in getattr(part, "steps", [("", part)])]
        for step in steps:
            if hasattr(step, "categories_"):
                known = list(step.categories_[indices.index(index)])
                chosen = [known[i] for i in random.integers(0, len(known), ROWS)]
                return _objects(chosen) if column.datatype == "BYTES" else np.array(chosen, dtype=np.float64)
            if (
                hasattr(step, "mean_")
                and hasattr(step, "scale_")
                and step.mean_ is not None
                and step.scale_ is not None
            ):
                at = indices.index(index)
                return np.asarray(random.standard_normal(ROWS) * step.scale_[at] + step.mean_[at])
            if column.datatype == "BYTES" and _takes_text(part):
                return _texts(_first(part), random)
    return np.asarray(random.standard_normal(ROWS)) if column.datatype != "BYTES" else _texts(None, random)
