"""Keras files."""

from __future__ import annotations

from pathlib import Path

from salver.backends.tensorflow_graph import save_keras, versions
from salver.builder.exporters.base import Exported, Exporter, ExportOptions, exported_model
from salver.builder.exporters.onnx_source import copy_blob
from salver.builder.exporters.prove import prove
from salver.builder.exporters.tensorflow_source import load_keras, require
from salver.builder.importers.base import Imported
from salver.core.dataset import Dataset


class KerasExporter(Exporter):
    """Writes ``.keras`` files (https://keras.io/guides/serialization_and_saving/) of models that were Keras models."""

    name = "keras"
    format = "keras"
    suffix = ".keras"
    extra = "tensorflow"

    def route(self, imported: Imported) -> str:
        native = require(imported, self.name, ("keras",))
        as_it_is = native.path.suffix == self.suffix
        return "the Keras file as it is" if as_it_is else f"the Keras model, saved by Keras as {self.suffix}"

    def export(
        self, imported: Imported, output: Path, workdir: Path, data: Dataset | None, options: ExportOptions
    ) -> Exported:
        native = require(imported, self.name, ("keras",))
        if native.path.suffix == self.suffix:
            copy_blob(native.blobs[0], output)
        else:
            save_keras(load_keras(native, workdir), output)
        files = {output.name: output}
        made = exported_model(self, imported.model, files, options, signature=native.signature, tools=versions())
        return Exported(model=made, parity=prove(native, made, data, options), route=self.route(imported))
