"""What is done with an ONNX graph that becomes another format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from onnx import ModelProto

from salver.builder.exporters.base import no_route
from salver.builder.importers.base import Imported
from salver.builder.importers.onnx_depth import coarsest_float, find_depth
from salver.builder.importers.onnx_files import copy_bytes, external_tensors, read_onnx, write_onnx
from salver.core.model import Blob, Model


def require_onnx(imported: Imported, to: str) -> None:
    """Refuse a model that did not become an ONNX graph.

    Raises:
        Unimplemented: naming the route that exists.
    """
    if imported.model.format == "onnx":
        return
    raise no_route(
        imported,
        to,
        f"the model runs in its own framework only ('{imported.model.format}'), it did not become an ONNX graph",
        f"'salver build' seals it and 'salver serve' serves it as it is; --to {imported.model.format} may keep it",
    )


class Arithmetic(msgspec.Struct, frozen=True):
    """How a graph computes, for the tolerance of its parity: see `salver.builder.importers.parity.certify`."""

    depth: int
    computed_in: str

    @classmethod
    def of(cls, model: Model) -> Arithmetic:
        """That of an ONNX graph; external data stays where it is."""
        graph = ModelProto.FromString(model.blobs[0].read())
        return cls(find_depth(graph), coarsest_float(graph))


def lay_out(blobs: tuple[Blob, ...], path: Path) -> dict[str, Path]:
    """Write a model at ``path`` and its external data beside it, under names that begin with the model's.

    Returns:
        Name -> file, the main one first.
    """
    names = _names(blobs[1:], path.name)
    if not names:
        copy_blob(blobs[0], path)
        return {path.name: path}
    for blob in blobs[1:]:
        copy_blob(blob, path.with_name(names[blob.name]))
    write_onnx(_relocated(blobs[0], names), path)
    return {path.name: path, **{name: path.with_name(name) for name in names.values()}}


def copy_blob(blob: Blob, target: Path) -> None:
    """Copy a run of bytes to a file of its own."""
    copy_bytes(blob.path, target, blob.offset, blob.size_bytes)


def _names(external: tuple[Blob, ...], main: str) -> dict[str, str]:
    if len(external) == 1:
        return {external[0].name: f"{main}.data"}
    return {blob.name: f"{main}.{number}.data" for number, blob in enumerate(external)}


def _relocated(blob: Blob, names: Mapping[str, str]) -> ModelProto:
    model = read_onnx(blob.path) if blob.is_whole_file else ModelProto.FromString(blob.read())
    for tensor in external_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names[entry.value]
    return model
