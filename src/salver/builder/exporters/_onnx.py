"""ONNX: the graph that every importer makes where it can, as a file of its own."""

from __future__ import annotations

from pathlib import Path

from salver.builder.exporters.base import Exported, Exporter, ExportOptions, exported_model
from salver.builder.exporters.onnx_source import Arithmetic, lay_out, require_onnx
from salver.builder.exporters.prove import prove, reference
from salver.builder.importers.base import Imported
from salver.builder.importers.onnx_finish import backend_versions
from salver.core.dataset import Dataset


class OnnxExporter(Exporter):
    """Writes the imported graph (https://onnx.ai/onnx/repo-docs/IR.html); external data goes to ``NAME.onnx.data``
    beside it. Where the source runs in its own framework, the file is compared with that."""

    name = "onnx"
    format = "onnx"
    suffix = ".onnx"

    def route(self, imported: Imported) -> str:
        require_onnx(imported, self.name)
        return "the imported graph, as it is"

    def export(
        self, imported: Imported, output: Path, workdir: Path, data: Dataset | None, options: ExportOptions
    ) -> Exported:
        files = lay_out(imported.model.blobs, output)
        made = exported_model(self, imported.model, files, options, tools=backend_versions())
        found = Arithmetic.of(imported.model)
        parity = prove(reference(imported), made, data, options, depth=found.depth, computed_in=found.computed_in)
        return Exported(model=made, parity=parity, route=self.route(imported), notes=made.notes)
