"""``.pt2``: an ExportedProgram of PyTorch."""

from __future__ import annotations

import shutil
from pathlib import Path

from salver.backends import find_backend
from salver.builder.exporters.base import Exported, Exporter, ExportOptions, exported_model, no_route
from salver.builder.exporters.prove import prove
from salver.builder.importers.base import Imported
from salver.core.dataset import Dataset


class Pt2Exporter(Exporter):
    """Writes the program that `torch.export` made of the source (https://docs.pytorch.org/docs/stable/export.html),
    compared with the imported model. Only for sources of PyTorch."""

    name = "pt2"
    format = "pt2"
    suffix = ".pt2"
    extra = "torch"

    def route(self, imported: Imported) -> str:
        native = imported.native
        if native is None or native.format not in ("pt2", "torchscript"):
            raise no_route(imported, self.name, "its source is no model of PyTorch", "export with --to onnx")
        if native.format == "torchscript":
            why = "it exists as TorchScript only, which torch.export does not take"
            raise no_route(imported, self.name, why, "export with --to torchscript")
        return "the program that torch.export made of the source, as it is"

    def export(
        self, imported: Imported, output: Path, workdir: Path, data: Dataset | None, options: ExportOptions
    ) -> Exported:
        route = self.route(imported)
        native = imported.native or imported.model
        shutil.copyfile(native.path, output)
        tools = find_backend(self.format).versions()
        made = exported_model(self, native, {output.name: output}, options, tools=tools)
        parity = prove(imported.model, made, data, options)
        return Exported(model=made, parity=parity, route=route, notes=made.notes)
