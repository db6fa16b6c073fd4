"""The quick way from bytes to a decoded request, for the request that most clients send to most models."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.tensors import TensorSpec
from salver.server.engine.base import Packed
from salver.server.frontends.oip.messages import CodecLimits, Decoded, HeadRequest, OutputWish, Parameters, Wanted
from salver.wire.elements import JSON_KINDS, pack, pack_bytes
from salver.wire.jsonio import check_depth


def _fast_request(kind: type) -> Any:
    """The type of a request whose inputs' data are flat lists of one type: decoded in one go, without `Raw`."""
    tensor = msgspec.defstruct(
        "_FastInput",
        [
            ("name", str),
            ("shape", list[int]),
            ("datatype", str),
            ("data", list[kind]),  # type: ignore[valid-type]  # made at run time, once per type
            ("parameters", Parameters | None, None),
        ],
        gc=False,
    )
    fields: list[Any] = [
        ("inputs", list[tensor]),  # type: ignore[valid-type]  # as above
        ("id", str | int | None, None),
        ("parameters", Parameters | None, None),
        ("outputs", list[Wanted] | None, None),
    ]
    return msgspec.defstruct("_FastRequest", fields, gc=False)


_FAST: Final[dict[type, msgspec.json.Decoder[Any]]] = {
    kind: msgspec.json.Decoder(_fast_request(kind)) for kind in (float, int, bool, str)
}
_HEAD: Final = msgspec.json.Decoder(HeadRequest)
_MAX_KNOWN: Final = 64
_MAX_KNOWN_BYTES: Final = 1024
_SMALL_BYTES: Final = 4096
_BINARY_OUTPUT: Final = {"binary_data_output": True}
UNSURE: Final = (
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
    struct.error,
    OverflowError,
    FloatingPointError,
)
"""What `Shortcut.decode` raises where it is not sure."""


def asks_only_for_bytes(parameters: Parameters) -> bool:
    """Whether parameters say no more than that all outputs are wanted as bytes."""
    return parameters == _BINARY_OUTPUT and parameters["binary_data_output"] is True  # 1 equals True, and is refused


class _Known(NamedTuple):
    """What the JSON of a binary request said, which says the same whenever it comes again."""

    shape: tuple[int, ...]
    size: int
    wishes: tuple[OutputWish, ...] | None
    id: str | int | None
    parameters: Parameters | None


class Shortcut:
    """The quick way for the common model, one input ``[batch, fixed, ...]``, and the common request: flat JSON data, or
    binary. It knows right from not sure, and leaves what is not sure to the long way.

    Args:
        spec: the input.
        wishes: `OutputWishes.read`.
        limits: those of the codec.
    """

    def __init__(
        self, spec: TensorSpec, wishes: Callable[..., tuple[OutputWish, ...] | None], limits: CodecLimits
    ) -> None:
        self._max_depth = limits.max_json_depth
        self._max_bytes = limits.max_string_bytes if spec.datatype == "BYTES" else 1 << 62
        self._name = spec.name
        self._datatype = spec.datatype
        self._dtype = spec.dtype
        self._rank = len(spec.shape)
        self._tail = list(spec.shape[1:])
        self._width = int(np.prod(np.array(self._tail, np.int64)))
        self._decode = _FAST[JSON_KINDS[spec.datatype]].decode
        self._decode_head = _HEAD.decode
        self._binary = spec.datatype not in ("BOOL", "BYTES")
        self._wishes = wishes
        self._all_binary = wishes(None, None, True)
        self._known: dict[bytes, _Known] = {}

    def decode(self, body: bytes, header_length: int | None) -> Decoded | None:
        """The request; None when it is not of the common form.

        Raises:
            any of `UNSURE`: as None.
            InvalidArgument: an output or parameter that does not exist.
        """
        request: Any
        if header_length is None:
            if len(body) > self._max_bytes:
                return None
            request = self._decode(body)
        elif self._binary:
            head = body[:header_length]
            known = self._known.get(head)
            if known is not None and len(body) == header_length + known.size:
                return self._fill(known, body, header_length)
            request = self._decode_head(head)
        else:
            return None
        if len(request.inputs) != 1:
            return None
        tensor = request.inputs[0]
        shape = tensor.shape
        if (
            tensor.name != self._name
            or tensor.datatype != self._datatype
            or len(shape) != self._rank
            or shape[1:] != self._tail
            or shape[0] < 1
        ):
            return None
        count = shape[0] * self._width
        if header_length is None:
            if tensor.parameters is not None or len(tensor.data) != count:
                return None
            packed = pack_bytes(tensor.data, self._datatype)
            read: Array | Packed
            if packed is None:
                read = pack(tensor.data, self._datatype, shape)
            else:
                read = Packed(self._dtype, tuple(shape), packed)
            wishes, parameters = self._read_wishes(request, body)
            return Decoded({self._name: read}, shape[0], wishes, request.id, parameters)
        size = count * self._dtype.itemsize
        if tensor.parameters != {"binary_data_size": size} or len(body) != header_length + size:
            return None
        wishes, parameters = self._read_wishes(request, head)
        known = _Known(tuple(shape), size, wishes, request.id, parameters)
        if header_length <= _MAX_KNOWN_BYTES:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[head] = known
        return self._fill(known, body, header_length)

    def _read_wishes(self, request: Any, head: bytes) -> tuple[tuple[OutputWish, ...] | None, Parameters | None]:
        """The outputs wanted, and the parameters that mean more than that."""
        parameters = request.parameters
        if request.outputs is None and parameters is None:
            return None, None
        if request.outputs is None and asks_only_for_bytes(parameters):
            return self._all_binary, None
        check_depth(head, self._max_depth)
        return self._wishes(request.outputs, parameters, False), parameters

    def _fill(self, known: _Known, body: bytes, start: int) -> Decoded:
        shape, size, wishes, id, parameters = known
        tensor: Array | Packed
        if size <= _SMALL_BYTES:
            tensor = Packed(self._dtype, shape, body[start:])
        elif start % self._dtype.alignment:  # a slice is aligned
            tensor = np.ndarray(shape, self._dtype, body[start:])
        else:
            tensor = np.ndarray(shape, self._dtype, body, start)
        return Decoded({self._name: tensor}, shape[0], wishes, id, parameters)
