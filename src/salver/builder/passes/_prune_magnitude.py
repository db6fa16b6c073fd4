"""Magnitude pruning: the smallest weights become zero."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from onnx import ModelProto

from salver.builder.passes._graph import (
    describe_ops,
    finish,
    float_weights,
    from_array,
    name_nodes,
    read_graph,
    to_array,
)
from salver.builder.passes.base import Pass, PassContext
from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.errors import InvalidArgument, PassNotApplicable, UnknownName
from salver.core.model import Model

_PRUNED_OPS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class PruneMagnitudeConfig(Config, frozen=True, kw_only=True):
    """Args:
    sparsity: share of the weights that become zero, above 0 and below 1.
    scope: ``global`` compares all weights with each other, ``tensor`` those of one tensor.
    exclude_nodes: names of nodes whose weights stay.
    """

    sparsity: float = 0.5
    scope: Literal["global", "tensor"] = "global"
    exclude_nodes: tuple[str, ...] = ()


class PruneMagnitudePass(Pass[PruneMagnitudeConfig]):
    """Zeroes the weights of smallest magnitude in Conv, ConvTranspose, Gemm and MatMul; without retraining.

    Source: S. Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015.
    """

    name = "prune-magnitude"
    Config = PruneMagnitudeConfig
    gives_speed = "none: dense kernels do not skip zeros, and the file stores them; only a compressed copy is smaller"

    def __init__(self, config: PruneMagnitudeConfig) -> None:
        if not 0.0 < config.sparsity < 1.0:
            raise InvalidArgument(f"sparsity: got {config.sparsity}, expected above 0 and below 1")
        super().__init__(config)

    def apply(self, model: Model, context: PassContext) -> Model:
        original = read_graph(model)
        changed = ModelProto()
        changed.CopyFrom(original)
        weights = self._weights(changed)
        if not weights:
            raise PassNotApplicable(
                f"no {', '.join(_PRUNED_OPS)} with fp32 weights; the graph has {describe_ops(original)}"
            )
        if self.config.scope == "global":
            flat = _prune(np.concatenate([w.reshape(-1) for w in weights.values()]), self.config.sparsity)
            parts = np.split(flat, np.cumsum([w.size for w in weights.values()])[:-1])
            pruned = {n: part.reshape(w.shape) for (n, w), part in zip(weights.items(), parts, strict=True)}
        else:
            pruned = {name: _prune(values, self.config.sparsity) for name, values in weights.items()}
        for tensor in changed.graph.initializer:
            if tensor.name in pruned:
                tensor.CopyFrom(from_array(pruned[tensor.name], tensor.name))
        return finish(model, original, changed, self, context, {"numpy": np.__version__})

    def _weights(self, proto: ModelProto) -> dict[str, Array]:
        name_nodes(proto)
        names = {node.name for node in proto.graph.node}
        for name in self.config.exclude_nodes:
            if name not in names:
                raise UnknownName("node to exclude", name, names)
        known = float_weights(proto)
        found: dict[str, Array] = {}
        for node in proto.graph.node:
            if node.op_type in _PRUNED_OPS and node.name not in self.config.exclude_nodes:
                for name in (node.input[1], *(node.input[:1] if node.op_type == "MatMul" else ())):
                    if name in known:
                        found[name] = to_array(known[name])
        return found


def _prune(values: Array, sparsity: float) -> Array:
    """A copy in which that share is zero; of equal magnitudes the first go."""
    flat = values.reshape(-1).copy()
    order = np.argsort(np.abs(flat), kind="stable")
    flat[order[: round(sparsity * flat.size)]] = 0
    return flat.reshape(values.shape)
