"""Yes or no, or one of two names, by a score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.errors import InvalidArgument
from salver.core.tensors import TensorSpec
from salver.processing.base import FLOATS, ProcessingStep, Read, find


class ThresholdConfig(Config, frozen=True, kw_only=True):
    """What is decided, and where the border is.

    Args:
        input: scores ``[batch]`` or ``[batch, classes]``.
        output: the decisions.
        at: a score from here on says yes; one for all classes, or one for each.
        column: of scores by class, the one that decides; without it each class is decided by itself.
        yes, no: texts to answer; both empty for booleans.
    """

    input: str
    output: str = "label"
    at: float | tuple[float, ...] = 0.5
    column: int | None = None
    yes: str = ""
    no: str = ""


class ThresholdStep(ProcessingStep):
    """Compares scores with a border; a NaN says no."""

    name = "threshold"
    Config: ClassVar[type[Any]] = ThresholdConfig

    def __init__(self, config: ThresholdConfig, read: Read) -> None:
        self._config = config
        if bool(config.yes) != bool(config.no) or (config.yes and config.yes == config.no):
            raise InvalidArgument("yes and no: expected two different texts, or neither")
        self._at = np.array(config.at, np.float64)
        self._texts = np.array([config.no, config.yes, ""], object)[:2]
        self._is_flat = False

    @property
    def consumes(self) -> tuple[str, ...]:
        return (self._config.input,)

    def bind(self, given: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
        config = self._config
        spec = find(given, config.input, FLOATS, (1, 2))
        width = spec.shape[1] if len(spec.shape) == 2 else 1
        if config.column is not None and (not isinstance(width, int) or not 0 <= config.column < width):
            raise InvalidArgument(f"column: got {config.column}, '{config.input}' has {width} columns")
        self._is_flat = len(spec.shape) == 1 or width == 1 or config.column is not None
        count = 1 if self._is_flat else width
        if self._at.ndim and self._at.size != count:
            raise InvalidArgument(f"at: got {self._at.size} borders for {count} classes")
        shape = (spec.shape[0],) if self._is_flat else spec.shape
        labels = (config.no, config.yes) if config.yes and self._is_flat else () if self._is_flat else spec.labels
        datatype = "BYTES" if config.yes else "BOOL"
        return (TensorSpec(name=config.output, datatype=datatype, shape=shape, labels=labels),)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        scores = arrays[self._config.input]
        if self._config.column is not None and scores.ndim == 2:
            scores = scores[:, self._config.column]
        elif self._is_flat:
            scores = scores.reshape(len(scores))
        decided = np.asarray(scores.astype(np.float64) >= self._at)
        return {self._config.output: self._texts[decided.astype(np.intp)] if self._config.yes else decided}
