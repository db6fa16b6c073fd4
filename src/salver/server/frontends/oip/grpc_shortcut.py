"""The quick way from bytes to a decoded gRPC request: no protobuf where the same message came before.

A client that asks the same model again and again sends, but for the elements (and perhaps the id), the same bytes again
and again: fields are written in the order of their numbers, and ``raw_input_contents`` has the last. What `GrpcCodec`
made of such a message the first time is kept as a template, and holds for every message that has the same bytes around
elements of the same sizes, since protobuf is read from left to right without looking back.
"""

from __future__ import annotations

import weakref
from typing import Final, NamedTuple

import numpy as np

from salver.core.arrays import Array
from salver.server.engine.base import Packed, ServedModel, Tensors
from salver.server.frontends.oip.grpc_codec import GrpcCodec, GrpcPlan
from salver.wire.elements import from_bytes
from salver.wire.protobuf import split_delimited

_NAME, _VERSION, _ID, _RAW = 1, 2, 3, 7
_MAX_TEMPLATES: Final = 512
_MAX_ALIKE: Final = 8
_MAX_PREFIX_BYTES: Final = 4096
_SMALL_BYTES: Final = 4096
_MAX_SHORT: Final = 0x7F  # sizes that are one byte on the wire


class _Slot(NamedTuple):
    """Where the elements of one input lie.

    Args:
        size, offset: of the elements in bytes, in a message without an id.
        is_small: whether a slice is to be made of them, which is aligned, and sooner made than an array that is not is
            found out. Elements that must be looked at are not small.
    """

    name: str
    datatype: str
    dtype: np.dtype
    shape: tuple[int, ...]
    size: int
    offset: int
    is_small: bool


class Template:
    """What is known of a message before its elements are.

    Args:
        head: model name and version, as they are written.
        body: all that follows, up to the elements of the first input, but for the id.
        seams: what stands between the elements of two inputs, and where it ends, as the offsets of `slots`.
    """

    __slots__ = (
        "_only",
        "body",
        "codec",
        "head",
        "lead",
        "model",
        "name",
        "plan",
        "revision",
        "seams",
        "slots",
        "version",
    )

    def __init__(
        self,
        names: tuple[str, str],
        head: bytes,
        body: bytes,
        seams: tuple[tuple[bytes, int], ...],
        slots: tuple[_Slot, ...],
        plan: GrpcPlan,
        codec: GrpcCodec,
        model: ServedModel,
    ) -> None:
        self.name, self.version = names
        self.head = head
        self.body = body
        self.lead = head + body
        self.seams = seams
        self.slots = slots
        self.plan = plan
        self.codec = codec
        self.model = weakref.ref(model)
        self.revision = object()
        """The engine's when it was last asked for the model."""
        only = slots[0]
        self._only = only if len(slots) == 1 and only.is_small else None

    def fill(self, message: bytes, shift: int) -> Tensors | None:
        """The inputs of a message that begins as this template does; None where it goes on otherwise.

        Args:
            shift: by how much an id moves all that comes after it.

        Raises:
            InvalidArgument: elements that no tensor of the datatype may have.
        """
        only = self._only
        if only is not None:
            return {only.name: Packed(only.dtype, only.shape, message[only.offset + shift :])}
        inputs: dict[str, Array | Packed] = {}
        for seam, end in self.seams:
            if not message.startswith(seam, end + shift - len(seam)):
                return None
        for name, datatype, dtype, shape, size, offset, is_small in self.slots:
            offset += shift
            if is_small:
                inputs[name] = Packed(dtype, shape, message[offset : offset + size])
            else:
                inputs[name] = from_bytes(message, offset, size, datatype, list(shape), f"input '{name}'")
        return inputs


class Templates:
    """The templates of a frontend, by the size of their messages. Bounded."""

    def __init__(self) -> None:
        self._by_size: dict[int, list[Template]] = {}
        self._count = 0

    def match(self, message: bytes) -> tuple[Template, str, int] | None:
        """The template that a message begins as, its id, and by how much that moves the rest."""
        for template in self._by_size.get(len(message), ()):
            if message.startswith(template.lead):
                return template, "", 0
        return self._match_id(message)

    def _match_id(self, message: bytes) -> tuple[Template, str, int] | None:
        try:
            end = 2 + message[1]
            if message[end] == _VERSION << 3 | 2:
                end += 2 + message[end + 1]
            size = message[end + 1]
            if message[end] != _ID << 3 | 2 or size > _MAX_SHORT:
                return None
            id = message[end + 2 : end + 2 + size].decode()
        except (IndexError, UnicodeDecodeError):
            return None
        shift = 2 + size
        for template in self._by_size.get(len(message) - shift, ()):
            if (
                len(template.head) == end
                and message.startswith(template.head)
                and message.startswith(template.body, end + shift)
            ):
                return template, id, shift
        return None

    def learn(
        self,
        message: bytes,
        names: tuple[str, str],
        inputs: dict[str, Array],
        plan: GrpcPlan,
        codec: GrpcCodec,
        model: ServedModel,
    ) -> None:
        """Keep what was made of a message, if it is of the common form.

        Args:
            names: model and version, as the message has them.
        """
        template = _make(message, names, inputs, plan, codec, model)
        if template is None:
            return
        last = template.slots[-1]
        size = last.offset + last.size
        alike = self._by_size.get(size)
        if self._count >= _MAX_TEMPLATES or (alike is not None and len(alike) >= _MAX_ALIKE):
            self._by_size.clear()
            self._count = 0
            alike = None
        if alike is None:
            alike = self._by_size[size] = []
        alike[:] = [other for other in alike if other.lead != template.lead]
        alike.append(template)
        self._count += 1


def _make(
    message: bytes,
    names: tuple[str, str],
    inputs: dict[str, Array],
    plan: GrpcPlan,
    codec: GrpcCodec,
    model: ServedModel,
) -> Template | None:
    if plan.typed or any(array.dtype.hasobject for array in inputs.values()):
        return None
    fields = split_delimited(message)
    if fields is None:
        return None
    raw = [field for field in fields if field[0] == _RAW]
    if not raw or len(raw) != len(inputs) or fields[-len(raw) :] != raw or raw[0][2] > _MAX_PREFIX_BYTES:
        return None
    numbers = [field[0] for field in fields]
    leading = [number for number in (_NAME, _VERSION) if number in numbers]
    if numbers[: len(leading)] != leading or numbers.count(_ID) > 1:
        return None
    head_end = fields[len(leading) - 1][3] if leading else 0
    body_start = head_end
    if _ID in numbers:
        _, _, begin, end = fields[len(leading)]
        if numbers[len(leading)] != _ID or end - begin > _MAX_SHORT:
            return None
        body_start = end
    shift = body_start - head_end
    datatypes = {spec.name: spec.datatype for spec in codec.signature.inputs}
    slots = tuple(
        _Slot(
            name,
            datatypes[name],
            array.dtype,
            array.shape,
            array.nbytes,
            begin - shift,
            array.nbytes <= _SMALL_BYTES and datatypes[name] != "BOOL",
        )
        for (name, array), (_, _, begin, _) in zip(inputs.items(), raw, strict=True)
    )
    body = message[body_start : raw[0][2]]
    seams = tuple((message[start:begin], begin - shift) for _, start, begin, _ in raw[1:])
    return Template(names, message[:head_end], body, seams, slots, plan, codec, model)
