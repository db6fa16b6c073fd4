"""TensorFlow's frozen graph: a ``GraphDef`` in the wire format of Protocol Buffers, its variables made constants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from salver.backends.tensorflow_graph import open_saved_model, versions
from salver.builder.exporters.base import Exported, Exporter, ExportOptions, exported_model, no_route
from salver.builder.exporters.graphdef_canonical import canonicalize
from salver.builder.exporters.prove import prove
from salver.builder.exporters.tensorflow_source import saved_model
from salver.builder.importers.base import Imported
from salver.core.dataset import Dataset
from salver.core.errors import MissingExtra, TooLarge
from salver.core.model import Model

try:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
except ImportError as missing:
    raise MissingExtra("exporting a frozen graph", str(missing.name), "tensorflow") from None

_FORMATS: Final = ("keras", "savedmodel")
_MAX_BYTES: Final = (1 << 31) - 1


class ProtobufExporter(Exporter):
    """Writes frozen graphs (``.pb``), as TensorFlow 1, OpenCV and TensorRT read them. Inputs are placeholders, outputs
    the nodes that nothing reads; both have the names Salver serves them by."""

    name = "protobuf"
    format = "graphdef"
    suffix = ".pb"
    extra = "tensorflow"

    def route(self, imported: Imported) -> str:
        self._native(imported)
        return "the TensorFlow graph, its variables made constants"

    def export(
        self, imported: Imported, output: Path, workdir: Path, data: Dataset | None, options: ExportOptions
    ) -> Exported:
        native = self._native(imported)
        saved_model(native, workdir / "saved", workdir)
        function = open_saved_model(workdir / "saved")
        frozen = convert_variables_to_constants_v2(function.concrete, lower_control_flow=False)
        content = _named(frozen, list(function.concrete.structured_outputs)).SerializeToString(deterministic=True)
        if len(content) > _MAX_BYTES:
            raise TooLarge(f"a frozen graph is one message of at most {_MAX_BYTES} bytes; export with --to savedmodel")
        output.write_bytes(content)
        made = exported_model(
            self, imported.model, {output.name: output}, options, signature=native.signature, tools=versions()
        )
        return Exported(model=made, parity=prove(native, made, data, options), route=self.route(imported))

    def _native(self, imported: Imported) -> Model:
        native = imported.native
        if native is not None and native.format in _FORMATS:
            return native
        raise no_route(
            imported,
            self.name,
            "a frozen graph is made from TensorFlow's own graph",
            "export with --to onnx: an ONNX file is a message of Protocol Buffers, too",
        )


def _named(frozen: Any, names: Sequence[str]) -> Any:
    """The graph with outputs of their own names."""
    definition = frozen.graph.as_graph_def()
    canonicalize(definition)
    taken = {node.name for node in definition.node}
    for name, tensor in zip(sorted(names), frozen.outputs, strict=True):
        kind = tf.compat.v1.AttrValue(type=tensor.dtype.as_datatype_enum)
        free = next(n for n in (name, *(f"{name}_{i}" for i in range(len(taken) + 1))) if n not in taken)
        taken.add(free)
        definition.node.add(name=free, op="Identity", input=[tensor.name]).attr["T"].CopyFrom(kind)
    return definition
