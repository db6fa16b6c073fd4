"""What an OIP v2 request says: as REST reads it, and once it is decoded."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from salver.server.engine.base import Tensors

Parameters = dict[str, Any]


class CodecLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of what a request may hold; see `ServeSettings`."""

    max_json_depth: int = 100
    max_string_bytes: int = 16 << 20


DEFAULT_LIMITS: Final = CodecLimits()


class Region(msgspec.Struct, frozen=True):
    """A part of a region of shared memory, as a request names it.

    Args:
        name: under which the region was registered.
        byte_size, offset: the part of it.
    """

    name: str
    byte_size: int
    offset: int = 0


class OutputWish(msgspec.Struct, frozen=True):
    """How one output is wanted.

    Args:
        binary: after the JSON, as bytes.
        classes: how many of the largest values, as ``value:index[:label]``; 0 for the tensor itself.
        region: where in shared memory it goes; None for into the answer.
    """

    name: str
    binary: bool = False
    classes: int = 0
    region: Region | None = None


class Decoded(msgspec.Struct, eq=False, gc=False):
    """A request, decoded and checked against the signature.

    Args:
        inputs: by name.
        rows: as `Signature.check` returns.
        wishes: how outputs are wanted, in order; None for all of them in JSON.
        id: to be echoed.
        parameters: those of the request.
    """

    inputs: Tensors
    rows: int
    wishes: tuple[OutputWish, ...] | None
    id: str | int | None
    parameters: Parameters | None


class Wanted(msgspec.Struct):
    """An output as a request names it."""

    name: str
    parameters: Parameters | None = None


class RawInput(msgspec.Struct):
    """An input whose data are decoded later, when the datatype is known to be right."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: Parameters | None = None


class RawRequest(msgspec.Struct):
    """A request in JSON, or the JSON of a binary one."""

    inputs: list[RawInput]
    id: str | int | None = None
    parameters: Parameters | None = None
    outputs: list[Wanted] | None = None


class HeadInput(msgspec.Struct, gc=False):
    """An input of a binary request: no data here."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, int]
    data: msgspec.UnsetType = msgspec.UNSET


class HeadRequest(msgspec.Struct, gc=False):
    """The JSON of a binary request."""

    inputs: list[HeadInput]
    id: str | int | None = None
    parameters: Parameters | None = None
    outputs: list[Wanted] | None = None


class PlainInput(msgspec.Struct):
    """An input read by the tolerant parser."""

    name: str
    shape: list[int]
    datatype: str
    data: Any = msgspec.UNSET
    parameters: Parameters | None = None


class PlainRequest(msgspec.Struct):
    """A request that holds NaN or Infinity."""

    inputs: list[PlainInput]
    id: str | int | None = None
    parameters: Parameters | None = None
    outputs: list[Wanted] | None = None
