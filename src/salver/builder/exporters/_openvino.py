"""OpenVINO IR: the imported graph as OpenVINO's own compiler reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from salver.backends import find_backend
from salver.backends._openvino import read, write
from salver.builder.exporters.base import Exported, Exporter, ExportOptions, exported_model, no_route
from salver.builder.exporters.onnx_source import Arithmetic, copy_blob, lay_out, require_onnx
from salver.builder.exporters.prove import prove, reference
from salver.builder.importers.base import Imported
from salver.core.dataset import Dataset
from salver.core.errors import Unimplemented

_HALF: Final = "FP16"


class OpenvinoExporter(Exporter):
    """Writes ``NAME.xml`` and ``NAME.bin`` (https://docs.openvino.ai), read from the imported graph by OpenVINO's own
    frontend. With ``float16`` the weights take half the place and are turned back where they are used."""

    name = "openvino"
    format = "openvino"
    suffix = ".xml"
    extra = "openvino"
    precisions = ("source", "float16")

    def route(self, imported: Imported) -> str:
        if imported.model.format == self.format:
            return "read and written again by OpenVINO"
        require_onnx(imported, self.name)
        return "the imported graph, read and written by OpenVINO"

    def export(
        self, imported: Imported, output: Path, workdir: Path, data: Dataset | None, options: ExportOptions
    ) -> Exported:
        route = self.route(imported)
        half = options.precision == "float16"
        try:
            graph = read(*_lay_out(imported, workdir))
        except Unimplemented as error:
            why = error.message.partition("': ")[2]
            raise no_route(imported, self.name, why, "export with --to onnx or --to ort") from error
        write(graph, output, float16=half)
        found = Arithmetic.of(imported.model) if imported.model.format == "onnx" else Arithmetic(1, "")
        made = exported_model(
            self,
            imported.model,
            {path.name: path for path in (output, output.with_suffix(".bin"))},
            options,
            tools=find_backend(self.format).versions(),
        )
        computed_in = _HALF if half else found.computed_in
        parity = prove(reference(imported), made, data, options, depth=found.depth, computed_in=computed_in)
        return Exported(model=made, parity=parity, route=route)


def _lay_out(imported: Imported, workdir: Path) -> list[Path]:
    """The graph, and the weights that lie beside it under another name than OpenVINO looks for."""
    if imported.model.format == "onnx":
        return list(lay_out(imported.model.blobs, workdir / "source.onnx").values())[:1]
    files = [workdir / name for name in ("source.xml", "source.bin")]
    for blob, path in zip(imported.model.blobs, files, strict=False):
        copy_blob(blob, path)
    return files[: len(imported.model.blobs)]
