"""Half precision (IEEE binary16)."""

from __future__ import annotations

from typing import Literal

import onnx
from onnx import ModelProto
from onnxruntime.transformers.float16 import convert_float_to_float16

from salver.builder.passes._graph import finish, float_weights, read_graph
from salver.builder.passes._graph_optimize import runtime_version
from salver.builder.passes._half import store_weights
from salver.builder.passes._int8_static import run_quantizer
from salver.builder.passes._quiet import contained
from salver.builder.passes.base import Pass, PassContext
from salver.core.config import Config
from salver.core.errors import PassNotApplicable
from salver.core.model import Model


class Fp16Config(Config, frozen=True, kw_only=True):
    """Args:
    compute: ``fp32`` stores weights in 16 bits and casts them once, at load: half the file, the same speed. ``fp16``
        also computes in 16 bits: for accelerators; a CPU without such kernels casts around every operator.
    """

    compute: Literal["fp32", "fp16"] = "fp32"


class Fp16Pass(Pass[Fp16Config]):
    """Halves the weights; inputs and outputs keep their types. Weights beyond ±65504 stay as they are."""

    name = "fp16"
    Config = Fp16Config
    gives_speed = "none on CPUs, which compute in fp32; half the size"

    def apply(self, model: Model, context: PassContext) -> Model:
        original = read_graph(model)
        changed = ModelProto()
        changed.CopyFrom(original)
        if self.config.compute == "fp32":
            store_weights(changed, "fp16")
            return finish(model, original, changed, self, context, {})
        if not float_weights(original):
            raise PassNotApplicable("the model has no fp32 weights")
        with contained(context.workdir):
            changed = run_quantizer(lambda: _convert(changed))
        return finish(model, original, changed, self, context, runtime_version())


def _convert(proto: ModelProto) -> ModelProto:
    typed = onnx.shape_inference.infer_shapes(proto)
    converted: ModelProto = convert_float_to_float16(typed, keep_io_types=True, disable_shape_infer=True)
    return converted
