"""TensorFlow's SavedModels and frozen graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from salver.backends.tensorflow_graph import (
    MAIN,
    GraphFunction,
    blob_names,
    open_frozen,
    open_saved_model,
    versions,
    write_function,
)
from salver.builder.importers import tensorflow_convert as converter
from salver.builder.importers.base import Imported, Importer, ImportOptions
from salver.builder.importers.ladder import (
    Rung,
    climb,
    copy_files,
    leading_of,
    probe_for,
    source_step,
)
from salver.builder.importers.native import native_model
from salver.builder.importers.onnx_finish import Draft, backend_versions
from salver.core.dataset import Dataset
from salver.core.errors import NotFound
from salver.core.model import Model

_NATIVE: Final = "native"


class SavedmodelImporter(Importer):
    """Reads SavedModel folders (https://www.tensorflow.org/guide/saved_model) and frozen graphs (``.pb``).

    Of a SavedModel's signatures the one called ``serving_default`` is taken, or the only one; of a frozen graph the
    inputs are its placeholders and the outputs what nothing reads. The original is that function, run by TensorFlow.
    """

    name = "savedmodel"

    def recognizes(self, source: Any) -> bool:
        if not isinstance(source, Path):
            return False
        return source.suffix.lower() == ".pb" or (source / MAIN).is_file()

    def load(self, source: Any, workdir: Path, data: Dataset | None, options: ImportOptions) -> Imported:
        path = source.parent if source.name == MAIN else source
        if not path.exists():
            raise NotFound(f"no such model file: '{source}'")
        function, native, files = _open_folder(path, workdir) if path.is_dir() else _open_file(path, workdir)
        name = path.name
        draft = Draft(
            importer=self.name,
            original=function.run,
            described=f"{name}, TensorFlow {versions()['tensorflow']}",
            probe=probe_for(function.signature, function.run, data),
            leading=leading_of(function.signature),
            workdir=workdir,
            options=options,
            lineage=(source_step(name, files),),
            tools={**backend_versions(), **versions(), **converter.versions()},
        )
        rungs = [_rung(function, name, workdir, opset) for opset in converter.OPSETS]
        return climb(rungs, draft, native)


def _rung(function: GraphFunction, name: str, workdir: Path, opset: int) -> Rung:
    return Rung(f"tf2onnx at opset {opset}", lambda: converter.convert_function(function, name, workdir, opset))


def _open_folder(folder: Path, workdir: Path) -> tuple[GraphFunction, Model, dict[str, Path]]:
    function = open_saved_model(folder)
    names = blob_names(folder)
    copies = copy_files(folder, names, workdir / _NATIVE)
    return function, native_model("savedmodel", function.signature, copies), {name: folder / name for name in names}


def _open_file(path: Path, workdir: Path) -> tuple[GraphFunction, Model, dict[str, Path]]:
    function = open_frozen(path)
    folder = workdir / _NATIVE
    write_function(function, folder)
    files = {name: folder / name for name in blob_names(folder)}
    return function, native_model("savedmodel", function.signature, files), {path.name: path}
