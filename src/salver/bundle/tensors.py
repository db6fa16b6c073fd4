"""Arrays and golden requests as a manifest (JSON) and one run of raw tensor bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from salver.bundle.golden import GoldenRequest, Kind, Tolerance
from salver.core.arrays import Array
from salver.core.config import canonical_json
from salver.core.errors import CorruptArtifact, InvalidArgument
from salver.core.tensors import NUMPY_DTYPES, Signature, TensorSpec, to_datatype


class TensorEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor: the next ``size_bytes`` of the tensor blob. Little-endian, row by row; BYTES elements as in the Open
    Inference Protocol's binary extension: a 32-bit length, then UTF-8."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size_bytes: int


class RequestEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One golden request; the tensors of ``inputs`` come first."""

    kind: Kind
    inputs: tuple[TensorEntry, ...]
    expected: tuple[TensorEntry, ...]
    tolerances: dict[str, Tolerance]


class GoldenEntry(msgspec.Struct, frozen=True, kw_only=True):
    """All golden requests, in order."""

    requests: tuple[RequestEntry, ...]


def encode_golden(golden: tuple[GoldenRequest, ...], signature: Signature) -> tuple[bytes, bytes]:
    """Manifest and tensor blob.

    Raises:
        InvalidArgument: a request that does not fit the signature.
    """
    chunks: list[bytes] = []

    def add(arrays: Mapping[str, Array], specs: tuple[TensorSpec, ...]) -> tuple[TensorEntry, ...]:
        entries = []
        for spec in specs:
            if spec.name not in arrays:
                continue
            array = arrays[spec.name]
            if array.dtype != spec.dtype:
                raise InvalidArgument(
                    f"golden request: '{spec.name}' is {to_datatype(array.dtype)}, the signature says {spec.datatype}"
                )
            raw = encode_array(array)
            chunks.append(raw)
            entries.append(TensorEntry(name=spec.name, datatype=spec.datatype, shape=array.shape, size_bytes=len(raw)))
        return tuple(entries)

    requests = []
    for request in golden:
        signature.check(request.inputs)
        unknown = [n for n in request.expected if n not in signature.output_names or n not in request.tolerances]
        if unknown or not request.expected:
            raise InvalidArgument(f"golden request: no output, or no tolerance, for {unknown}")
        inputs = add(request.inputs, signature.inputs)
        expected = add(request.expected, signature.outputs)
        tolerances = {e.name: request.tolerances[e.name] for e in expected}
        requests.append(RequestEntry(kind=request.kind, inputs=inputs, expected=expected, tolerances=tolerances))
    return canonical_json(GoldenEntry(requests=tuple(requests))), b"".join(chunks)


def decode_golden(manifest: bytes, blob: bytes) -> tuple[GoldenRequest, ...]:
    """The requests of a manifest and its tensor blob; the arrays are copies.

    Raises:
        CorruptArtifact: they do not fit each other.
    """
    try:
        entries = msgspec.json.decode(manifest, type=GoldenEntry)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"the golden requests cannot be read: {error}") from None
    position = 0

    def take(tensors: tuple[TensorEntry, ...]) -> dict[str, Array]:
        nonlocal position
        arrays = {}
        for entry in tensors:
            raw = blob[position : position + entry.size_bytes]
            position += entry.size_bytes
            arrays[entry.name] = decode_array(raw, entry)
        return arrays

    golden = tuple(
        GoldenRequest(
            inputs=take(entry.inputs), expected=take(entry.expected), tolerances=entry.tolerances, kind=entry.kind
        )
        for entry in entries.requests
    )
    if position != len(blob):
        raise CorruptArtifact(f"the golden requests' tensors are {len(blob)} bytes, their list says {position}")
    return golden


def encode_array(array: Array) -> bytes:
    """The bytes that a `TensorEntry` describes.

    Raises:
        InvalidArgument: an element of an array of objects is no string.
    """
    if array.dtype.kind != "O":
        return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    parts = []
    for element in array.flat:
        if not isinstance(element, str):
            raise InvalidArgument(f"a BYTES element is {type(element).__name__}, expected str")
        raw = element.encode()
        parts += [len(raw).to_bytes(4, "little"), raw]
    return b"".join(parts)


def decode_array(raw: bytes, entry: TensorEntry) -> Array:
    """The array that bytes stand for, as a copy.

    Raises:
        CorruptArtifact: they do not fit what the entry says.
    """
    count = math.prod(entry.shape)
    if entry.datatype not in NUMPY_DTYPES or any(d < 0 for d in entry.shape):
        raise CorruptArtifact(f"tensor '{entry.name}': {entry.datatype} {list(entry.shape)} is no tensor")
    dtype = NUMPY_DTYPES[entry.datatype]
    if entry.datatype == "BYTES":
        return _strings(raw, count, entry)
    if len(raw) != count * dtype.itemsize:
        raise CorruptArtifact(f"tensor '{entry.name}': {len(raw)} bytes for {count} elements")
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(entry.shape)


def _strings(raw: bytes, count: int, entry: TensorEntry) -> Array:
    elements: list[str] = []
    position = 0
    while position < len(raw):
        length = int.from_bytes(raw[position : position + 4], "little")
        element = raw[position + 4 : position + 4 + length]
        position += 4 + length
        try:
            elements.append(element.decode())
        except UnicodeDecodeError as error:
            raise CorruptArtifact(f"tensor '{entry.name}': {error}") from None
    if position != len(raw) or len(elements) != count:
        raise CorruptArtifact(f"tensor '{entry.name}': {len(elements)} strings for {count} elements")
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array.reshape(entry.shape)
