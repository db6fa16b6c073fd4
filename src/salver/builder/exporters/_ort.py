"""ORT format: a graph as ONNX Runtime's mobile and web builds load it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnxruntime as ort

from salver.builder.exporters.base import Exported, Exporter, ExportOptions, exported_model, no_route
from salver.builder.exporters.onnx_source import Arithmetic, lay_out, require_onnx
from salver.builder.exporters.prove import prove, reference
from salver.builder.importers.base import Imported
from salver.builder.importers.onnx_finish import backend_versions
from salver.builder.passes._graph_optimize import ORT_ERRORS
from salver.core.dataset import Dataset
from salver.core.errors import FailedPrecondition

_MAX_BYTES: Final = (1 << 31) - 1  # flatbuffers end here
_FATAL_ONLY: Final = 4


class OrtExporter(Exporter):
    """Writes ``.ort`` files (https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html) with
    the runtime's optimizations done, those for this machine's memory layout left out: the file runs on any CPU."""

    name = "ort"
    format = "ort"
    suffix = ".ort"

    def route(self, imported: Imported) -> str:
        require_onnx(imported, self.name)
        if imported.model.size_bytes > _MAX_BYTES:
            raise no_route(
                imported,
                self.name,
                f"it has {imported.model.size_bytes} bytes and an .ort file at most {_MAX_BYTES}",
                "export with --to onnx, which keeps weights beside the graph",
            )
        return "the imported graph, optimized and written by ONNX Runtime"

    def export(
        self, imported: Imported, output: Path, workdir: Path, data: Dataset | None, options: ExportOptions
    ) -> Exported:
        route = self.route(imported)
        source = workdir / "source.onnx"
        lay_out(imported.model.blobs, source)
        settings = ort.SessionOptions()
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        settings.optimized_model_filepath = str(output)
        settings.add_session_config_entry("session.save_model_format", "ORT")
        settings.log_severity_level = _FATAL_ONLY
        settings.intra_op_num_threads = 1
        try:
            ort.InferenceSession(str(source), settings, providers=["CPUExecutionProvider"])
        except ORT_ERRORS as error:
            raise FailedPrecondition(f"ONNX Runtime could not write '{output.name}': {error}") from error
        made = exported_model(self, imported.model, {output.name: output}, options, tools=backend_versions())
        found = Arithmetic.of(imported.model)
        parity = prove(reference(imported), made, data, options, depth=found.depth, computed_in=found.computed_in)
        return Exported(model=made, parity=parity, route=route)
