"""Weights as small integers, activations in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from salver.builder.passes._graph import (
    describe_ops,
    finish,
    float_weights,
    from_array,
    name_nodes,
    opset_of,
    read_graph,
    replace_weights,
    to_array,
)
from salver.builder.passes.base import Pass, PassContext
from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.errors import InvalidArgument, PassNotApplicable, UnknownName
from salver.core.model import Model

DEFAULT_OPS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU")
_SMALL_ELEMENTS: Final = 64
_BLOCK_DOMAIN: Final = "com.microsoft"
_OLDEST_OPSET: Final = 13


class WeightOnlyConfig(Config, frozen=True, kw_only=True):
    """Args:
    method: ``fold`` stores int8 with one scale per channel; the runtime expands it to fp32 once, at load. ``blocks``
        keeps the weights of MatMul and Gemm small in memory too, with one scale per block (MatMulNBits, an operator
        of ONNX Runtime), and folds the others.
    op_types: whose weights.
    exclude_nodes: names of nodes whose weights stay fp32.
    bits, block_size: of ``blocks``: 4 or 8; a power of two from 16.
    int8_compute: of ``blocks``: also quantize activations, as they come: faster, less exact.
    """

    method: Literal["fold", "blocks"] = "fold"
    op_types: tuple[str, ...] = DEFAULT_OPS
    exclude_nodes: tuple[str, ...] = ()
    bits: Literal[4, 8] = 8
    block_size: int = 32
    int8_compute: bool = False


class WeightOnlyPass(Pass[WeightOnlyConfig]):
    """A quarter of the size, or an eighth, at almost no loss; symmetric, rounded to nearest."""

    name = "weight-only"
    Config = WeightOnlyConfig
    gives_speed = "none with method 'fold', which computes in fp32; 'blocks' may help where memory is the limit"

    def __init__(self, config: WeightOnlyConfig) -> None:
        size = config.block_size
        if size < 16 or size & (size - 1):
            raise InvalidArgument(f"block_size: got {size}, expected a power of two from 16")
        if config.method == "fold" and config.bits != 8:
            raise InvalidArgument("bits: method 'fold' stores 8; 4 needs method 'blocks'")
        super().__init__(config)

    def apply(self, model: Model, context: PassContext) -> Model:
        original = read_graph(model)
        if opset_of(original) < _OLDEST_OPSET:
            raise PassNotApplicable(f"the model has opset {opset_of(original)}; int8 needs {_OLDEST_OPSET} or newer")
        changed = ModelProto()
        changed.CopyFrom(original)
        name_nodes(changed)
        names = {node.name for node in changed.graph.node}
        for name in self.config.exclude_nodes:
            if name not in names:
                raise UnknownName("node to exclude", name, names)
        blocked = _block(changed, self.config) if self.config.method == "blocks" else 0
        folded = _fold(changed, self.config)
        if not blocked and not folded:
            raise PassNotApplicable(
                f"no node of type {', '.join(self.config.op_types)} with fp32 weights of {_SMALL_ELEMENTS} elements or "
                f"more; the graph has {describe_ops(changed)}"
            )
        return finish(model, original, changed, self, context, {"numpy": np.__version__})


def _eligible(proto: ModelProto, config: WeightOnlyConfig, op_types: Sequence[str]) -> list[NodeProto]:
    return [
        n
        for n in proto.graph.node
        if n.op_type in config.op_types and n.op_type in op_types and n.name not in config.exclude_nodes
    ]


def _fold(proto: ModelProto, config: WeightOnlyConfig) -> int:
    """Replace weights by int8, Cast and Mul. (A DequantizeLinear would not be folded at load but run each time.)"""
    weights = float_weights(proto)
    kept = {i for n in proto.graph.node if n.name in config.exclude_nodes for i in n.input}
    made: dict[str, tuple[list[TensorProto], list[NodeProto]]] = {}
    for node in _eligible(proto, config, DEFAULT_OPS):
        for position, axes in _channel_axes(node):
            name = node.input[position] if position < len(node.input) else ""
            if name in weights and name not in made and name not in kept:
                values = to_array(weights[name])
                if values.size >= _SMALL_ELEMENTS and np.isfinite(values).all():
                    made[name] = _fold_one(name, values, axes)
    replace_weights(proto, made)
    return len(made)


def _channel_axes(node: NodeProto) -> list[tuple[int, tuple[int, ...]]]:
    """Input position of each weight, and the axes along which it has scales of its own."""
    if node.op_type == "Gather":
        return [(0, (0,))]
    if node.op_type in ("LSTM", "GRU"):
        return [(1, (0, 1)), (2, (0, 1))]
    if node.op_type == "Conv":
        return [(1, (0,))]
    if node.op_type == "ConvTranspose":
        return [(1, (1,))]
    if node.op_type == "Gemm" and _attribute(node, "transB", 0):
        return [(1, (0,))]
    return [(1, (-1,)), (0, (0,))] if node.op_type == "MatMul" else [(1, (-1,))]


def _attribute(node: NodeProto, name: str, default: float) -> float:
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return float(values.get(name, default))


def _fold_one(name: str, values: Array, axes: tuple[int, ...]) -> tuple[list[TensorProto], list[NodeProto]]:
    keep = {axis % values.ndim for axis in axes}
    peak = np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i not in keep), keepdims=True)
    scale = np.where(peak > 0, peak / 127, 1).astype(np.float32)
    small = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    stored, factor, wide = f"{name}:int8", f"{name}:scale", f"{name}:wide"
    return (
        [from_array(small, stored), from_array(scale, factor)],
        [
            helper.make_node("Cast", [stored], [wide], name=f"{name}:cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [wide, factor], [name], name=f"{name}:scale-up"),
        ],
    )


def _block(proto: ModelProto, config: WeightOnlyConfig) -> int:
    """Replace products with constant matrices by MatMulNBits; a Gemm's bias becomes an Add."""
    weights = float_weights(proto)
    body: list[NodeProto] = []
    chosen = {n.name for n in _eligible(proto, config, ("MatMul", "Gemm")) if _is_plain_product(n, weights)}
    for node in proto.graph.node:
        if node.name not in chosen:
            body.append(node)
            continue
        matrix = to_array(weights[node.input[1]])
        if node.op_type == "MatMul" or not _attribute(node, "transB", 0):
            matrix = matrix.T
        packed, scales = pack_blocks(matrix, config.bits, config.block_size)
        stored, factor = f"{node.name}:blocks", f"{node.name}:scales"
        proto.graph.initializer.extend([from_array(packed, stored), from_array(scales, factor)])
        bias = node.input[2] if len(node.input) > 2 else ""
        product = f"{node.output[0]}:product" if bias else node.output[0]
        body.append(
            helper.make_node(
                "MatMulNBits",
                [node.input[0], stored, factor],
                [product],
                name=node.name,
                domain=_BLOCK_DOMAIN,
                K=matrix.shape[1],
                N=matrix.shape[0],
                bits=config.bits,
                block_size=config.block_size,
                accuracy_level=4 if config.int8_compute else 1,
            )
        )
        if bias:
            body.append(helper.make_node("Add", [product, bias], [node.output[0]], name=f"{node.name}:bias"))
    proto.graph.ClearField("node")
    proto.graph.node.extend(body)
    used = {i for node in body for i in node.input} | {o.name for o in proto.graph.output}
    alive = [t for t in proto.graph.initializer if t.name in used]
    proto.graph.ClearField("initializer")
    proto.graph.initializer.extend(alive)
    if chosen:
        proto.opset_import.add(domain=_BLOCK_DOMAIN, version=1)
    return len(chosen)


def _is_plain_product(node: NodeProto, weights: dict[str, TensorProto]) -> bool:
    if node.input[1] not in weights or len(weights[node.input[1]].dims) != 2:
        return False
    if int(np.prod(weights[node.input[1]].dims)) < _SMALL_ELEMENTS:
        return False
    scaled = any(_attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta"))
    return node.op_type == "MatMul" or not (scaled or _attribute(node, "transA", 0))


def pack_blocks(matrix: Array, bits: int, block_size: int) -> tuple[Array, Array]:
    """Quantize rows in blocks, symmetric, in the layout of MatMulNBits.

    Args:
        matrix: ``[N, K]``, one row per output.

    Returns:
        Packed unsigned integers ``[N, blocks, block_size * bits / 8]`` (the lower half of a byte first) and scales
        ``[N, blocks]``. Source: ONNX Runtime's ContribOperators.md, com.microsoft.MatMulNBits.
    """
    rows, columns = matrix.shape
    blocks = -(-columns // block_size)
    padded = np.zeros((rows, blocks * block_size), np.float32)
    padded[:, :columns] = matrix
    values = padded.reshape(rows, blocks, block_size)
    middle = 1 << (bits - 1)
    extreme = np.take_along_axis(values, np.abs(values).argmax(axis=2)[..., None], axis=2)[..., 0]
    # The value of largest magnitude takes the end of the grid that reaches further: the negative one.
    scales = np.where(extreme != 0, -extreme / middle, 1).astype(np.float32)
    codes = np.clip(np.rint(values / scales[..., None]) + middle, 0, 2 * middle - 1).astype(np.uint8)
    packed = codes[..., 0::2] | (codes[..., 1::2] << 4) if bits == 4 else codes
    return packed, scales
