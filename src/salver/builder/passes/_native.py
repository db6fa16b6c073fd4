"""The same model, run by the framework that made it."""

from __future__ import annotations

from salver.builder.passes._graph import require_onnx
from salver.builder.passes._move import move
from salver.builder.passes.base import Pass, PassContext
from salver.core.config import Config
from salver.core.errors import PassNotApplicable
from salver.core.model import Model
from salver.core.tensors import Signature


class NativeConfig(Config, frozen=True, kw_only=True):
    """Nothing can be set: it is the model as its framework keeps it."""


class NativePass(Pass[NativeConfig]):
    """Takes the model as its framework keeps it in the place of the ONNX graph that was made of it. The answers are
    proved to be the same within what rounding can do."""

    name = "native"
    Config = NativeConfig
    changes_numbers = False
    moves = True
    gives_speed = "depends on the operators; a framework asks more of a call than a runtime made for serving"

    def apply(self, model: Model, context: PassContext) -> Model:
        require_onnx(model)
        native = context.native
        if native is None:
            raise PassNotApplicable("the model has no other form that its framework runs")
        if any(step.action == "pass" for step in model.lineage):
            raise PassNotApplicable("what other passes made of the model would be lost: it takes the imported original")
        if set(_names(native.signature)) != set(_names(model.signature)):
            raise PassNotApplicable(
                f"in its framework the tensors have other names: {', '.join(_names(native.signature))}"
            )
        return move(model, native.format, native.blobs, self, context)


def _names(signature: Signature) -> list[str]:
    return [spec.name for spec in (*signature.inputs, *signature.outputs)]
