"""Graph simplification by onnxslim."""

from __future__ import annotations

import onnx

from salver.builder.passes._graph import finish, read_graph
from salver.builder.passes._quiet import contained
from salver.builder.passes.base import Pass, PassContext
from salver.core.config import Config
from salver.core.errors import MissingExtra, PassNotApplicable
from salver.core.model import Model

try:
    import onnxslim
except ImportError as error:
    raise MissingExtra("pass 'onnxslim'", "onnxslim", "search") from error


class OnnxslimConfig(Config, frozen=True, kw_only=True):
    """Args:
    fuse: merge operators (Conv and BatchNormalization, MatMul and Add).
    fold: compute what depends on constants only.
    deduplicate: compute equal subgraphs once.
    """

    fuse: bool = True
    fold: bool = True
    deduplicate: bool = True


class OnnxslimPass(Pass[OnnxslimConfig]):
    """Simplifies a graph within standard operators (https://github.com/inisis/OnnxSlim)."""

    name = "onnxslim"
    Config = OnnxslimConfig
    changes_numbers = False
    gives_speed = "little: ONNX Runtime makes most of these rewrites itself when it loads the original"

    def apply(self, model: Model, context: PassContext) -> Model:
        original = read_graph(model)
        skipped = [
            name
            for name, wanted in (
                ("graph_fusion", self.config.fuse),
                ("constant_folding", self.config.fold),
                ("dead_node_elimination", True),
                ("subexpression_elimination", self.config.deduplicate),
                ("weight_tying", self.config.deduplicate),
            )
            if not wanted
        ]
        copy = onnx.ModelProto()
        copy.CopyFrom(original)
        with contained(context.workdir):
            changed = onnxslim.slim(copy, skip_optimizations=skipped or None)
        if changed is None or _shape(changed) == _shape(original):
            raise PassNotApplicable("onnxslim finds nothing to simplify")
        return finish(model, original, changed, self, context, {"onnxslim": onnxslim.__version__})


def _shape(proto: onnx.ModelProto) -> tuple[list[str], int]:
    return sorted(node.op_type for node in proto.graph.node), sum(len(t.raw_data) for t in proto.graph.initializer)
