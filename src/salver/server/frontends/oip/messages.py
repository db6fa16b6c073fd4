"""What an OIP v2 REST request says, as it is read and once it is decoded."""

from __future__ import annotations

from typing import Any

import msgspec

from salver.core.arrays import Array

Parameters = dict[str, Any]


class OutputWish(msgspec.Struct, frozen=True):
    """How one output is wanted.

    Args:
        binary: after the JSON, as bytes.
        classes: how many of the largest values, as ``value:index[:label]``; 0 for the tensor itself.
    """

    name: str
    binary: bool = False
    classes: int = 0


class Decoded:
    """A request, decoded and checked against the signature.

    Args:
        inputs: name -> array.
        rows: as `Signature.check` returns.
        wishes: how outputs are wanted, in order; None for all of them in JSON.
        id: to be echoed.
        parameters: those of the request.
    """

    __slots__ = ("id", "inputs", "parameters", "rows", "wishes")

    def __init__(
        self,
        inputs: dict[str, Array],
        rows: int,
        wishes: tuple[OutputWish, ...] | None,
        id: str | int | None,
        parameters: Parameters | None,
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.wishes = wishes
        self.id = id
        self.parameters = parameters


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
    parameters: Parameters
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
