"""Questions, answers and news between a supervisor and one of its processes, over a pair of connected sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec

from salver.core.errors import Code, Internal, SalverError, Unavailable, error_of

MAX_FRAME_BYTES: Final = 1 << 30
"""A longer frame is no frame of ours; what an upload may bring fits."""

_LOG = logging.getLogger(__name__)
_PREFIX: Final = 4

Handler = Callable[[Any], Any]
"""Takes the message; what it returns, or what its coroutine returns, is the answer. A `SalverError` travels back."""

_Answer = TypeVar("_Answer")


class _Frame(msgspec.Struct, array_like=True):
    """``kind`` names the question or news; it is empty for an answer. ``number`` is 0 for news."""

    kind: str
    number: int
    body: msgspec.Raw


class _Failure(msgspec.Struct, array_like=True):
    code: Code
    message: str
    retry_after_s: float | None


class Channel(asyncio.Protocol):
    """One end. Lives on an event loop; `Channel.open` makes it there.

    Both ends may ask (and get an answer, in any order) and tell (and get none). A process that dies closes its end:
    whoever waits for its answer gets `Unavailable`, and ``on_closed`` is called, once. Peers trust each other: they are
    processes of one server.
    """

    def __init__(self, on_closed: Callable[[], None] = lambda: None) -> None:
        self._handlers: dict[str, tuple[Any, Handler]] = {}
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = 0
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._on_closed = on_closed
        self._encoder = msgspec.msgpack.Encoder()
        self.closed = False

    @classmethod
    async def open(cls, sock: socket.socket, on_closed: Callable[[], None] = lambda: None) -> Channel:
        """A channel on a connected stream socket, which it owns from now on."""
        sock.setblocking(False)
        _, channel = await asyncio.get_running_loop().create_connection(lambda: cls(on_closed), sock=sock)
        return channel

    def on(self, kind: str, takes: Any, handler: Handler) -> None:
        """Answer a kind of message.

        Args:
            takes: its type, as `msgspec` reads it.
            handler: called on the event loop; see `Handler`.
        """
        self._handlers[kind] = takes, handler

    def tell(self, kind: str, message: Any = None) -> None:
        """Send news; lost where the other end is gone."""
        self._send(kind, 0, self._encoder.encode(message))

    async def ask(self, kind: str, message: Any = None, gives: type[_Answer] | Any = None) -> _Answer:
        """Ask, and wait for the answer.

        Args:
            gives: type of the answer.

        Raises:
            SalverError: what the other end's handler raised; `Unavailable` when the other end is gone.
        """
        if self.closed:
            raise Unavailable("the process at the other end is gone")
        self._number += 1
        number = self._number
        waiter = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send(kind, number, self._encoder.encode(message))
        try:
            body = await waiter
        finally:
            self._waiting.pop(number, None)
        answer: _Answer = msgspec.msgpack.decode(body, type=gives)
        return answer

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream socket's

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(Unavailable("the process at the other end went away"))
        for task in self._tasks:
            task.cancel()
        self._on_closed()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _PREFIX:
            size = int.from_bytes(buffer[:_PREFIX])
            if size > MAX_FRAME_BYTES:
                _LOG.error("a frame of %d bytes between processes: the channel is broken", size)
                self.close()
                return
            if len(buffer) < _PREFIX + size:
                return
            frame = msgspec.msgpack.decode(bytes(buffer[_PREFIX : _PREFIX + size]), type=_Frame)
            del buffer[: _PREFIX + size]
            self._take(frame)

    def _send(self, kind: str, number: int, body: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        frame = self._encoder.encode(_Frame(kind, number, msgspec.Raw(body)))
        self._transport.write(len(frame).to_bytes(_PREFIX) + frame)

    def _take(self, frame: _Frame) -> None:
        if frame.kind in ("", "!"):
            self._answered(frame)
            return
        task = asyncio.get_running_loop().create_task(self._handle(frame))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _answered(self, frame: _Frame) -> None:
        waiter = self._waiting.get(frame.number)
        if waiter is None or waiter.done():  # who asked did not wait
            return
        if not frame.kind:
            waiter.set_result(bytes(frame.body))
            return
        failure = msgspec.msgpack.decode(frame.body, type=_Failure)
        waiter.set_exception(error_of(failure.code, failure.message, failure.retry_after_s))

    async def _handle(self, frame: _Frame) -> None:
        try:
            takes, handler = self._handlers[frame.kind]
            answer = handler(msgspec.msgpack.decode(frame.body, type=takes))
            if isinstance(answer, Awaitable):
                answer = await answer
        except SalverError as error:
            self._fail(frame, error)
        except Exception as error:  # noqa: BLE001  # the process boundary: the other end must not wait for ever
            _LOG.exception("the handler of '%s' failed", frame.kind)
            self._fail(frame, Internal(f"{type(error).__name__}: {error}"))
        else:
            if frame.number:
                self._send("", frame.number, self._encoder.encode(answer))

    def _fail(self, frame: _Frame, error: SalverError) -> None:
        if frame.number:
            failure = _Failure(error.code, error.message, error.retry_after_s)
            self._send("!", frame.number, self._encoder.encode(failure))
