"""What a user gives beside the model, in the forms in which it may be given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salver.core.errors import InvalidArgument, NotFound
from salver.core.specs import parse_inputs
from salver.core.tensors import TensorSpec


def read_labels(labels: Sequence[str] | Path | str | None) -> tuple[str, ...]:
    """Class names, or those in a text file with one per line.

    Raises:
        NotFound, InvalidArgument: there is no such file, or it is no text.
    """
    if labels is None:
        return ()
    if not isinstance(labels, str | Path):
        return tuple(labels)
    path = Path(labels)
    if not path.is_file():
        raise NotFound(f"labels: no such file: '{path}'; give a text file with one class name per line")
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"labels: '{path}' is not UTF-8 text: {error}") from None


def read_inputs(inputs: Sequence[TensorSpec] | str) -> tuple[TensorSpec, ...]:
    """Specs, or text that says them.

    Raises:
        InvalidArgument: the text cannot be read.
    """
    return parse_inputs(inputs) if isinstance(inputs, str) else tuple(inputs)


def name_of(source: Any) -> str:
    """A name for a model, from its file, its ``module:name`` or its class."""
    if isinstance(source, str) and ":" in source and not Path(source).exists():
        stem = source.partition(":")[2]
    elif isinstance(source, str | Path):
        stem = Path(source).stem
    else:
        stem = type(source).__name__.lower()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "model"
