"""Graph optimization by ONNX Runtime, written to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import onnx
import onnxruntime as ort
from onnx import ModelProto
from onnxruntime.capi import onnxruntime_pybind11_state as state

from salver.builder.passes._graph import finish, read_graph
from salver.builder.passes._quiet import contained
from salver.builder.passes.base import Pass, PassContext
from salver.core.config import Config
from salver.core.errors import PassNotApplicable
from salver.core.model import Model

Level = Literal["basic", "extended", "layout"]

_LEVELS: Final = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "layout": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_FATAL_ONLY: Final = 4

ORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    state.EPFail,
    state.EngineError,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.ModelLoaded,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
    RuntimeError,
)
"""What ONNX Runtime raises when a graph cannot be loaded or run; they share no base class."""


class GraphOptimizeConfig(Config, frozen=True, kw_only=True):
    """Args:
    level: ``basic`` folds constants and removes or merges nodes, and stays within standard operators. ``extended``
        also makes fused operators that only ONNX Runtime has. ``layout`` also bakes in this host's memory layout:
        the file may not load, or be slow, on another CPU.
    """

    level: Level = "basic"


class GraphOptimizePass(Pass[GraphOptimizeConfig]):
    """Stores the graph as ONNX Runtime would rewrite it at load (its offline optimized model).

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html
    """

    name = "graph-optimize"
    Config = GraphOptimizeConfig
    changes_numbers = False
    gives_speed = "a shorter load; ONNX Runtime makes the same rewrites when it loads the original"

    def apply(self, model: Model, context: PassContext) -> Model:
        original = read_graph(model)
        with contained(context.workdir) as folder:
            plain = optimize(original, "none", folder)
            changed = optimize(original, self.config.level, folder)
        if plain.graph == changed.graph:
            raise PassNotApplicable(f"ONNX Runtime finds nothing to optimize at level '{self.config.level}'")
        return finish(model, original, changed, self, context, runtime_version())


def runtime_version() -> dict[str, str]:
    """The tool entry of a lineage step."""
    return {"onnxruntime": ort.__version__}


def optimize(proto: ModelProto, level: Level | Literal["none"], folder: Path) -> ModelProto:
    """The graph after ONNX Runtime's rewrites.

    Raises:
        PassNotApplicable: ONNX Runtime cannot load the graph.
    """
    target = folder / "optimized.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[level]
    options.optimized_model_filepath = str(target)
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = 1
    try:
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise PassNotApplicable(f"ONNX Runtime cannot load the model to optimize it: {first}") from error
    return onnx.load(target)
