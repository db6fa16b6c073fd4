"""``.pt``: TorchScript."""

from __future__ import annotations

import shutil
from pathlib import Path

from salver.builder.exporters.base import Exported, Exporter, ExportOptions, exported_model, no_route
from salver.builder.exporters.prove import prove
from salver.builder.importers.base import Imported
from salver.core.dataset import Dataset
from salver.core.errors import MissingExtra, Unimplemented
from salver.core.model import Model
from salver.core.tensors import Signature

try:
    import torch
except ImportError as missing:
    raise MissingExtra("exporting to TorchScript", str(missing.name), "torch") from None

from salver.backends.torch_programs import load_program, save_torchscript
from salver.builder.importers.torch_reasons import explained
from salver.builder.importers.torch_rungs import exporting
from salver.builder.importers.torch_scripting import script_program

_AS_IT_IS = "the TorchScript of the source, as it is"


class TorchscriptExporter(Exporter):
    """Writes TorchScript (https://docs.pytorch.org/docs/stable/jit.html), for LibTorch and older PyTorch, compared with
    the imported model. Only for sources of PyTorch; the graph of an ExportedProgram is compiled."""

    name = "torchscript"
    format = "torchscript"
    suffix = ".pt"
    extra = "torch"

    def route(self, imported: Imported) -> str:
        native = imported.native
        if native is None or native.format not in ("pt2", "torchscript"):
            raise no_route(imported, self.name, "its source is no model of PyTorch", "export with --to onnx")
        if native.format == "torchscript":
            return _AS_IT_IS
        return "compiled from the program that torch.export made of the source"

    def export(
        self, imported: Imported, output: Path, workdir: Path, data: Dataset | None, options: ExportOptions
    ) -> Exported:
        route = self.route(imported)
        native = imported.native or imported.model
        if native.format == self.format:
            shutil.copyfile(native.path, output)
        else:
            self._compile(imported, native, output)
        tools = {"torch": str(torch.__version__)}
        made = exported_model(self, native, {output.name: output}, options, tools=tools)
        parity = prove(imported.model, made, data, options)
        return Exported(model=made, parity=parity, route=route, notes=made.notes)

    def _compile(self, imported: Imported, native: Model, output: Path) -> None:
        program = load_program(native.blobs[0])
        own = program.signature or native.signature
        matched = {s.name for s in own.inputs} == {s.name for s in native.signature.inputs}
        specs = tuple(native.signature.input(s.name) for s in own.inputs) if matched else native.signature.inputs
        try:
            with explained(), exporting():
                script = script_program(program.object)
        except Unimplemented as error:
            why = f"TorchScript's compiler does not take its graph ({error.message})"
            raise no_route(imported, self.name, why, "export with --to pt2") from error
        save_torchscript(script, Signature(inputs=specs, outputs=native.signature.outputs), output)
