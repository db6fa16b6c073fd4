"""Dynamic int8: weights as 8-bit integers, activations quantized as they come, no calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx
from onnx import ModelProto
from onnxruntime.quantization import quantize_dynamic

from salver.builder.passes._graph import finish, read_graph
from salver.builder.passes._graph_optimize import runtime_version
from salver.builder.passes._int8_static import TYPES, IntType, prepare, refuse_mixed_defaults, run_quantizer, select
from salver.builder.passes._quiet import contained
from salver.builder.passes.base import Pass, PassContext
from salver.core.config import Config
from salver.core.model import Model

DEFAULT_OPS: Final = ("MatMul", "Gemm", "Gather", "LSTM", "Attention")


class Int8DynamicConfig(Config, frozen=True, kw_only=True):
    """Args:
    op_types: which operators become integer; ``MatMul`` covers Gemm too. Conv is left out on purpose: it becomes
        ConvInteger, which is several times slower than fp32 Conv on CPUs, and for some types has no kernel at all.
    exclude_nodes: names of nodes that stay fp32.
    weight_type: ``int8`` or ``uint8``.
    per_channel: one scale per output channel of each weight.
    reduce_range: 7-bit weights, for CPUs whose 8-bit products saturate (x86 without VNNI).
    runtime_defaults: exactly what ``onnxruntime.quantization.quantize_dynamic(model, output)`` does, with no
        preparation; the other fields must be left alone.
    """

    op_types: tuple[str, ...] = DEFAULT_OPS
    exclude_nodes: tuple[str, ...] = ()
    weight_type: IntType = "int8"
    per_channel: bool = False
    reduce_range: bool = False
    runtime_defaults: bool = False


class Int8DynamicPass(Pass[Int8DynamicConfig]):
    """Replaces products with constant matrices by integer ones; each run finds the scale of its own activations.

    The scale is taken over the whole batch, so batch-mates change each other's answers slightly.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#dynamic-quantization
    """

    name = "int8-dynamic"
    Config = Int8DynamicConfig

    def __init__(self, config: Int8DynamicConfig) -> None:
        refuse_mixed_defaults(config)
        super().__init__(config)

    def apply(self, model: Model, context: PassContext) -> Model:
        original = read_graph(model)
        with contained(context.workdir) as folder:
            changed = self._quantize(original, folder)
        return finish(model, original, changed, self, context, runtime_version())

    def _quantize(self, original: ModelProto, folder: Path) -> ModelProto:
        source, target = folder / "source.onnx", folder / "target.onnx"
        config = self.config
        if config.runtime_defaults:
            source.write_bytes(original.SerializeToString())
            run_quantizer(lambda: quantize_dynamic(source, target))
            return onnx.load(target)
        prepared = prepare(original, folder)
        nodes = select(prepared, config.op_types, config.exclude_nodes)
        source.write_bytes(prepared.SerializeToString())
        # The quantizer first turns every Gemm into a MatMul of another name, and an Add.
        names = [f"{node.name}_MatMul" if node.op_type == "Gemm" else node.name for node in nodes]
        run_quantizer(
            lambda: quantize_dynamic(
                source,
                target,
                op_types_to_quantize=sorted({"MatMul" if node.op_type == "Gemm" else node.op_type for node in nodes}),
                per_channel=config.per_channel,
                reduce_range=config.reduce_range,
                weight_type=TYPES[config.weight_type],
                nodes_to_quantize=names,
            )
        )
        return onnx.load(target)
