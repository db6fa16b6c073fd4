"""Keras models: `.keras` files, HDF5 files (also of Keras 2), and models in memory."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any, Final

from salver.backends.keras_files import examine
from salver.backends.tensorflow_graph import (
    GraphFunction,
    blob_names,
    function_of,
    keras,
    needs_tensorflow,
    open_keras,
    open_saved_model,
    run_keras,
    save_keras,
    to_array,
    versions,
    write_saved_model,
)
from salver.builder.importers import tensorflow_convert as converter
from salver.builder.importers.base import Imported, Importer, ImportOptions
from salver.builder.importers.ladder import (
    Rung,
    climb,
    leading_of,
    probe_for,
    source_step,
)
from salver.builder.importers.native import native_model
from salver.builder.importers.onnx_finish import Draft, backend_versions
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument
from salver.core.model import Model, Step, digest_bytes

_SUFFIXES: Final = (".keras", ".h5", ".hdf5")
_NATIVE: Final = "native"


class KerasImporter(Importer):
    """Reads ``.keras`` files of Keras 3, HDF5 files of Keras 2 and 3 (https://keras.io), and models in memory.

    The original is the model itself, called with ``training=False``. Routes to ONNX, the first that keeps its answers:
    Keras' own export; tf2onnx at its newest opset.
    """

    name = "keras"

    def recognizes(self, source: Any) -> bool:
        if isinstance(source, Path):
            return source.suffix.lower() in _SUFFIXES
        return isinstance(source, keras.Model)

    def load(self, source: Any, workdir: Path, data: Dataset | None, options: ImportOptions) -> Imported:
        model, step, name = _open(source, options)
        function, native = _native(model, source if isinstance(source, Path) else None, workdir)
        original = function.run
        if getattr(model, "inputs", None):
            original = partial(run_keras, model, function.signature)
        draft = Draft(
            importer=self.name,
            original=original,
            described=f"Keras {keras.__version__} {type(model).__name__}",
            probe=probe_for(function.signature, original, data),
            leading=leading_of(function.signature),
            workdir=workdir,
            options=options,
            lineage=(step,),
            tools={**backend_versions(), **versions(), **converter.versions()},
        )
        old, new = converter.OPSETS
        rungs = [
            Rung("Keras' own export", lambda: converter.convert_by_keras(model, function, name, workdir)),
            Rung(f"tf2onnx at opset {new}", lambda: converter.convert_function(function, name, workdir, new)),
        ]
        if not getattr(model, "inputs", None):
            rungs[0] = Rung(f"tf2onnx at opset {old}", lambda: converter.convert_function(function, name, workdir, old))
        return climb(rungs, draft, native)


def _open(source: Any, options: ImportOptions) -> tuple[Any, Step, str]:
    if isinstance(source, Path):
        model = open_keras(source, trusted=options.trust_pickle)
        return model, source_step(source.name, {source.name: source}), source.name
    needs_tensorflow()
    if not source.built:
        raise InvalidArgument(
            f"the {type(source).__name__} was never built, so that it has no weights; call it once on examples, or "
            "begin it with keras.Input"
        )
    # A model in memory has no bytes of its own: its configuration and weights name its content.
    parts = [f"{weight.path} {digest_bytes(to_array(weight.value).tobytes())}" for weight in source.weights]
    digest = digest_bytes("\n".join([type(source).__name__, *parts]).encode())
    return source, Step(action="source", name=type(source).__name__, output_digest=digest), type(source).__name__


def _native(model: Any, path: Path | None, workdir: Path) -> tuple[GraphFunction, Model]:
    """The model as a function, and as files in the workdir: its Keras file, or a SavedModel where that would hold code
    or what only this process knows."""
    if getattr(model, "inputs", None):
        function = function_of(model)
        if (file := _plain_file(model, path, workdir)) is not None:
            return function, native_model("keras", function.signature, {file.name: file})
    folder = workdir / _NATIVE
    write_saved_model(model, folder)
    files = {name: folder / name for name in blob_names(folder)}
    if not getattr(model, "inputs", None):
        function = open_saved_model(folder)
    return function, native_model("savedmodel", function.signature, files)


def _plain_file(model: Any, path: Path | None, workdir: Path) -> Path | None:
    """A Keras file that anyone may load, or None."""
    suffix = ".keras" if path is None else path.suffix.lower()
    copy = workdir / f"{_NATIVE}{suffix}"
    if path is not None:
        shutil.copyfile(path, copy)
    else:
        save_keras(model, copy)
    contents = examine(copy, trusted=True)
    if not contents.code and not contents.custom:
        return copy
    copy.unlink()
    return None
