"""Requests and responses of one model, in OIP v2 REST's JSON form and its binary tensor extension.

Specification: https://github.com/kserve/open-inference-protocol (inference_rest.md) and Triton's extensions
``binary_data`` and ``classification``. Pure: bytes and arrays in, arrays and bytes out; no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.tensors import Signature, TensorSpec
from salver.server.frontends.access import Peer
from salver.server.frontends.oip.classification import classify
from salver.server.frontends.oip.messages import (
    DEFAULT_LIMITS,
    CodecLimits,
    Decoded,
    OutputWish,
    Parameters,
    PlainRequest,
    RawRequest,
    Region,
)
from salver.server.frontends.oip.model import OipModel, answer_parameters, region_of
from salver.server.frontends.oip.shortcut import UNSURE, Shortcut, asks_only_for_bytes
from salver.server.frontends.shared_memory import SharedMemory
from salver.wire import jsonio
from salver.wire.elements import (
    decode_text,
    from_bytes,
    from_json,
    pack,
    to_bytes,
    to_json,
)

Body = bytes | list[bytes | memoryview]

_MAX_PREFIXES: Final = 64
_SMALL_BYTES: Final = 4096
_NOBODY: Final = Peer()


class ModelCodec(OipModel):
    """Decodes requests for one version of a model and encodes its answers. What can be known beforehand is."""

    def __init__(
        self,
        name: str,
        version: str,
        signature: Signature,
        memory: SharedMemory | None = None,
        limits: CodecLimits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(signature, memory, limits)
        self._opening = b'{"model_name":%b,"model_version":%b,' % (
            msgspec.json.encode(name),
            msgspec.json.encode(version),
        )
        self._prefixes: dict[tuple[str, str, tuple[int, ...]], bytes] = {}
        self._only = signature.outputs[0] if len(signature.outputs) == 1 else None
        self._binary_heads: dict[Any, bytes] = {}
        """Shape and size of the only output, or those of all, -> `_make_binary_head`."""
        self._json_heads: dict[tuple[int, ...], bytes] = {}
        """Shape of the only output -> all that stands before its elements."""
        self._fast = self._choose_fast()

    def _choose_fast(self) -> Shortcut | None:
        if len(self.signature.inputs) != 1 or self.signature.batch_dim is None:
            return None
        spec = self.signature.inputs[0]
        if spec.datatype == "BF16" or not all(isinstance(d, int) for d in spec.shape[1:]):
            return None
        return Shortcut(spec, self.wishes, self.limits)

    def decode(self, body: bytes, header_length: int | None, peer: Peer = _NOBODY) -> Decoded:
        """Read a request.

        Args:
            peer: who asks, for shared memory.
            header_length: the value of ``Inference-Header-Content-Length``: size of the JSON before the tensors; 0 for
                a raw request; None without the field.

        Raises:
            InvalidArgument: it is malformed or does not fit the signature; names the input, given and expected.
            TooLarge: a string, or the nesting of the JSON, is over its limit.
            FailedPrecondition, PermissionDenied, NotFound: as `SharedMemory.read`.
        """
        if self._fast is not None and header_length != 0:
            try:
                decoded = self._fast.decode(body, header_length)
            except UNSURE:
                decoded = None  # the long way says what is wrong, or knows what the short one does not
            if decoded is not None:
                return decoded
        if header_length is None:
            return self._decode_slowly(body, len(body), peer)
        if header_length == 0:
            return self._decode_raw(body)
        if header_length > len(body):
            raise InvalidArgument(
                f"Inference-Header-Content-Length: got {header_length}, but the body has {len(body)} bytes"
            )
        return self._decode_slowly(body, header_length, peer)

    def _decode_slowly(self, body: bytes, header_length: int, peer: Peer) -> Decoded:
        head = body if header_length == len(body) else body[:header_length]
        jsonio.check_depth(head, self.limits.max_json_depth)
        request = _decode_request(head)
        inputs: dict[str, Array] = {}
        position = header_length
        for tensor in request.inputs:
            where = f"input '{tensor.name}'"
            spec = self.find_input(tensor.name, tensor.datatype, (t.name for t in request.inputs), inputs)
            region = region_of(tensor.parameters, where)
            if region is not None:
                if tensor.data is not msgspec.UNSET:
                    raise InvalidArgument(f"{where} has both 'data' and 'shared_memory_region'")
                inputs[tensor.name] = self.read_region(region, spec, tensor.shape, peer)
                continue
            size = _binary_size(tensor.parameters, where)
            if size is None:
                if tensor.data is msgspec.UNSET:
                    raise InvalidArgument(f"{where} has neither 'data' nor 'binary_data_size'")
                inputs[tensor.name] = from_json(tensor.data, tensor.datatype, tensor.shape, where)
                continue
            if tensor.data is not msgspec.UNSET:
                raise InvalidArgument(f"{where} has both 'data' and 'binary_data_size'")
            if size > len(body) - position:
                raise InvalidArgument(
                    f"{where}: binary_data_size is {size}, but {len(body) - position} bytes are left in the body"
                )
            inputs[tensor.name] = from_bytes(body, position, size, tensor.datatype, tensor.shape, where, spec.binary)
            position += size
        if position != len(body):
            raise InvalidArgument(f"{len(body) - position} bytes of the body belong to no input")
        parameters = request.parameters
        wishes = self.wishes(request.outputs, parameters, False)
        if request.outputs is None and parameters is not None and asks_only_for_bytes(parameters):
            parameters = None
        return self.checked(inputs, wishes, request.id, parameters)

    def _decode_raw(self, body: bytes) -> Decoded:
        """A body that is nothing but the elements of the only input."""
        if len(self.signature.inputs) != 1:
            raise InvalidArgument(
                f"a raw request needs a model with one input, this one has {len(self.signature.inputs)}"
            )
        spec = self.signature.inputs[0]
        where = f"input '{spec.name}'"
        dims = [1 if d == self.signature.batch_dim and i == 0 else d for i, d in enumerate(spec.shape)]
        fixed = [d for d in dims if isinstance(d, int)]
        if len(dims) - len(fixed) > 1:
            raise InvalidArgument(f"{where}: a raw request can leave one dimension open, {spec.wire_shape} has more")
        width = int(np.prod(np.array(fixed, np.int64)))
        if spec.datatype == "BYTES":
            shape = [d if isinstance(d, int) else 1 for d in dims]
            if width != 1:
                raise InvalidArgument(f"{where}: a raw request carries one string, expected {width}")
            array = pack([decode_text(body, 0, where, spec.binary)], "BYTES", shape)
        else:
            step = width * spec.dtype.itemsize
            if len(fixed) < len(dims) and step and len(body) % step:
                raise InvalidArgument(f"{where}: got {len(body)} bytes, expected a multiple of {step}")
            shape = [d if isinstance(d, int) else len(body) // step if step else 0 for d in dims]
            array = from_bytes(body, 0, len(body), spec.datatype, shape, where)
        return self.checked({spec.name: array}, self.wishes(None, None, True), None, None)

    def encode(self, decoded: Decoded, outputs: Mapping[str, Array], peer: Peer = _NOBODY) -> tuple[Body, int | None]:
        """Write the answer.

        Args:
            peer: who asked, for shared memory.

        Returns:
            The body, whole or in pieces, and the size of its JSON if tensors follow it.
        """
        if decoded.wishes is self.all_binary and decoded.id is None and decoded.parameters is None:
            return self._encode_binary(outputs)
        opening = self._opening
        if decoded.id is not None:
            opening += b'"id":%b,' % jsonio.ENCODER.encode(decoded.id)
        if decoded.parameters is not None and (repeated := answer_parameters(decoded.parameters)):
            opening += b'"parameters":%b,' % jsonio.encode(repeated)
        if decoded.wishes is not None:
            return self._encode_wishes(opening, decoded.wishes, outputs, peer)
        only = self._only
        if only is not None and opening is self._opening:
            array = outputs[only.name]
            head = self._json_heads.get(array.shape) or self._make_json_head(only, array.shape)
            return b"".join((head, to_json(array, only.datatype), b"}]}")), None
        pieces = [opening, b'"outputs":[']
        for spec in self.signature.outputs:
            array = outputs[spec.name]
            pieces += (self._prefix(spec, array.shape), b',"data":', to_json(array, spec.datatype), b"},")
        pieces[-1] = b"}]}"
        return b"".join(pieces), None

    def _make_json_head(self, spec: TensorSpec, shape: tuple[int, ...]) -> bytes:
        if len(self._json_heads) >= _MAX_PREFIXES:
            self._json_heads.clear()
        head = self._json_heads[shape] = b'%b"outputs":[%b,"data":' % (self._opening, self._prefix(spec, shape))
        return head

    def _encode_binary(self, outputs: Mapping[str, Array]) -> tuple[Body, int | None]:
        """All outputs as bytes, and nothing else to say: the JSON follows from their shapes and sizes."""
        only = self._only
        if only is not None:
            array = outputs[only.name]
            blob = to_bytes(array, only.datatype)
            size = len(blob)
            one = array.shape, size
            head = self._binary_heads.get(one) or self._make_binary_head(one, (one,))
            return head + blob if size < _SMALL_BYTES else [head, blob], len(head)
        arrays = [outputs[spec.name] for spec in self.signature.outputs]
        blobs = [to_bytes(array, spec.datatype) for array, spec in zip(arrays, self.signature.outputs, strict=True)]
        key = tuple((array.shape, len(blob)) for array, blob in zip(arrays, blobs, strict=True))
        head = self._binary_heads.get(key) or self._make_binary_head(key, key)
        return [head, *blobs], len(head)

    def _make_binary_head(self, key: Any, described: tuple[tuple[tuple[int, ...], int], ...]) -> bytes:
        """The JSON of an answer whose outputs have these shapes and sizes in bytes."""
        parts = [
            b'%b,"parameters":{"binary_data_size":%d}}' % (self._prefix(spec, shape), size)
            for spec, (shape, size) in zip(self.signature.outputs, described, strict=True)
        ]
        if len(self._binary_heads) >= _MAX_PREFIXES:
            self._binary_heads.clear()
        head = self._binary_heads[key] = b'%b"outputs":[%b]}' % (self._opening, b",".join(parts))
        return head

    def _encode_wishes(
        self, opening: bytes, wishes: tuple[OutputWish, ...], outputs: Mapping[str, Array], peer: Peer
    ) -> tuple[Body, int | None]:
        parts: list[bytes] = []
        blobs: list[bytes | memoryview] = []
        for wish in wishes:
            spec, array = self._outputs[wish.name], outputs[wish.name]
            if wish.classes:
                array = classify(array, spec, wish.classes, self.signature.batch_dim is not None)
                spec = TensorSpec(name=spec.name, datatype="BYTES", shape=array.shape)
            prefix = self._prefix(spec, array.shape)
            if wish.region is not None:
                blob = to_bytes(array, spec.datatype)
                self.write_region(wish.region, wish.name, blob, peer)
                parts.append(b'%b,"parameters":%b}' % (prefix, _region_parameters(wish.region, len(blob))))
            elif wish.binary:
                blob = to_bytes(array, spec.datatype)
                blobs.append(blob)
                parts.append(b'%b,"parameters":{"binary_data_size":%d}}' % (prefix, len(blob)))
            else:
                parts.append(b'%b,"data":%b}' % (prefix, to_json(array, spec.datatype)))
        head = b'%b"outputs":[%b]}' % (opening, b",".join(parts))
        return [head, *blobs], len(head) if blobs else None

    def _prefix(self, spec: TensorSpec, shape: tuple[int, ...]) -> bytes:
        key = (spec.name, spec.datatype, shape)
        prefix = self._prefixes.get(key)
        if prefix is None:
            if len(self._prefixes) >= _MAX_PREFIXES:
                self._prefixes.clear()
            described = {"name": spec.name, "datatype": spec.datatype, "shape": shape}
            prefix = self._prefixes[key] = jsonio.ENCODER.encode(described)[:-1]
        return prefix


def _decode_request(body: bytes) -> RawRequest | PlainRequest:
    try:
        request: RawRequest = jsonio.decoder_of(RawRequest).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        plain: PlainRequest = jsonio.decode(body, PlainRequest)  # reads NaN and Infinity; else says what is wrong
        return plain
    return request


def _binary_size(parameters: Parameters | None, where: str) -> int | None:
    if not parameters:
        return None
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or not 0 <= size < 1 << 62):
        raise InvalidArgument(f"{where}: binary_data_size is {size!r}, expected a number of bytes")
    return size


def _region_parameters(region: Region, size: int) -> bytes:
    return jsonio.ENCODER.encode(
        {
            "shared_memory_region": region.name,
            "shared_memory_byte_size": size,
            "shared_memory_offset": region.offset,
        }
    )
