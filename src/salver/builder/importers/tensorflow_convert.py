"""TensorFlow graphs and TensorFlow Lite files -> ONNX, by tf2onnx; the only file that imports it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from salver.backends.tensorflow_graph import GraphFunction, first_line
from salver.builder.importers.onnx_canonical import canonicalize
from salver.builder.importers.onnx_check import check_model, check_operators
from salver.builder.importers.onnx_edit import rename_value
from salver.builder.importers.onnx_files import read_onnx
from salver.builder.importers.onnx_signature import set_shape, shape_of
from salver.core.errors import MissingExtra, Unimplemented
from salver.core.tensors import Signature, TensorSpec

try:
    import tf2onnx
    from tf2onnx import convert as tf2onnx_convert
except ImportError as missing:
    raise MissingExtra("converting a TensorFlow model", str(missing.name), "tensorflow") from None

OPSETS: Final = (15, 18)
"""tf2onnx' own choice, and the newest it knows."""

_UNKNOWN: Final = re.compile("^unk__[0-9]+$")  # counted on from one conversion to the next

logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it cannot convert is found in the graph, by name


def versions() -> dict[str, str]:
    """Version of tf2onnx."""
    return {"tf2onnx": tf2onnx.__version__}


def convert_function(function: GraphFunction, name: str, workdir: Path, opset: int) -> onnx.ModelProto:
    """An ONNX graph of a TensorFlow function, checked, with its inputs and outputs by name.

    Raises:
        Unimplemented: naming the operator that has no counterpart, or what tf2onnx says.
        CorruptArtifact: the checker refuses what tf2onnx made.
    """
    graph = _run(lambda: tf2onnx_convert.from_function(_Given(function), input_signature=(), opset=opset)[0], name)
    return _checked(graph, _names(function.signature.inputs), function.flat_outputs, function.signature, name, workdir)


def convert_tflite(path: Path, signature: Signature, workdir: Path, opset: int) -> onnx.ModelProto:
    """An ONNX graph of a TensorFlow Lite file, checked, with the names of its signature.

    Raises:
        Unimplemented, CorruptArtifact: as `convert_function`.
    """
    graph = _run(lambda: tf2onnx_convert.from_tflite(str(path), opset=opset)[0], path.name)
    return _checked(graph, _names(signature.inputs), _names(signature.outputs), signature, path.name, workdir)


def convert_by_keras(model: Any, function: GraphFunction, name: str, workdir: Path) -> onnx.ModelProto:
    """An ONNX graph of a Keras model by Keras' own export, checked, with the names of its function.

    Raises:
        Unimplemented, CorruptArtifact: as `convert_function`.
    """
    path = workdir / "by-keras.onnx"

    def export() -> onnx.ModelProto:
        try:
            model.export(path, format="onnx", verbose=False)
            return read_onnx(path)
        finally:
            path.unlink(missing_ok=True)

    signature = function.signature
    return _checked(_run(export, name), _names(signature.inputs), _names(signature.outputs), signature, name, workdir)


class _Given:
    """A function of which tf2onnx need not make a concrete one."""

    def __init__(self, function: GraphFunction) -> None:
        self._function = function

    def get_concrete_function(self) -> Any:
        return self._function.concrete


def _run(convert: Callable[[], onnx.ModelProto], name: str) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not hasattr(np, "object"):
            np.object = object  # type: ignore[attr-defined]  # tf2onnx 1.17 still asks for it
        try:
            return convert()
        except Exception as error:  # boundary: a converter meets a graph it was not written for
            text = first_line(error)
            raise Unimplemented(f"tf2onnx {tf2onnx.__version__} cannot convert '{name}': {text}") from error


def _names(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs]


def _checked(
    graph: onnx.ModelProto,
    inputs: Sequence[str],
    outputs: Sequence[str],
    signature: Signature,
    name: str,
    workdir: Path,
) -> onnx.ModelProto:
    """The graph with the names ``inputs`` and ``outputs``, by position where it has others, in the signature's
    order."""
    graph.graph.name, graph.graph.doc_string, graph.doc_string = "graph", "", ""
    _rename(graph.graph, inputs, outputs)
    canonicalize(graph)
    for values, specs in ((graph.graph.input, signature.inputs), (graph.graph.output, signature.outputs)):
        order = _names(specs)
        values.sort(key=lambda value: order.index(value.name))
        for value in values:
            set_shape(value, tuple(_UNKNOWN.sub("?", d) if isinstance(d, str) else d for d in shape_of(value)))
    check_operators(graph, name)
    check_model(graph, name, workdir)
    return graph


def _rename(graph: onnx.GraphProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    for values, wanted in ((graph.input, inputs), (graph.output, outputs)):
        given = [value.name for value in values]
        if len(wanted) != len(given):
            raise Unimplemented(f"the graph has {len(given)} inputs or outputs where {len(wanted)} were meant")
        for i, (old, new) in enumerate(zip(given, wanted, strict=True)):
            if set(given) != set(wanted):
                rename_value(graph, new, f"{new}__0")  # what has that name inside gives way
                rename_value(graph, old, new)
                values[i].name = new
