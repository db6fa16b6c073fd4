"""What exporters do that start from a Keras model or a SavedModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from salver.backends.tensorflow_graph import blob_names, open_keras, write_saved_model
from salver.builder.exporters.base import no_route
from salver.builder.exporters.onnx_source import copy_blob
from salver.builder.importers.base import Imported
from salver.core.model import Model


def require(imported: Imported, to: str, formats: tuple[str, ...]) -> Model:
    """The model in its framework's own format.

    Raises:
        Unimplemented: it came from elsewhere; names the route that exists.
    """
    native = imported.native
    if native is not None and native.format in formats:
        return native
    if native is not None and native.format in ("savedmodel", "keras"):
        raise no_route(
            imported,
            to,
            "a SavedModel is a graph, of which the layers are gone",
            "give the .keras or .h5 file it was made from, or export with --to tflite or --to savedmodel",
        )
    raise no_route(
        imported,
        to,
        "no kept converter leads there from another framework",
        "export with --to onnx, or give the Keras model or SavedModel it was made from",
    )


def write_blobs(model: Model, folder: Path) -> dict[str, Path]:
    """Write a model's files below a folder; name -> file."""
    files = {blob.name: folder / blob.name for blob in model.blobs}
    for blob in model.blobs:
        files[blob.name].parent.mkdir(parents=True, exist_ok=True)
        copy_blob(blob, files[blob.name])
    return files


def load_keras(native: Model, workdir: Path) -> Any:
    """The Keras model behind a model of format ``keras``."""
    (path,) = write_blobs(native, workdir).values()
    return open_keras(path, trusted=native.trusted)


def saved_model(native: Model, folder: Path, workdir: Path) -> dict[str, Path]:
    """Write a SavedModel of a model of format ``keras`` or ``savedmodel``; name -> file."""
    if native.format == "savedmodel":
        return write_blobs(native, folder)
    write_saved_model(load_keras(native, workdir / "keras"), folder)
    return {name: folder / name for name in blob_names(folder)}
