"""What a client sends and gets, whatever the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.tensors import NUMPY_DTYPES, to_datatype
from salver.wire.elements import to_bytes

Value = Any
"""What `numpy.asarray` takes, or a `Tensor`."""


class Tensor(msgspec.Struct, frozen=True):
    """An array whose datatype its numpy dtype does not say: BF16, given as ``uint16`` bit patterns.

    Args:
        array: the elements.
        datatype: of the Open Inference Protocol.
    """

    array: Array
    datatype: str


class Named(msgspec.Struct, frozen=True):
    """One input, ready to be written.

    Args:
        data: its bytes, as the binary tensor extension has them.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    array: Array
    data: bytes | memoryview


class InferCall(msgspec.Struct, frozen=True, kw_only=True):
    """One inference to be asked for.

    Args:
        model, version: which; an empty version for the server's choice.
        inputs: in the order given.
        outputs: names wanted; empty for all.
        parameters: of the request, as the protocol's reserved and the server's own.
        id: echoed by the server.
    """

    model: str
    version: str = ""
    inputs: tuple[Named, ...]
    outputs: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}
    id: str = ""

    @property
    def key(self) -> tuple[Any, ...] | None:
        """What two calls have in common when everything but their tensors' bytes is equal; None where parameters or
        an id make that unlikely."""
        if self.parameters or self.id:
            return None
        layout = tuple((i.name, i.datatype, i.shape, len(i.data)) for i in self.inputs)
        return self.model, self.version, layout, self.outputs

    @property
    def is_step(self) -> bool:
        """Whether it is one of a sequence, which must not be run twice."""
        return bool(self.parameters.get("sequence_id"))


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model answered.

    Args:
        outputs: name -> array; BYTES as ``object`` arrays of `bytes`, BF16 as ``uint16`` bit patterns.
        datatypes: name -> datatype of the Open Inference Protocol.
    """

    outputs: dict[str, Array]
    datatypes: dict[str, str]
    model: str
    version: str = ""
    id: str = ""
    parameters: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]


def make_call(
    model: str,
    inputs: Mapping[str, Value],
    version: str,
    outputs: Sequence[str],
    parameters: Mapping[str, Any] | None,
    id: str,
) -> InferCall:
    """Check and lay out one call.

    Raises:
        InvalidArgument: no inputs, an array whose dtype has no datatype, or a parameter that no protocol carries.
    """
    if not inputs:
        raise InvalidArgument(f"model '{model}': no inputs were given")
    for key, value in (parameters or {}).items():
        fits = not isinstance(value, int) or -(1 << 63) <= value < 1 << 64
        if not isinstance(value, bool | int | float | str) or not fits:
            given = f"{value!r} ({type(value).__name__})"
            raise InvalidArgument(f"parameter '{key}' is {given}, expected a bool, a text or a number of 64 bits")
    named = tuple(_lay_out(name, value) for name, value in inputs.items())
    return InferCall(
        model=model,
        version=version,
        inputs=named,
        outputs=tuple(outputs),
        parameters=dict(parameters or {}),
        id=id,
    )


def _lay_out(name: str, value: Value) -> Named:
    if isinstance(value, Tensor):
        array, datatype = np.asarray(value.array), value.datatype
        expected = NUMPY_DTYPES.get(datatype)
        if expected is None or array.dtype != expected:
            known = ", ".join(NUMPY_DTYPES)
            raise InvalidArgument(
                f"input '{name}': got {array.dtype} for datatype '{datatype}', expected {expected or 'one of ' + known}"
            )
    else:
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
        is_bf16 = array.dtype.kind == "V" and array.dtype.name == "bfloat16"  # of the package ml_dtypes
        datatype = "BF16" if is_bf16 else to_datatype(array.dtype)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if datatype == "BYTES" and array.dtype.kind in "US":
        array = array.astype(object)
    return Named(name, datatype, array.shape, array, to_bytes(array, datatype))


_LENGTH: Final = 4


def read_tensor(data: bytes, datatype: str, shape: Sequence[int], where: str) -> Array:
    """An array over the bytes of one output.

    Raises:
        InvalidArgument: the bytes are not those of the datatype and shape.
    """
    dtype = NUMPY_DTYPES.get(datatype)
    if dtype is None:
        raise InvalidArgument(f"{where}: unknown datatype '{datatype}'; valid: {', '.join(NUMPY_DTYPES)}")
    if datatype == "BYTES":
        found = np.empty(len(values := _split(data, where)), dtype=object)
        found[:] = values
        flat: Array = found
    elif len(data) % dtype.itemsize:
        raise InvalidArgument(f"{where}: {len(data)} bytes are no whole number of {datatype} elements")
    else:
        flat = np.frombuffer(data, dtype)
    return _shape(flat, shape, where)


def read_values(values: list[Any], datatype: str, shape: Sequence[int], where: str) -> Array:
    """An array of plain values of the right type.

    Raises:
        InvalidArgument: there are not as many as the shape says, or one does not fit the datatype.
    """
    if datatype == "BYTES":
        texts = np.empty(len(values), dtype=object)
        texts[:] = values
        return _shape(texts, shape, where)
    try:
        return _shape(np.array(values, NUMPY_DTYPES[datatype]), shape, where)
    except OverflowError as error:
        raise InvalidArgument(f"{where}: {error}") from None


def _shape(flat: Array, shape: Sequence[int], where: str) -> Array:
    try:
        shaped = flat.reshape(shape)
    except ValueError:
        raise InvalidArgument(f"{where}: {flat.size} elements do not fill shape {list(shape)}") from None
    if shaped.shape != tuple(shape):  # numpy works out one size of -1
        raise InvalidArgument(f"{where}: shape {list(shape)} has a negative size")
    return shaped


def _split(data: bytes, where: str) -> list[bytes]:
    values: list[bytes] = []
    position, end = 0, len(data)
    while position < end:
        stop = position + _LENGTH + int.from_bytes(data[position : position + _LENGTH], "little")
        if position + _LENGTH > end or stop > end:
            raise InvalidArgument(f"{where}: element {len(values)} claims more bytes than there are")
        values.append(data[position + _LENGTH : stop])
        position = stop
    return values
