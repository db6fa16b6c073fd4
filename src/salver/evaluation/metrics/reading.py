"""How predictions are read from a model's outputs, and labels from a data set's.

- Scores of classes: a float output ``[n, C]``, C >= 2, or one of 8-bit integers, as fully quantized models have.
- Score of the positive class: a float output ``[n]`` or ``[n, 1]``.
- Predicted classes: an integer, boolean or text output ``[n]`` or ``[n, 1]``.
- Classes are compared as text. The class of index i is ``labels[i]`` of the output's `TensorSpec`, ``str(i)`` without.
- Integer labels are indices of classes, unless all class names are numbers: then they are names.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, UnknownName, format_shape
from salver.core.tensors import TensorSpec

Kind = Literal["scores", "score", "classes", "values"]


def kind_of(array: Array) -> Kind:
    """What an output of this dtype and shape ``[n, ...]`` holds."""
    flat = array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)
    if array.dtype.kind == "f":
        return "score" if flat else "scores" if array.ndim == 2 else "values"
    if array.ndim == 2 and not flat and array.dtype in (np.int8, np.uint8):
        return "scores"
    return "classes" if flat else "values"


def choose_output(metric: str, wanted: str, outputs: dict[str, Array], kinds: tuple[Kind, ...]) -> str:
    """The output a metric judges: the one asked for, else the only one of the first kind that there is.

    Raises:
        UnknownName: there is no output of that name.
        InvalidArgument: the output does not fit, none fits, or several do.
    """
    if wanted:
        if wanted not in outputs:
            raise UnknownName("output", wanted, outputs)
        if kind_of(outputs[wanted]) not in kinds:
            raise InvalidArgument(
                f"metric '{metric}': {_describe(wanted, outputs[wanted])} does not fit; {_expected(kinds)}"
            )
        return wanted
    for kind in kinds:
        fitting = [name for name, array in outputs.items() if kind_of(array) == kind]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            named = ", ".join(f"'{n}'" for n in fitting)
            raise InvalidArgument(
                f"metric '{metric}': {len(fitting)} outputs fit ({named}); name one: '{metric}@{fitting[0]}'"
            )
    listing = "; ".join(_describe(name, array) for name, array in outputs.items())
    raise InvalidArgument(f"metric '{metric}': no output fits; {_expected(kinds)}; the model gives {listing}")


def _describe(name: str, array: Array) -> str:
    return f"output '{name}' {array.dtype} {format_shape(('batch', *array.shape[1:]))}"


_WORDS: dict[Kind, str] = {
    "scores": "float or 8-bit scores [batch, classes]",
    "score": "float scores [batch] or [batch, 1]",
    "classes": "integer or text classes [batch]",
    "values": "values of any shape",
}


def _expected(kinds: tuple[Kind, ...]) -> str:
    return f"expected {' or '.join(_WORDS[k] for k in kinds)}"


def to_text(values: Array) -> Array:
    """Classes as a text array ``[n]``: 3, 3.0, True and b"3" of different sources become '3', '3', '1' and '3'."""
    flat = values.reshape(len(values))
    if flat.dtype.kind == "b":
        flat = flat.astype(np.int64)
    if flat.dtype.kind == "f" and np.array_equal(flat, np.trunc(flat)):
        flat = flat.astype(np.int64)
    if flat.dtype.kind in "OS":
        flat = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in flat.tolist()], dtype=np.str_)
    return flat.astype(np.str_)


def class_names(output: str, specs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    """Class names of an output; those of another output of the same model when it has none itself."""
    own = next((s.labels for s in specs if s.name == output), ())
    return own or next((s.labels for s in specs if s.labels), ())


def label_column(metric: str, labels: Array, rows: int) -> Array:
    """Labels as ``[n]``.

    Raises:
        InvalidArgument: they are not one class per row.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != rows:
        raise InvalidArgument(
            f"metric '{metric}': got labels of shape {format_shape(labels.shape)} for {rows} examples, expected "
            "one class "
            "per example: shape [batch]"
        )
    return labels


def label_indices(metric: str, labels: Array, names: tuple[str, ...], classes: int) -> Array:
    """Labels as indices of classes, int64 ``[n]``.

    Raises:
        InvalidArgument: a label that is no class of the model, by example and value.
    """
    numeric = labels.dtype.kind in "biuf"
    if numeric and not (names and all(_is_int(n) for n in names)):
        indices = labels.astype(np.int64)
        wrong = np.flatnonzero((indices < 0) | (indices >= classes))
        if np.any(indices != labels):
            broken = labels[indices != labels][0]
            raise InvalidArgument(
                f"metric '{metric}': label {broken} is no class of the model, whose {classes} classes are numbered 0 "
                f"to {classes - 1}; for a regression say --metric mse, mae or r2"
            )
        if len(wrong):
            raise InvalidArgument(
                f"metric '{metric}': label {labels[wrong[0]]} is out of range; the model has {classes} classes, "
                f"numbered 0 to {classes - 1}"
            )
        return indices
    valid = names or tuple(str(i) for i in range(classes))
    table = {name: i for i, name in enumerate(valid)}
    texts = to_text(labels).tolist()
    unknown = next((i for i, t in enumerate(texts) if t not in table), None)
    if unknown is not None:
        hint = "" if names else "; give the class names in the model's order (--labels), or integer labels"
        raise InvalidArgument(
            f"metric '{metric}': label '{texts[unknown]}' is no class of the model; valid: "
            f"{', '.join(valid[:10])}{', ...' if len(valid) > 10 else ''}{hint}"
        )
    return np.fromiter((table[t] for t in texts), np.int64, len(texts))


def label_names(metric: str, labels: Array, predicted: Array, names: tuple[str, ...]) -> Array:
    """Labels as text, to be compared with an output of classes.

    Raises:
        InvalidArgument: labels are numbers, the model answers with words, and there are no class names to join them.
    """
    if labels.dtype.kind in "biuf" and predicted.dtype.kind in "OUS":
        texts = to_text(predicted)
        if not all(_is_int(t) for t in texts.tolist()):
            if not names:
                raise InvalidArgument(
                    f"metric '{metric}': labels are numbers but the model answers with names such as "
                    f"'{texts[0]}'; label "
                    "the data with names, or give the class names in order (--labels)"
                )
            return np.array(names, np.str_)[label_indices(metric, labels, names, len(names))]
    return to_text(labels)


def name_indices(indices: Array, names: tuple[str, ...]) -> Array:
    """Indices of classes as their names, text ``[n]``."""
    if not names:
        return indices.astype(np.str_)
    return np.array(names, np.str_)[np.minimum(indices, len(names) - 1)]


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdigit()
