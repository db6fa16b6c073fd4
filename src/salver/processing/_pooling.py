"""One vector for each row out of one for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.tensors import TensorSpec
from salver.processing.base import FLOATS, ProcessingStep, Read, find


class PoolingConfig(Config, frozen=True, kw_only=True):
    """Which vectors are pooled, and how.

    Args:
        input: ``[batch, tokens, width]``.
        mask: 1 for tokens that count, as the tokenizer made it; empty when all count.
        output: ``[batch, width]``.
        kind: mean or maximum over the tokens that count, or the first or last of them.
    """

    input: str
    mask: str = "attention_mask"
    output: str = "embedding"
    kind: Literal["mean", "max", "first", "last"] = "mean"


class PoolingStep(ProcessingStep):
    """Pools over tokens, leaving out what only fills rows up. Computed in float32."""

    name = "pooling"
    Config: ClassVar[type[Any]] = PoolingConfig

    def __init__(self, config: PoolingConfig, read: Read) -> None:
        self._config = config

    @property
    def consumes(self) -> tuple[str, ...]:
        return (self._config.input, self._config.mask) if self._config.mask else (self._config.input,)

    def bind(self, given: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
        spec = find(given, self._config.input, FLOATS, (3,))
        if self._config.mask:
            find(given, self._config.mask, ("INT32", "INT64", "BOOL", "UINT8", "INT8", *FLOATS), (2,))
        shape = (spec.shape[0], spec.shape[2])
        return (TensorSpec(name=self._config.output, datatype="FP32", shape=shape),)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        vectors = arrays[self._config.input].astype(np.float32, copy=False)
        mask = arrays[self._config.mask] != 0 if self._config.mask else np.ones(vectors.shape[:2], bool)
        return {self._config.output: self._pool(vectors, mask)}

    def _pool(self, vectors: Array, mask: Array) -> Array:
        match self._config.kind:
            case "mean":
                counts = np.maximum(mask.sum(axis=1, keepdims=True), 1).astype(np.float32)
                return np.asarray(np.where(mask[..., None], vectors, np.float32(0)).sum(axis=1) / counts)
            case "max":
                lowest = np.finfo(np.float32).min
                return np.asarray(np.where(mask[..., None], vectors, lowest).max(axis=1))
            case "first":
                return np.asarray(vectors[np.arange(len(vectors)), mask.argmax(axis=1)])
            case _:
                last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
                return np.asarray(vectors[np.arange(len(vectors)), last])
