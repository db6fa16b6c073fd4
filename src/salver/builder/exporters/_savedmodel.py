"""TensorFlow's SavedModel."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from salver.backends.tensorflow_graph import versions
from salver.builder.exporters.base import Exported, Exporter, ExportOptions, exported_model
from salver.builder.exporters.prove import prove
from salver.builder.exporters.tensorflow_source import require, saved_model
from salver.builder.importers.base import Imported
from salver.core.dataset import Dataset

_FORMATS: Final = ("keras", "savedmodel")


class SavedmodelExporter(Exporter):
    """Writes SavedModel folders (https://www.tensorflow.org/guide/saved_model) with one signature, ``serving_default``,
    whose inputs and outputs have the names Salver serves them by."""

    name = "savedmodel"
    format = "savedmodel"
    suffix = ""
    extra = "tensorflow"

    def route(self, imported: Imported) -> str:
        native = require(imported, self.name, _FORMATS)
        return "the SavedModel as it is" if native.format == "savedmodel" else "the Keras model, saved by TensorFlow"

    def export(
        self, imported: Imported, output: Path, workdir: Path, data: Dataset | None, options: ExportOptions
    ) -> Exported:
        native = require(imported, self.name, _FORMATS)
        files = saved_model(native, output, workdir)
        source = imported.model
        made = exported_model(self, source, files, options, signature=native.signature, tools=versions())
        return Exported(model=made, parity=prove(native, made, data, options), route=self.route(imported))
