"""``:classify`` and ``:regress``: examples, which are features by name, to inputs, and outputs to classes and numbers.

A model here has one signature, and its features are its inputs. Features that the model has no input for are left out,
as TensorFlow's parser of examples does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition, InvalidArgument, format_shape
from salver.core.tensors import Signature, TensorSpec
from salver.server.frontends.instances import to_inputs
from salver.wire.elements import decode_text, from_bf16

Features = Mapping[str, Any]
"""Name -> a value or a list of values."""


def to_rows(examples: Sequence[Features], context: Features, signature: Signature) -> list[Any]:
    """The features the model wants, for each example: its own, else those of the context.

    Raises:
        InvalidArgument: no examples, or a feature is missing.
    """
    if not examples:
        raise InvalidArgument("'examples' is empty, expected one or more")
    rows: list[Any] = []
    for index, example in enumerate(examples):
        row = {}
        for spec in signature.inputs:
            if spec.name in example:
                row[spec.name] = example[spec.name]
            elif spec.name in context:
                row[spec.name] = context[spec.name]
            else:
                raise InvalidArgument(f"example {index}: feature '{spec.name}' is missing")
        rows.append(row)
    return rows


def to_arrays(rows: list[Any], signature: Signature, max_string_bytes: int) -> tuple[dict[str, Array], int]:
    """Inputs of rows, and how many they are.

    Raises:
        TooLarge: a string is over its limit.
        InvalidArgument: a value does not fit its input; named by its number.
        FailedPrecondition: the model's inputs have no first dimension.
    """
    inputs = to_inputs(rows, signature, max_string_bytes)
    return inputs, signature.check(inputs)


def read_input(given: Any, signature: Signature) -> list[Any]:
    """The rows in a ``tensorflow.serving.Input``.

    Raises:
        InvalidArgument: as `to_rows`, or a feature of another kind than its input.
    """
    kind = given.WhichOneof("kind")
    if kind is None:
        raise InvalidArgument("Input is empty: expected example_list or example_list_with_context")
    held = getattr(given, kind)
    specs = {spec.name: spec for spec in signature.inputs}
    examples = [_read(example, specs, f"example {index}") for index, example in enumerate(held.examples)]
    context = _read(held.context, specs, "context") if kind == "example_list_with_context" else {}
    return to_rows(examples, context, signature)


def _read(example: Any, specs: Mapping[str, TensorSpec], where: str) -> dict[str, list[Any]]:
    features = example.features.feature
    return {
        name: _values(features[name], spec, f"{where}: feature '{name}'")
        for name, spec in specs.items()
        if name in features and features[name].WhichOneof("kind") is not None
    }


def _values(feature: Any, spec: TensorSpec, where: str) -> list[Any]:
    kind = feature.WhichOneof("kind")
    expected = "bytes_list" if spec.datatype == "BYTES" else "float_list" if spec.datatype[0] in "FB" else "int64_list"
    if spec.datatype == "BOOL":
        expected = "int64_list"
    if kind != expected:
        raise InvalidArgument(f"{where}: got {kind}, expected {expected} for {spec.datatype}")
    values = list(getattr(feature, kind).value)
    if spec.datatype == "BYTES":
        return [decode_text(value, index, where, spec.binary) for index, value in enumerate(values)]
    if spec.datatype == "BOOL":
        return [_to_bool(value, where) for value in values]
    return values


def _to_bool(value: int, where: str) -> bool:
    if value not in (0, 1):
        raise InvalidArgument(f"{where}: got {value}, BOOL is 0 or 1")
    return value == 1


def to_classes(outputs: Mapping[str, Array], signature: Signature, rows: int) -> list[list[tuple[str, float]]]:
    """The classes of each example with their scores, in the model's order, as TensorFlow Serving gives them.

    Labels are those of the signature, else those in an output ``classes``; without either they are empty.

    Raises:
        FailedPrecondition: the model has no output of scores.
    """
    scores = _scores_of(signature)
    table = _floats(outputs[scores.name], scores)
    if table.ndim == 1:
        table = table.reshape(-1, 1)
    if table.ndim != 2 or len(table) != rows:
        raise FailedPrecondition(_not_for(scores, table, "classify", "one row of scores"))
    names = outputs.get("classes")
    if scores.labels and len(scores.labels) == table.shape[1]:
        labels = [list(scores.labels)] * rows
    elif names is not None and names.dtype == object and names.shape == table.shape:
        labels = names.tolist()
    else:
        labels = [[""] * table.shape[1]] * rows
    return [list(zip(own, row, strict=True)) for own, row in zip(labels, table.tolist(), strict=True)]


def to_numbers(outputs: Mapping[str, Array], signature: Signature, rows: int) -> list[float]:
    """The number of each example.

    Raises:
        FailedPrecondition: the model has no output that is one number for each example.
    """
    spec = _choose(signature, "outputs", "regress", "one number")
    array = _floats(outputs[spec.name], spec)
    if not array.ndim or len(array) != rows or array.size != rows:
        raise FailedPrecondition(_not_for(spec, array, "regress", "one number"))
    numbers: list[float] = array.reshape(-1).tolist()
    return numbers


def _scores_of(signature: Signature) -> TensorSpec:
    labelled = [spec for spec in signature.outputs if spec.labels and _is_float(spec)]
    return labelled[0] if labelled else _choose(signature, "scores", "classify", "scores")


def _choose(signature: Signature, name: str, verb: str, what: str) -> TensorSpec:
    """The output of that name, else the only one of floats."""
    floats = [spec for spec in signature.outputs if _is_float(spec)]
    named = [spec for spec in floats if spec.name == name] or floats
    if len(named) != 1:
        outputs = ", ".join(f"'{spec.name}' ({spec.datatype})" for spec in signature.outputs)
        raise FailedPrecondition(
            f"this model cannot {verb}: expected an output '{name}' with {what} for each example, or a single output "
            f"of floats; its outputs are {outputs}. Use predict"
        )
    return named[0]


def _is_float(spec: TensorSpec) -> bool:
    return spec.datatype in ("FP16", "BF16", "FP32", "FP64")


def _floats(array: Array, spec: TensorSpec) -> Array:
    return from_bf16(array) if spec.datatype == "BF16" else array


def _not_for(spec: TensorSpec, array: Array, verb: str, what: str) -> str:
    return (
        f"this model cannot {verb}: output '{spec.name}' has shape {format_shape(array.shape)}, not {what} for each "
        "example. Use predict"
    )
