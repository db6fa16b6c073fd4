"""Scores to probabilities, where the graph leaves that to who reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.errors import InvalidArgument
from salver.core.tensors import TensorSpec
from salver.processing.base import FLOATS, ProcessingStep, Read, find


class ActivationConfig(Config, frozen=True, kw_only=True):
    """Which scores become probabilities.

    Args:
        input: scores ``[batch, classes]``; with ``sigmoid`` of any shape.
        output: empty for the name of the input, whose place it takes.
        kind: ``softmax`` over the classes, of which one holds; ``sigmoid`` for each, where several may.
        temperature: scores are divided by this first.
    """

    input: str
    output: str = "probabilities"
    kind: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = 1.0


class ActivationStep(ProcessingStep):
    """Softmax or sigmoid, in float32."""

    name = "activation"
    Config: ClassVar[type[Any]] = ActivationConfig

    def __init__(self, config: ActivationConfig, read: Read) -> None:
        self._config = config
        self._output = config.output or config.input
        if not config.temperature > 0.0:
            raise InvalidArgument(f"temperature: got {config.temperature}, expected a number above 0")

    @property
    def consumes(self) -> tuple[str, ...]:
        return (self._config.input,)

    def bind(self, given: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
        ranks = (2,) if self._config.kind == "softmax" else (1, 2, 3, 4)
        spec = find(given, self._config.input, FLOATS, ranks)
        return (msgspec.structs.replace(spec, name=self._output, datatype="FP32"),)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        scores = arrays[self._config.input].astype(np.float32, copy=False) / np.float32(self._config.temperature)
        if self._config.kind == "softmax":
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            return {self._output: powers / powers.sum(axis=1, keepdims=True)}
        powers = np.exp(-np.abs(scores))  # never of a large number, which would overflow
        return {self._output: np.where(scores >= 0, 1 / (1 + powers), powers / (1 + powers)).astype(np.float32)}
