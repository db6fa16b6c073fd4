"""The quick way from bytes to a decoded request, for the request that most clients send to most models."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.tensors import TensorSpec
from salver.server.frontends.oip.messages import CodecLimits, Decoded, HeadRequest, OutputWish, Parameters, Wanted
from salver.wire.elements import JSON_KINDS, pack
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


class Shortcut:
    """The quick way for the common model, one input ``[batch, fixed, ...]``, and the common request: flat JSON data, or
    binary. It knows right from not sure, and leaves what is not sure to the long way.

    Args:
        spec: the input.
        wishes: `OipModel.wishes`.
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
            request = self._decode_head(body[:header_length])
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
        array: Array
        if header_length is None:
            if tensor.parameters is not None or len(tensor.data) != count:
                return None
            array = pack(tensor.data, self._datatype)
        else:
            size = count * self._dtype.itemsize
            if tensor.parameters != {"binary_data_size": size} or len(body) != header_length + size:
                return None
            array = np.frombuffer(body, self._dtype, count, header_length)
            if not array.flags.aligned:
                array = array.copy()
        wishes = None
        if request.outputs is not None or request.parameters is not None:
            parameters = request.parameters
            if request.outputs is None and parameters == _BINARY_OUTPUT and parameters["binary_data_output"] is True:
                wishes = self._all_binary  # 1 equals True, and is refused
            else:
                check_depth(body if header_length is None else body[:header_length], self._max_depth)
                wishes = self._wishes(request.outputs, request.parameters, False)
        return Decoded({self._name: array.reshape(shape)}, shape[0], wishes, request.id, request.parameters)
