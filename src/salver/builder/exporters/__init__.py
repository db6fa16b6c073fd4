"""An imported model -> a file in another format, compared with its source before it stands in its place."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from salver.builder.exporters.base import Exported, Exporter, ExportOptions, no_route
from salver.builder.importers.base import Imported
from salver.bundle.archive import publish, translate
from salver.core.dataset import Dataset
from salver.core.errors import AlreadyExists, InvalidArgument, NotFound, UnknownName
from salver.core.registry import Family

# By the name that `--to` takes; a member that many know by another name has a row in `ALIASES`, too.
BUILTIN: Final = {
    "onnx": "salver.builder.exporters._onnx:OnnxExporter",
    "ort": "salver.builder.exporters._ort:OrtExporter",
    "openvino": "salver.builder.exporters._openvino:OpenvinoExporter",
    "safetensors": "salver.builder.exporters._safetensors:SafetensorsExporter",
    "pt2": "salver.builder.exporters._pt2:Pt2Exporter",
    "torchscript": "salver.builder.exporters._torchscript:TorchscriptExporter",
    "keras": "salver.builder.exporters._keras:KerasExporter",
    "h5": "salver.builder.exporters._h5:H5Exporter",
    "savedmodel": "salver.builder.exporters._savedmodel:SavedmodelExporter",
    "protobuf": "salver.builder.exporters._protobuf:ProtobufExporter",
    "tflite": "salver.builder.exporters._tflite:TfliteExporter",
}
ALIASES: Final = {"litert": "tflite", "hdf5": "h5", "saved-model": "savedmodel", "pb": "protobuf"}

EXPORTERS: Final[Family[type[Exporter]]] = Family("exporters", BUILTIN)

__all__ = [
    "ALIASES",
    "BUILTIN",
    "EXPORTERS",
    "ExportOptions",
    "Exported",
    "Exporter",
    "export_model",
    "find_exporter",
    "no_route",
]


def find_exporter(to: str, precision: str = "source") -> Exporter:
    """The exporter of a format by its name, in any case.

    Raises:
        UnknownName: there is none; the valid ones are listed.
        InvalidArgument: it does not write that precision.
        MissingExtra: it needs an optional library.
    """
    name = ALIASES.get(to.lower(), to.lower())
    if name not in BUILTIN and name not in EXPORTERS.names():
        raise UnknownName("format", to, EXPORTERS.names())
    exporter = EXPORTERS.get(name)()
    if precision not in exporter.precisions:
        raise InvalidArgument(
            f"'{exporter.name}' is not written with precision '{precision}'; valid: {', '.join(exporter.precisions)}"
        )
    return exporter


def export_model(
    imported: Imported,
    exporter: Exporter,
    output: Path,
    *,
    data: Dataset | None = None,
    options: ExportOptions | None = None,
) -> Exported:
    """Write a model in another format. It stands at ``output`` complete and compared, or not at all: it is made beside
    it and moved.

    Raises:
        Unimplemented: there is no clean route; names the one that exists.
        ParityFailed: what was written gives other answers.
        ResourceExhausted, PermissionDenied, NotFound: the disk is full, the folder may not be written or is missing.
        AlreadyExists: a folder stands where the result would.
    """
    exporter.route(imported)
    output = output.absolute()
    if not output.parent.is_dir():
        raise NotFound(f"no such folder for the result: '{output.parent}'; make it, or name another with -o")
    if output.is_dir():
        raise AlreadyExists(f"'{output}' is a folder; remove it, or name another place with -o")
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.", suffix=".partial") as folder:
            made, workdir = Path(folder) / "made", Path(folder) / "work"
            made.mkdir()
            workdir.mkdir()
            exported = exporter.export(imported, made / output.name, workdir, data, options or ExportOptions())
            shutil.rmtree(workdir)
            return _place(exported, made, output.parent)
    except OSError as error:
        raise translate(error, output) from error


def _place(exported: Exported, made: Path, folder: Path) -> Exported:
    """Flush what was made and move it: what belongs to the main file first, that one last."""
    main = exported.model.path.relative_to(made).parts[0]
    for path in sorted(made.rglob("*")):
        if path.is_file():
            _flush(path)
    for path in sorted(made.iterdir(), key=lambda p: p.name == main):
        publish(path, folder / path.name)
    blobs = tuple(
        msgspec.structs.replace(blob, path=folder / blob.path.relative_to(made)) for blob in exported.model.blobs
    )
    return msgspec.structs.replace(exported, model=msgspec.structs.replace(exported.model, blobs=blobs))


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
