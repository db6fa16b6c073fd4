"""Rows and tensors as people write them, to and from arrays: what the protocols without shapes have in common.

An instance is what one row of the model's input is: a nested list, a number or a text for a model with one input, an
object ``{input: value}`` for a model with several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition, InvalidArgument, format_shape
from salver.core.tensors import Signature, TensorSpec
from salver.wire.elements import JSON_KINDS, check_strings, from_bf16, from_json
from salver.wire.jsonio import convert

TOP_SCORES: Final = 5
"""How many classes an answer lists with their scores."""

_MAX_SHOWN: Final = 4096
_MAX_ONE_BY_ONE: Final = 1 << 16
_OWN_LABEL: Final = ("label", "output_label")
"""Outputs in which scikit-learn's converter puts the class itself."""


MAX_STRING_BYTES: Final = 16 << 20
"""One element of a string tensor, where the server does not say otherwise."""


def to_inputs(
    instances: Sequence[Any], signature: Signature, max_string_bytes: int = MAX_STRING_BYTES
) -> dict[str, Array]:
    """Stack instances along the first dimension.

    Raises:
        TooLarge: a string is over its limit.
        InvalidArgument: no instances, an input missing or unknown, or a value that does not fit; names the instance.
        FailedPrecondition: the model's inputs have no first dimension to stack along.
    """
    if not instances:
        raise InvalidArgument("'instances' is empty, expected one row or more")
    specs = signature.inputs
    for spec in specs:
        if not spec.shape or not spec.rank_known:
            raise FailedPrecondition(f"input '{spec.name}' has no rows; use /v2/models/.../infer for this model")
    if len(specs) == 1:
        spec = specs[0]
        rows = [row[spec.name] if isinstance(row, dict) and spec.name in row else row for row in instances]
        return _within({spec.name: _stack(rows, spec)}, signature, max_string_bytes)
    names = {spec.name for spec in specs}
    for index, row in enumerate(instances):
        if not isinstance(row, dict) or row.keys() != names:
            given = "an object with " + ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
            raise InvalidArgument(
                f"instance {index}: got {given}, expected an object with {', '.join(map(repr, sorted(names)))}"
            )
    arrays = {spec.name: _stack([row[spec.name] for row in instances], spec) for spec in specs}
    return _within(arrays, signature, max_string_bytes)


def to_tensors(
    values: Mapping[str, Any], signature: Signature, max_string_bytes: int = MAX_STRING_BYTES
) -> dict[str, Array]:
    """Whole tensors, by name, from nested lists or single values.

    A tensor may be written with all its dimensions, without the first where that would be 1, or flat where that leaves
    one dimension open at most.

    Raises:
        InvalidArgument: an input missing or unknown, or a value that does not fit; names the input.
        TooLarge: a string is over its limit.
    """
    if values.keys() != {spec.name for spec in signature.inputs}:
        signature.check({name: np.empty(0) for name in values})
    arrays = {spec.name: _tensor(values[spec.name], spec) for spec in signature.inputs}
    if signature.check(arrays) < 1:
        raise InvalidArgument("a request needs at least one row, got 0")
    return _within(arrays, signature, max_string_bytes)


def _within(arrays: dict[str, Array], signature: Signature, max_string_bytes: int) -> dict[str, Array]:
    for spec in signature.inputs:
        if spec.datatype == "BYTES":
            check_strings(arrays[spec.name], max_string_bytes, f"input '{spec.name}'", spec.binary)
    return arrays


def _tensor(value: Any, spec: TensorSpec) -> Array:
    where = f"input '{spec.name}'"
    given = shape_of(value)
    target = _fit_tensor(given, spec.shape) if spec.rank_known else given
    if target is None:
        raise InvalidArgument(f"{where}: got shape {format_shape(given)}, expected {format_shape(spec.shape)}")
    if not given:
        value, given = [convert(value, JSON_KINDS[spec.datatype], where)], [1]
    return from_json(value, spec.datatype, given, where).reshape(target)


def _fit_tensor(given: list[int], expected: Sequence[int | str]) -> list[int] | None:
    """The shape to give a value written with shape ``given``; None where it cannot be one."""
    if _fits(given, expected):
        return given
    if expected and isinstance(expected[0], str):
        row = given if 1 in given else _fit(given, expected[1:])  # [[1], [2]] is two rows, never one of two
        if _fits(row, expected[1:]):
            return [1, *row]
    count = given[0] if given else 1
    fixed = [d for d in expected if isinstance(d, int)]
    width = math.prod(fixed)
    if len(given) > 1 or len(expected) - len(fixed) > bool(given) or not width or count % width:
        return [1] * len(expected) if not given and all(d == 1 for d in fixed) else None
    shape = [d if isinstance(d, int) else count // width for d in expected]
    return shape if math.prod(shape) == count else None


def _stack(rows: list[Any], spec: TensorSpec) -> Array:
    """All rows at once where they are written alike; else one by one, which costs ten times as much and says more."""
    given, expected = shape_of(rows[0]), spec.shape[1:]
    target = _fit(given, expected) if given else [1] * len(expected)
    if _fits(target, expected):
        try:
            whole = from_json(rows, spec.datatype, [len(rows), *given], f"input '{spec.name}'")
        except InvalidArgument:
            if len(rows) > _MAX_ONE_BY_ONE:
                raise
        else:
            return whole.reshape([len(rows), *target])
    return _stack_one_by_one(rows, spec)


def _stack_one_by_one(rows: list[Any], spec: TensorSpec) -> Array:
    parts = [_row(row, spec, f"instance {index}, input '{spec.name}'") for index, row in enumerate(rows)]
    shapes = sorted({part.shape for part in parts})
    if len(shapes) > 1:
        raise InvalidArgument(
            f"input '{spec.name}': instances of different shapes {', '.join(map(format_shape, shapes))} "
            "cannot stand in one request; send them one by one"
        )
    return np.stack(parts)


def _row(value: Any, spec: TensorSpec, where: str) -> Array:
    """One row. Dimensions of size 1 may be left out, and a fixed shape may be written flat."""
    expected = spec.shape[1:]
    given = shape_of(value)
    if not given:
        element = convert(value, JSON_KINDS[spec.datatype], where)
        value, given = [element], [1]
        target = [1] * len(expected)
    else:
        target = _fit(given, expected)
    if not _fits(target, expected):
        raise InvalidArgument(
            f"{where}: got shape {format_shape(shape_of(value) if target else given)}, "
            f"expected {format_shape(expected)}"
        )
    flat = from_json(value, spec.datatype, given, where)
    return flat.reshape(target)


def _fit(given: list[int], expected: Sequence[int | str]) -> list[int]:
    """The shape to give a value written with shape ``given``; ``given`` itself where it cannot be another."""
    if _fits(given, expected):
        return given
    if all(isinstance(d, int) for d in expected):
        fixed = [d for d in expected if isinstance(d, int)]
        squeezed = [d for d in fixed if d != 1]
        if [d for d in given if d != 1] == squeezed or given == [int(np.prod(np.array(fixed, np.int64)))]:
            return fixed
    return given


def _fits(shape: Sequence[int], expected: Sequence[int | str]) -> bool:
    return len(shape) == len(expected) and all(
        e in (s, e if isinstance(e, str) else s) for s, e in zip(shape, expected, strict=True)
    )


def shape_of(value: Any) -> list[int]:
    """Lengths of nested lists along their first elements; `from_json` checks the others."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def to_plain(array: Array, spec: TensorSpec) -> Any:
    """An output as nested lists, or as a single value where it has no dimensions."""
    return (from_bf16(array) if spec.datatype == "BF16" else array).tolist()


def to_rows(array: Array, spec: TensorSpec, rows: int) -> list[Any]:
    """An output as one value for each row of the request.

    Raises:
        FailedPrecondition: it has another number of rows.
    """
    values = to_plain(array, spec)
    if array.ndim and len(array) == rows:
        return list(values)
    if rows == 1:
        return [values]
    raise FailedPrecondition(
        f"output '{spec.name}' has shape {format_shape(array.shape)}, no row for each of {rows} instances; "
        "send one instance at a time, or use /v2/models/.../infer"
    )


def to_predictions(outputs: Mapping[str, Array], signature: Signature, rows: int) -> list[Any]:
    """One prediction per instance.

    A model with class labels gives ``{"label", "score", "scores"}`` and its other outputs by name; another gives the
    row of its only output, or ``{output: row}`` where there are several.

    Raises:
        FailedPrecondition: an output has no row for each instance.
    """
    columns = {spec.name: to_rows(outputs[spec.name], spec, rows) for spec in signature.outputs}
    labelled = next((s for s in signature.outputs if _is_scores(s, outputs[s.name])), None)
    if labelled is None:
        if len(columns) == 1:
            return next(iter(columns.values()))
        return [{name: column[i] for name, column in columns.items()} for i in range(rows)]
    scores = columns.pop(labelled.name)
    own = next((columns.pop(name) for name in _OWN_LABEL if name in columns), None)
    return [
        {
            **_best(scores[i], labelled.labels, None if own is None else own[i]),
            **{name: column[i] for name, column in columns.items()},
        }
        for i in range(rows)
    ]


def _is_scores(spec: TensorSpec, array: Array) -> bool:
    return bool(spec.labels) and array.ndim == 2 and array.shape[1] == len(spec.labels) and spec.datatype != "BYTES"


def _best(scores: list[float], labels: Sequence[str], own: Any) -> dict[str, Any]:
    order = sorted(range(len(scores)), key=lambda i: -scores[i] if scores[i] == scores[i] else float("inf"))
    chosen = order[0]
    if isinstance(own, list):
        own = own[0] if len(own) == 1 else None
    if own is not None and str(own) in labels:
        chosen = labels.index(str(own))
    elif type(own) is int and 0 <= own < len(labels):
        chosen = own
    return {
        "label": labels[chosen],
        "score": scores[chosen],
        "scores": {labels[i]: scores[i] for i in order[:TOP_SCORES]},
    }


def example_instance(signature: Signature) -> Any:
    """An instance that fits; None where it would be longer than a person reads."""
    rows = {spec.name: _example_row(spec) for spec in signature.inputs}
    if any(row is None for row in rows.values()):
        return None
    return next(iter(rows.values())) if len(rows) == 1 else rows


def _example_row(spec: TensorSpec) -> Any:
    shape = [d if isinstance(d, int) else 1 for d in spec.shape[1:]]
    if math.prod(shape) > _MAX_SHOWN:
        return None
    value = example_element(spec)
    for size in reversed([size for size in shape if size != 1]):
        value = [value] * size
    return value


def example_element(spec: TensorSpec) -> Any:
    """An element that fits."""
    if spec.binary:
        return "(a file's bytes, in base64)"
    return {bool: True, str: "text", int: 0, float: 0.5}[JSON_KINDS[spec.datatype]]
