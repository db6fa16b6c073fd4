"""Requests and responses of one model in OIP v2's gRPC form.

Specification: https://github.com/kserve/open-inference-protocol (inference_grpc.md) and Triton's extensions. Tensors
come raw (``raw_input_contents``) or typed (``contents``); answers are given in the form of the request. FP16 and BF16
have no typed form.
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
    OutputWish,
    Parameters,
    Region,
    Wanted,
)
from salver.server.frontends.oip.model import OipModel, answer_parameters, region_of
from salver.server.frontends.oip.protos import OIP
from salver.server.frontends.shared_memory import SharedMemory
from salver.wire.elements import decode_text, from_bytes, from_values, to_bytes
from salver.wire.protobuf import CONTENTS, delimited, delimited_head

_NAME, _VERSION, _ID, _OUTPUTS, _RAW = 1, 2, 3, 5, 6
_MAX_FRAMES: Final = 64
_MAX_PARAMETERS: Final = 1024
_MAX_NAMED: Final = 1024  # inputs of a request that a message about unknown ones looks at
_NOBODY: Final = Peer()
_RESPONSE: Final = OIP.message("inference.ModelInferResponse")
_OUTPUT: Final = OIP.message("inference.ModelInferResponse.InferOutputTensor")


class GrpcPlan(msgspec.Struct, frozen=True, gc=False):
    """What a request asks for besides its elements and its id.

    Args:
        rows: as `Signature.check` returns.
        wishes: how outputs are wanted, in order; None for all of them.
        outputs: names to ask the engine for; None for everything.
        parameters: those of the request; None for none.
        typed: whether tensors came as typed contents, so that the answer's should be.
        echo: the answer's parameters, as they are written.
    """

    rows: int
    wishes: tuple[OutputWish, ...] | None = None
    outputs: tuple[str, ...] | None = None
    parameters: Parameters | None = None
    typed: bool = False
    echo: bytes = b""


class GrpcCodec(OipModel):
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
        self._head = delimited(_NAME, name.encode()) + delimited(_VERSION, version.encode())
        self._names = signature.output_names
        self._only = self._names[0] if len(self._names) == 1 else None
        self._is_sized = all(spec.datatype != "BYTES" for spec in signature.outputs)
        self._has_typed = all(spec.datatype in CONTENTS for spec in signature.outputs)
        self._frames: dict[Any, tuple[bytes, ...]] = {}
        """Shape of the only output, or shapes of all, -> `_make_frames`."""

    def decode(self, request: Any, peer: Peer = _NOBODY) -> tuple[dict[str, Array], GrpcPlan]:
        """Take a ``ModelInferRequest``.

        Args:
            peer: who asks, for shared memory.

        Returns:
            Arrays by name, and the rest.

        Raises:
            InvalidArgument: it does not fit the signature; names the input, what was given and what is expected.
            TooLarge: a string is over its limit.
            FailedPrecondition, PermissionDenied, NotFound: as `SharedMemory.read`.
        """
        raw = request.raw_input_contents
        names = [tensor.name for tensor in request.inputs[:_MAX_NAMED]]
        inputs: dict[str, Array] = {}
        position = 0
        typed = False
        for tensor in request.inputs:
            where = f"input '{tensor.name}'"
            shape = list(tensor.shape)
            spec = self.find_input(tensor.name, tensor.datatype, names, inputs)
            region = region_of(_plain(tensor.parameters, where), where) if tensor.parameters else None
            has_contents = tensor.HasField("contents")
            if region is not None:
                if has_contents:
                    raise InvalidArgument(f"{where} has both contents and shared_memory_region")
                inputs[tensor.name] = self.read_region(region, spec, shape, peer)
            elif has_contents or not raw:
                if raw:
                    raise InvalidArgument(f"{where} has contents, which cannot stand beside raw_input_contents")
                inputs[tensor.name] = _from_contents(tensor.contents, spec, shape, where)
                typed |= has_contents
            elif position == len(raw):
                raise InvalidArgument(f"{where} has no data: there are only {position} raw_input_contents")
            else:
                data = raw[position]
                inputs[tensor.name] = from_bytes(data, 0, len(data), spec.datatype, shape, where, spec.binary)
                position += 1
        if position < len(raw):
            raise InvalidArgument(f"{len(raw)} raw_input_contents for {position} inputs that take one")
        parameters = _plain(request.parameters, "request") if request.parameters else None
        most = len(self._outputs) + 1  # one more, and one of them is unknown or comes twice
        wanted = [Wanted(o.name, _plain(o.parameters, f"output '{o.name}'")) for o in request.outputs[:most]]
        wishes = self.wishes(wanted, parameters, False)
        rows = self.check(inputs)
        return inputs, GrpcPlan(rows, wishes, self.output_names(wishes), parameters, typed, _echo(parameters))

    def encode(self, plan: GrpcPlan, id: str, outputs: Mapping[str, Array], peer: Peer = _NOBODY) -> bytes:
        """Write a ``ModelInferResponse``.

        Args:
            plan, id: of the request.
            peer: who asked, for shared memory.

        Raises:
            SalverError: as `write_region`, and as `classify`.
        """
        if plan.typed or plan.wishes is not None or not self._is_sized:
            return self._encode_any(plan, id, outputs, peer)
        only = self._only
        if only is not None:
            array = outputs[only]
            frames = self._frames.get(array.shape) or self._make_frames(array.shape, (array.shape,))
            opening = _opening(plan, id) if id else plan.echo
            try:  # to ask an array whether its memory is its elements in order costs as much as the rest
                return b"".join((frames[0], opening, frames[1], array))  # type: ignore[arg-type]  # a buffer
            except TypeError:  # it is not
                return b"".join((frames[0], opening, frames[1], array.tobytes()))
        arrays = [outputs[name] for name in self._names]
        shapes = tuple(array.shape for array in arrays)
        frames = self._frames.get(shapes) or self._make_frames(shapes, shapes)
        parts = [frames[0], _opening(plan, id)]
        for frame, array in zip(frames[1:], arrays, strict=True):
            parts += (frame, _plain_bytes(array))
        return b"".join(parts)

    def _make_frames(self, key: Any, shapes: tuple[tuple[int, ...], ...]) -> tuple[bytes, ...]:
        """What stands before the id, before the elements of the first output, and before those of each further one."""
        described = []
        tensors = []
        for spec, shape in zip(self.signature.outputs, shapes, strict=True):
            described.append(delimited(_OUTPUTS, _describe(spec.name, spec.datatype, shape)))
            size = int(np.prod(np.array(shape, np.int64))) * spec.dtype.itemsize
            tensors.append(delimited_head(_RAW, size))
        tensors[0] = b"".join(described) + tensors[0]
        if len(self._frames) >= _MAX_FRAMES:
            self._frames.clear()
        frames = self._frames[key] = (self._head, *tensors)
        return frames

    def _encode_any(self, plan: GrpcPlan, id: str, outputs: Mapping[str, Array], peer: Peer) -> bytes:
        wishes = plan.wishes or tuple(OutputWish(name) for name in self._names)
        typed = plan.typed and self._has_typed and not any(wish.region for wish in wishes)
        described: list[bytes] = []
        elements: list[bytes | memoryview] = []
        for wish in wishes:
            spec, array = self._outputs[wish.name], outputs[wish.name]
            if wish.classes:
                array = classify(array, spec, wish.classes, self.signature.batch_dim is not None)
                spec = TensorSpec(name=spec.name, datatype="BYTES", shape=array.shape)
            if typed:
                described.append(delimited(_OUTPUTS, _typed(spec, array)))
                continue
            data = to_bytes(array, spec.datatype)
            if wish.region is not None:
                self.write_region(wish.region, wish.name, data, peer)
                described.append(delimited(_OUTPUTS, _describe(spec.name, spec.datatype, array.shape, wish.region)))
                data = b""  # one for every output, so that clients can count them
            else:
                described.append(delimited(_OUTPUTS, _describe(spec.name, spec.datatype, array.shape)))
            elements += (delimited_head(_RAW, len(data)), data)
        return b"".join((self._head, _opening(plan, id), *described, *elements))


def _opening(plan: GrpcPlan, id: str) -> bytes:
    """The id and the parameters of the answer."""
    return delimited(_ID, id.encode()) + plan.echo if id else plan.echo


def _echo(parameters: Parameters | None) -> bytes:
    """The answer's parameters."""
    repeated = answer_parameters(parameters)
    if not repeated:
        return b""
    answer = _RESPONSE()
    _fill(answer.parameters, repeated)
    written: bytes = answer.SerializeToString()
    return written


def _plain(parameters: Any, where: str) -> Parameters:
    """A map of ``InferParameter`` as plain values."""
    if len(parameters) > _MAX_PARAMETERS:
        raise InvalidArgument(f"{where}: got {len(parameters)} parameters, at most {_MAX_PARAMETERS} can be")
    values: Parameters = {}
    for name in parameters:
        choice = parameters[name].WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidArgument(f"{where}: parameter '{name}' has no value")
        values[name] = getattr(parameters[name], choice)
    return values


def _fill(parameters: Any, values: Mapping[str, bool | int | str]) -> None:
    """Write plain values into a map of ``InferParameter``."""
    for name, value in values.items():
        setattr(parameters[name], _kind(value), value)


def _kind(value: bool | int | str) -> str:
    if isinstance(value, bool):
        return "bool_param"
    if isinstance(value, str):
        return "string_param"
    return "int64_param" if value < 1 << 63 else "uint64_param"


def _from_contents(contents: Any, spec: TensorSpec, shape: list[int], where: str) -> Array:
    """An array from ``InferTensorContents``."""
    datatype = spec.datatype
    field = CONTENTS.get(datatype)
    for other, _ in contents.ListFields():
        if other.name != field:
            raise InvalidArgument(f"{where}: got {other.name}, {datatype} goes into {field or 'raw_input_contents'}")
    if field is None:
        raise InvalidArgument(f"{where}: {datatype} has no typed contents; send it in raw_input_contents")
    values = list(getattr(contents, field))
    if datatype == "BYTES":
        values = [decode_text(value, index, where, spec.binary) for index, value in enumerate(values)]
    return from_values(values, datatype, shape, where)


def _typed(spec: TensorSpec, array: Array) -> bytes:
    """An ``InferOutputTensor`` with its elements."""
    tensor = _OUTPUT(name=spec.name, datatype=spec.datatype, shape=array.shape)
    values = array.reshape(-1).tolist()
    if spec.datatype == "BYTES":
        values = [value if isinstance(value, bytes) else value.encode() for value in values]
    getattr(tensor.contents, CONTENTS[spec.datatype]).extend(values)
    serialized: bytes = tensor.SerializeToString()
    return serialized


def _describe(name: str, datatype: str, shape: tuple[int, ...], region: Region | None = None) -> bytes:
    """An ``InferOutputTensor`` without elements."""
    tensor = _OUTPUT(name=name, datatype=datatype, shape=shape)
    if region is not None:
        _fill(
            tensor.parameters,
            {
                "shared_memory_region": region.name,
                "shared_memory_byte_size": region.byte_size,
                "shared_memory_offset": region.offset,
            },
        )
    serialized: bytes = tensor.SerializeToString()
    return serialized


def _plain_bytes(array: Array) -> Any:
    """The array itself where its memory is its elements in order."""
    return array if array.flags.c_contiguous else array.tobytes()
