"""The route from a JAX function to ONNX, where jax2onnx is installed; the only file that imports it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import onnx

from salver.backends._jax import described_inputs, name_outputs, run_function
from salver.builder.importers.ladder import Rung
from salver.builder.importers.onnx_check import first_line
from salver.builder.importers.onnx_files import all_graphs
from salver.builder.importers.probes import Probe
from salver.core.errors import Unimplemented
from salver.core.tensors import TensorSpec

try:
    import jax2onnx
except ImportError:
    jax2onnx = None

_OPSET: Final = 21
_ERRORS: Final = (
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
)
"""What jax2onnx raises about functions it cannot take."""


def rungs(function: Callable[..., Any] | None, inputs: Sequence[TensorSpec], probe: Probe) -> list[Rung]:
    """Ways to ONNX; of a file there is none, for StableHLO does not become ONNX.

    Args:
        probe: inputs that the function takes, on which it tells the names of its outputs.
    """
    if function is None:
        return [Rung("StableHLO to ONNX", _no_file)]
    return [Rung("jax2onnx", lambda: _convert(function, inputs, probe))]


def _no_file() -> onnx.ModelProto:
    raise Unimplemented("no converter from StableHLO to ONNX is kept; give the function itself, as module:name")


def _convert(function: Callable[..., Any], inputs: Sequence[TensorSpec], probe: Probe) -> onnx.ModelProto:
    if jax2onnx is None:
        raise Unimplemented("it is not installed: pip install jax2onnx")
    names = list(run_function(function, inputs)(probe.inputs))

    def in_order(*arrays: Any) -> tuple[Any, ...]:
        found = name_outputs(function(*arrays))
        return tuple(found[name] for name in names)

    double = any(spec.datatype == "FP64" for spec in inputs)
    try:
        graph: onnx.ModelProto = jax2onnx.to_onnx(
            in_order, described_inputs(inputs), opset=_OPSET, enable_double_precision=double
        )
    except _ERRORS as error:
        raise Unimplemented(first_line(error)) from error
    renamed = {v.name: s.name for v, s in zip(graph.graph.input, inputs, strict=True)}
    renamed |= {value.name: name for value, name in zip(graph.graph.output, names, strict=True)}
    rename(graph, renamed)
    return graph


def rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Give values other names, wherever they are read or made."""
    for graph in all_graphs(model):
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = names.get(value.name, value.name)
