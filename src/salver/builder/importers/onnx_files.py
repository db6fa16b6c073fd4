"""Read ONNX files that nobody vouches for, and write the imported one with its external data beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError, EncodeError

from salver.core.errors import CorruptArtifact, InvalidArgument, NotFound, TooLarge
from salver.core.model import Blob

_CHUNK_BYTES: Final = 1 << 20
MAX_PROTO_BYTES: Final = (1 << 31) - 1
"""Protocol buffers end here (https://protobuf.dev/programming-guides/proto-limits/)."""


def read_onnx(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file without its external data.

    Raises:
        CorruptArtifact: not an ONNX model.
        TooLarge: over `MAX_PROTO_BYTES`.
    """
    size = path.stat().st_size
    if size > MAX_PROTO_BYTES:
        raise TooLarge(f"'{path}' has {size} bytes, over the {MAX_PROTO_BYTES} of one file; save it with external data")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise CorruptArtifact(f"'{path}' is not an ONNX model, or it is truncated ({size} bytes)") from None
    if model.ir_version < 1 or not (model.graph.node or model.graph.output):
        raise CorruptArtifact(f"'{path}' is not an ONNX model: it has no graph ({size} bytes)")
    return model


def all_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and the bodies of its control flow, outermost first."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop(0)
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Tensors whose data lie in other files."""
    for graph in all_graphs(model):
        inline = (a.t for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.TENSOR)
        for tensor in (*graph.initializer, *inline):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield tensor


def external_files(model: onnx.ModelProto, folder: Path) -> dict[str, Path]:
    """Location -> file of all external data, each found below the model's folder and long enough.

    Raises:
        InvalidArgument: an absolute location, or one that leads out of the folder.
        NotFound: a file is missing.
        CorruptArtifact: a file is shorter than its tensors.
    """
    found: dict[str, Path] = {}
    for tensor in external_tensors(model):
        info = {entry.key: entry.value for entry in tensor.external_data}
        location = info.get("location", "")
        if location not in found:
            found[location] = _locate(tensor.name, location, folder)
        size = found[location].stat().st_size
        offset, length = _number(tensor.name, info, "offset"), _number(tensor.name, info, "length")
        if offset + length > size:
            raise CorruptArtifact(
                f"external data '{location}' is truncated: tensor '{tensor.name}' ends at byte {offset + length}, the "
                "file "
                f"has {size}"
            )
    return found


def _locate(tensor: str, location: str, folder: Path) -> Path:
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if not location or posix.is_absolute() or windows.is_absolute() or windows.drive or ".." in windows.parts:
        raise InvalidArgument(
            f"tensor '{tensor}' refers to external data at '{location}'; expected a file name below the model's own "
            "folder"
        )
    path = folder / posix
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidArgument(f"tensor '{tensor}': external data '{location}' is a link out of the model's folder")
    if not path.is_file():
        raise NotFound(
            f"external data '{location}' of tensor '{tensor}' is missing: put it beside the model in '{folder}'"
        )
    return path


def _number(tensor: str, info: dict[str, str], key: str) -> int:
    text = info.get(key, "0")
    if not text.isdecimal():
        raise CorruptArtifact(f"tensor '{tensor}': external data {key} '{text}' is not a number")
    return int(text)


def copy_external(files: dict[str, Path], folder: Path) -> tuple[Blob, ...]:
    """Copy external data below a folder, under the names the model uses."""
    blobs = []
    for location, path in sorted(files.items()):
        target = folder / location
        if target.resolve() != path.resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_bytes(path, target)
        blobs.append(Blob.of(target, location))
    return tuple(blobs)


def copy_bytes(path: Path, target: Path, offset: int = 0, size_bytes: int | None = None) -> None:
    """Copy a file, or a run of its bytes; where there are only zeros a hole is left, so that a sparse file stays one.

    Raises:
        CorruptArtifact: it is shorter than that.
    """
    left = path.stat().st_size - offset if size_bytes is None else size_bytes
    with path.open("rb") as source, target.open("wb") as out:
        source.seek(offset)
        while left:
            data = source.read(min(_CHUNK_BYTES, left))
            if not data:
                raise CorruptArtifact(f"'{path}' is truncated: {left} bytes are missing")
            left -= len(data)
            if data.count(0) < len(data):
                out.write(data)
            else:
                out.truncate(out.seek(len(data), 1))


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a model; equal models give equal bytes.

    Raises:
        TooLarge: over `MAX_PROTO_BYTES`.
    """
    try:
        data: Any = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise TooLarge(f"'{path.name}' does not fit in one file of {MAX_PROTO_BYTES} bytes: {error}") from None
    path.write_bytes(data)
