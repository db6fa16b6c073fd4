"""Classes by their names: the best, or the best few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np

from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.errors import Internal, InvalidArgument
from salver.core.tensors import TensorSpec
from salver.processing.base import FLOATS, ProcessingStep, Read, find

_WHOLE: Final = ("INT64", "INT32", "UINT8", "INT8", "BOOL")


class LabelsConfig(Config, frozen=True, kw_only=True):
    """Whose classes get names.

    Args:
        input: scores ``[batch, classes]``, or numbers of classes ``[batch]``.
        labels: the names, in the order of the classes; empty for those in ``file``, or those that the model has.
        file: a text file with one name per line.
        output: the name of the best class; with ``top_k`` above 1 the names ``[batch, top_k]``, best first.
        score: its score; empty to leave that out. Numbers of classes have none.
        top_k: how many.
    """

    input: str
    labels: tuple[str, ...] = ()
    file: str = ""
    output: str = "label"
    score: str = "score"
    top_k: int = 1


class LabelsStep(ProcessingStep):
    """The class with the highest score, by name; of equal ones the first, and a NaN is never the highest."""

    name = "labels"
    Config: ClassVar[type[Any]] = LabelsConfig
    files = ("file",)

    def __init__(self, config: LabelsConfig, read: Read) -> None:
        self._config = config
        self._labels = config.labels or (_lines(read(config.file), config.file) if config.file else ())
        self._names = np.empty(0, object)
        self._are_scores = True
        if config.top_k < 1:
            raise InvalidArgument(f"top_k: got {config.top_k}, expected 1 or more")

    @property
    def consumes(self) -> tuple[str, ...]:
        return (self._config.input,)

    def bind(self, given: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
        config = self._config
        source = given[config.input]
        self._are_scores = source.datatype in FLOATS
        spec = find(given, config.input, FLOATS if self._are_scores else _WHOLE, (2,) if self._are_scores else (1, 2))
        labels = self._labels or spec.labels
        if not labels:
            raise InvalidArgument(
                'the classes have no names; give them: labels = ["cat", "dog"], or file = "labels.txt"'
            )
        classes = spec.shape[1] if self._are_scores else len(labels)
        if isinstance(classes, int) and classes != len(labels):
            raise InvalidArgument(f"got {len(labels)} names for the {classes} classes of '{config.input}'")
        if config.top_k > (len(labels) if self._are_scores else 1):
            raise InvalidArgument(f"top_k: got {config.top_k}, there are {len(labels)} classes")
        self._names = np.array([*labels, ""], object)[:-1]
        shape = (spec.shape[0],) if config.top_k == 1 else (spec.shape[0], config.top_k)
        made = [TensorSpec(name=config.output, datatype="BYTES", shape=shape, labels=tuple(labels))]
        if config.score and self._are_scores:
            made.append(TensorSpec(name=config.score, datatype="FP32", shape=shape))
        return tuple(made)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        values = arrays[self._config.input]
        if not self._are_scores:
            return {self._config.output: self._names[self._checked(values.reshape(len(values)))]}
        scores = np.where(np.isnan(values), -np.inf, values)
        count = self._config.top_k
        best = scores.argmax(axis=1) if count == 1 else np.argsort(-scores, axis=1, kind="stable")[:, :count]
        made = {self._config.output: self._names[best]}
        if self._config.score:
            chosen = np.take_along_axis(values, best.reshape(len(values), -1), axis=1).astype(np.float32)
            made[self._config.score] = chosen[:, 0] if count == 1 else chosen
        return made

    def _checked(self, numbers: Array) -> Array:
        numbers = numbers.astype(np.int64)
        wrong = (numbers < 0) | (numbers >= len(self._names))
        if wrong.any():
            raise Internal(f"the model answered class {numbers[wrong][0]}, there are {len(self._names)} names")
        return numbers


def _lines(data: bytes, name: str) -> tuple[str, ...]:
    try:
        lines = tuple(data.decode().splitlines())
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"'{name}' is not UTF-8 text: {error}") from None
    if not lines:
        raise InvalidArgument(f"'{name}' is empty; expected one name per line")
    return lines
