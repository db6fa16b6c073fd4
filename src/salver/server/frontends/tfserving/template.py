"""The quick way from bytes to a decoded ``PredictRequest``: no protobuf where the same message came before with other
elements.

A client that asks the same model again and again sends, but for the elements, the same bytes again and again. Where all
of them lie in one run at a place that the bytes before it determine (one input, in ``tensor_content`` or as packed
floats), what was made of the first such message holds for all that have the same bytes around it, since protobuf is
read from left to right without looking back.
"""

from __future__ import annotations

import weakref
from typing import Any, Final

import numpy as np

from salver.core.arrays import Array
from salver.server.engine.base import ServedModel
from salver.server.frontends.tfserving.predict import Decoded, PredictCodec
from salver.server.frontends.tfserving.tensors import CONTENT, PACKED_AS_THEY_ARE, tensor_head
from salver.wire.protobuf import delimited_head, split_delimited

Named = tuple[str, str | None, str | None]
"""Name, version and label, as `find_model` takes them."""

_INPUTS: Final = 2
_VALUE: Final = 2
_MAX_TEMPLATES: Final = 512
_MAX_ALIKE: Final = 8
_MAX_AROUND_BYTES: Final = 4096
_NEVER: Final = ("BYTES", "BOOL")  # their elements must be looked at


class Template:
    """What is known of a message besides its elements.

    Args:
        lead: the bytes before the elements, and ``tail`` those after them.
        codec, model: of the model that was meant then.
    """

    __slots__ = ("_array", "_name", "_wanted", "codec", "lead", "model", "named", "tail")

    def __init__(
        self, lead: bytes, tail: bytes, named: Named, decoded: Decoded, codec: PredictCodec, model: ServedModel
    ) -> None:
        self.lead = lead
        self.tail = tail
        self.named = named
        self.codec = codec
        self.model = weakref.ref(model)
        ((self._name, array),) = decoded.inputs.items()
        self._array = (array.dtype, array.size, array.shape, decoded.rows)
        self._wanted = decoded.wanted

    def fill(self, message: bytes) -> Decoded:
        """The request in a message that has these bytes around its elements."""
        dtype, count, shape, rows = self._array
        array: Array = np.frombuffer(message, dtype, count, len(self.lead))
        if not array.flags.aligned:
            array = array.copy()
        return Decoded({self._name: array.reshape(shape)}, rows, self._wanted)


class Templates:
    """The templates of a frontend, by the size of their messages. Bounded."""

    def __init__(self) -> None:
        self._by_size: dict[int, list[Template]] = {}
        self._count = 0

    def match(self, message: bytes) -> Template | None:
        """The template that fits, if there is one."""
        for template in self._by_size.get(len(message), ()):
            if message.startswith(template.lead) and message.endswith(template.tail):
                return template
        return None

    def learn(self, message: bytes, named: Named, decoded: Decoded, codec: PredictCodec, model: ServedModel) -> None:
        """Keep what was made of a message, if it is of the common form."""
        found = _around(message, decoded, codec)
        if found is None:
            return
        alike = self._by_size.setdefault(len(message), [])
        if self._count >= _MAX_TEMPLATES or len(alike) >= _MAX_ALIKE:
            self._by_size.clear()
            self._count = 0
            alike = self._by_size[len(message)] = []
        kept = [other for other in alike if (other.lead, other.tail) != found]
        self._count += 1 - (len(alike) - len(kept))
        alike[:] = [*kept, Template(*found, named, decoded, codec, model)]


def _around(message: bytes, decoded: Decoded, codec: PredictCodec) -> tuple[bytes, bytes] | None:
    """The bytes before and after the elements of the only input; None where they do not lie in one run."""
    if len(decoded.inputs) != 1:
        return None
    ((name, array),) = decoded.inputs.items()
    datatype = codec.datatype_of(name)
    if datatype in _NEVER or not array.size:
        return None
    fields = split_delimited(message)
    entries: list[Any] = [field for field in fields or () if field[0] == _INPUTS]
    if len(entries) != 1:
        return None
    _, _, begin, end = entries[0]
    entry = split_delimited(message[begin:end])
    if not entry or entry[-1][0] != _VALUE or [field[0] for field in entry].count(_VALUE) != 1:
        return None
    start = begin + entry[-1][2]
    size = array.nbytes
    for number in (CONTENT, PACKED_AS_THEY_ARE.get(datatype)):
        if number is None:
            continue
        head = tensor_head(datatype, array.shape) + delimited_head(number, size)
        if message.startswith(head, start) and start + len(head) + size == end:
            lead, tail = message[: start + len(head)], message[end:]
            return (lead, tail) if len(lead) + len(tail) <= _MAX_AROUND_BYTES else None
    return None
