"""Requests and answers between two processes of a server: a MessagePack head, then the tensors' bytes as they lie in
memory. Both ends run the same code on the same machine and trust each other."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.errors import Code
from salver.core.tensors import Signature
from salver.server.engine.base import ModelState, SequenceStep, Timing
from salver.server.engine.config import ModelConfig

_PREFIX: Final = struct.Struct("<IQ")  # bytes of the head, bytes of the tensors


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """Where a tensor is among the bytes.

    Args:
        dtype: as numpy writes it; ``text`` and ``bytes`` for objects, whose values are in ``values``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: tuple[bytes, ...] = ()


class Infer(msgspec.Struct, frozen=True, array_like=True, tag="infer"):
    """A request.

    Args:
        left_s: time to its deadline; None for no deadline.
        client: as in `InferRequest`, as text.
    """

    number: int
    name: str
    version: str
    rows: int
    outputs: tuple[str, ...] | None
    left_s: float | None
    priority: int
    sequence: SequenceStep | None
    client: str | None
    tensors: tuple[Tensor, ...]


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """Nobody waits for an answer any more."""

    number: int


class Describe(msgspec.Struct, frozen=True, array_like=True, tag="describe"):
    """What is a version of a model?"""

    number: int
    name: str
    version: str


class Outputs(msgspec.Struct, frozen=True, array_like=True, tag="outputs"):
    """The answer to a request."""

    number: int
    timing: Timing | None
    tensors: tuple[Tensor, ...]


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """A request was refused, or failed."""

    number: int
    code: Code
    message: str
    retry_after_s: float | None
    reason: str


class Described(msgspec.Struct, frozen=True, array_like=True, tag="described"):
    """A version of a model, as `ServedModel`."""

    number: int
    state: ModelState
    reason: str
    signature: Signature
    ragged: bool
    stateful: bool
    config: ModelConfig
    tested: bool
    platform: str
    metadata: dict[str, Any]


Head = Infer | Cancel | Describe | Outputs | Failed | Described

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Head)


def lay_out(arrays: dict[str, Array]) -> tuple[tuple[Tensor, ...], list[Any]]:
    """What is said of tensors, and the bytes that follow."""
    heads: list[Tensor] = []
    parts: list[Any] = []
    for name, array in arrays.items():
        if array.dtype == object:
            values = array.ravel().tolist()
            text = all(isinstance(value, str) for value in values)
            # A client's JSON may hold half of a surrogate pair.
            packed = [v.encode("utf-8", "surrogatepass") if isinstance(v, str) else bytes(v) for v in values]
            heads.append(Tensor(name, "text" if text else "bytes", array.shape, tuple(packed)))
            continue
        heads.append(Tensor(name, array.dtype.str, array.shape))
        if array.size:
            parts.append(np.ascontiguousarray(array).data.cast("B"))
    return tuple(heads), parts


def pick_up(tensors: Sequence[Tensor], body: memoryview) -> dict[str, Array]:
    """The tensors that were laid out. They are views of the bytes, which may not be written to."""
    arrays: dict[str, Array] = {}
    start = 0
    for tensor in tensors:
        if tensor.dtype in ("text", "bytes"):
            array = np.empty(len(tensor.values), dtype=object)
            text = tensor.dtype == "text"
            array[:] = [v.decode("utf-8", "surrogatepass") for v in tensor.values] if text else tensor.values
            arrays[tensor.name] = array.reshape(tensor.shape)
            continue
        dtype = np.dtype(tensor.dtype)
        count = int(np.prod(tensor.shape, dtype=np.int64))
        arrays[tensor.name] = np.frombuffer(body, dtype, count, start).reshape(tensor.shape)
        start += count * dtype.itemsize
    return arrays


class Frames(asyncio.Protocol):
    """One end of a connection.

    Args:
        received: called with each head and the bytes behind it.
        closed: called once when the connection has ended, whatever the cause.
    """

    def __init__(self, received: Callable[[Any, memoryview], None], closed: Callable[[], None]) -> None:
        self._received = received
        self._on_closed = closed
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream socket's

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._on_closed()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _PREFIX.size:
            head_size, body_size = _PREFIX.unpack_from(buffer)
            start = _PREFIX.size + head_size
            if len(buffer) < start + body_size:
                return
            head = _DECODER.decode(bytes(buffer[_PREFIX.size : start]))
            body = memoryview(bytes(buffer[start : start + body_size]))
            del buffer[: start + body_size]
            self._received(head, body)

    def send(self, head: Head, parts: Sequence[Any] = ()) -> None:
        """Send a message; lost where the other end is gone."""
        if self._transport is None or self._transport.is_closing():
            return
        encoded = _ENCODER.encode(head)
        size = sum(map(len, parts))
        self._transport.writelines([_PREFIX.pack(len(encoded), size), encoded, *parts])

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()
