"""Vectors of length one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.tensors import TensorSpec
from salver.processing.base import FLOATS, ProcessingStep, Read, find


class NormalizeConfig(Config, frozen=True, kw_only=True):
    """Which vectors are brought to length one.

    Args:
        input: ``[batch, width]``.
        output: empty for the name of the input, whose place it takes.
        least: a shorter vector is divided by this, so that zeros stay zeros.
    """

    input: str = "embedding"
    output: str = ""
    least: float = 1e-12


class NormalizeStep(ProcessingStep):
    """Divides each vector by its Euclidean length. Computed in float32."""

    name = "normalize"
    Config: ClassVar[type[Any]] = NormalizeConfig

    def __init__(self, config: NormalizeConfig, read: Read) -> None:
        self._config = config
        self._output = config.output or config.input

    @property
    def consumes(self) -> tuple[str, ...]:
        return (self._config.input,)

    def bind(self, given: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
        spec = find(given, self._config.input, FLOATS, (2,))
        return (TensorSpec(name=self._output, datatype="FP32", shape=spec.shape),)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        vectors = arrays[self._config.input].astype(np.float32, copy=False)
        lengths = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
        return {self._output: vectors / np.maximum(lengths, np.float32(self._config.least))}
