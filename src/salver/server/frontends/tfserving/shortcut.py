"""The quick way from bytes to a decoded ``:predict`` request, for the request that most clients send to most models."""

from __future__ import annotations

import struct
from itertools import chain
from typing import Any, Final

import msgspec

from salver.core.arrays import Array
from salver.core.tensors import Signature, TensorSpec
from salver.server.frontends.tfserving.signatures import check_signature_name
from salver.wire.elements import JSON_KINDS, pack

UNSURE: Final = (
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
    struct.error,
    OverflowError,
    FloatingPointError,
)
"""What `Shortcut.decode` raises where it is not sure."""
MAX_RANK: Final = 8
"""Dimensions that the quick way bothers with."""


class Decoded:
    """A request, decoded and checked.

    Args:
        inputs, rows: as `Signature.check` accepts and returns them.
        instances: how many predictions are expected; None where it came by columns.
    """

    __slots__ = ("inputs", "instances", "rows")

    def __init__(self, inputs: dict[str, Array], rows: int, instances: int | None) -> None:
        self.inputs = inputs
        self.rows = rows
        self.instances = instances


class Shortcut:
    """The quick way for the common model, one input ``[batch, fixed, ...]``, and the common request: lists nested as
    the shape says. It knows right from not sure, and leaves what is not sure to the long way."""

    def __init__(self, spec: TensorSpec) -> None:
        self._name = spec.name
        self._datatype = spec.datatype
        self._tail = tuple(d for d in spec.shape[1:] if isinstance(d, int))
        kind: Any = JSON_KINDS[spec.datatype]
        for _ in spec.shape:
            kind = list[kind]
        unset = msgspec.UnsetType
        fields: list[Any] = [
            ("instances", kind | unset, msgspec.UNSET),
            ("inputs", kind | dict[str, kind] | unset, msgspec.UNSET),
            ("signature_name", str | None, None),
        ]
        self._decode = msgspec.json.Decoder(msgspec.defstruct("_FastRequest", fields, gc=False)).decode

    def decode(self, body: bytes) -> Decoded | None:
        """The request; None, or any of `UNSURE` raised, when it is not of the common form."""
        request: Any = self._decode(body)
        check_signature_name(request.signature_name)
        values = request.instances
        by_rows = values is not msgspec.UNSET
        if by_rows:
            if request.inputs is not msgspec.UNSET:
                return None
        else:
            values = request.inputs
            if isinstance(values, dict):
                values = values[self._name] if len(values) == 1 and self._name in values else None
        if not values:  # UNSET is false
            return None
        rows = len(values)
        for size in self._tail:
            for row in values:
                if len(row) != size:
                    return None
            values = values[0] if len(values) == 1 else list(chain.from_iterable(values))
        array = pack(values, self._datatype, [rows, *self._tail])
        return Decoded({self._name: array}, rows, rows if by_rows else None)


def is_common(spec: TensorSpec, signature: Signature) -> bool:
    """Whether the quick way knows the only input of a model."""
    return (
        signature.batch_dim is not None
        and len(spec.shape) <= MAX_RANK
        and all(isinstance(size, int) for size in spec.shape[1:])
    )
