"""Brain floating point (bfloat16)."""

from __future__ import annotations

from onnx import ModelProto

from salver.builder.passes._graph import finish, read_graph
from salver.builder.passes._half import store_weights
from salver.builder.passes.base import Pass, PassContext
from salver.core.config import Config
from salver.core.model import Model


class Bf16Config(Config, frozen=True, kw_only=True):
    """No settings."""


class Bf16Pass(Pass[Bf16Config]):
    """Stores weights as bfloat16 (the range of fp32, 8 bits of precision) and casts them to fp32 once, at load."""

    name = "bf16"
    Config = Bf16Config
    gives_speed = "none: the model computes in fp32; half the size"

    def apply(self, model: Model, context: PassContext) -> Model:
        original = read_graph(model)
        changed = ModelProto()
        changed.CopyFrom(original)
        store_weights(changed, "bf16")
        return finish(model, original, changed, self, context, {})
