"""gRPC over HTTP/2, for both clients: unary calls, messages as bytes (PROTOCOL-HTTP2.md). Loaded only for gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, cast

from salver.client.aio import connect
from salver.client.blocking import StaleConnection, Wire
from salver.client.endpoint import Endpoint
from salver.client.http1 import MAX_ANSWER_BYTES
from salver.client.protocol import Incoming, Outgoing
from salver.core.errors import Internal, SalverError, Unavailable
from salver.wire.http2 import Bounds, Connection, Data, ErrorCode, Head, Stream, encode_block

_BOUNDS: Final = Bounds(window_bytes=64 << 20, stream_window_bytes=16 << 20)
_PREFIX_BYTES: Final = 5
_MAX_BLOCKS: Final = 64
_CLOSE_S: Final = 1.0


class _Call:
    """Collects the answer of one call; tells ``done`` once.

    Args:
        done: called with the answer, or why there is none.
    """

    def __init__(self, done: Callable[[Incoming | SalverError], None]) -> None:
        self._done = done
        self._fields: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._size = 0
        self.started = False

    def on_headers(self, stream: Stream, head: Head, end: bool) -> None:
        self.started = True
        self._fields.update(head.mapping)
        if end:
            self._finish()

    def on_data(self, stream: Stream, data: Data, end: bool) -> None:
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            self._parts.clear()
            self._done(Unavailable(f"the server's answer is larger than {MAX_ANSWER_BYTES} bytes"))
            return
        self._parts.append(bytes(data))
        if end:
            self._finish()

    def on_reset(self, stream: Stream, error: int, message: str) -> None:
        known = error in ErrorCode.__members__.values()
        name = ErrorCode(error).name if known else str(error)
        self._done(Unavailable(f"the call was not answered: {message} ({name})"))

    def on_sent(self, stream: Stream) -> None:
        """Nothing waits for it."""

    def _finish(self) -> None:
        status = self._fields.get(b"grpc-status", b"")
        if not status.isdigit() or len(status) > 3:
            http = self._fields.get(b":status", b"?").decode("latin-1")
            self._done(Internal(f"the server does not speak gRPC here: HTTP status {http} and no grpc-status"))
            return
        body = b"".join(self._parts)
        if status == b"0" and (
            len(body) < _PREFIX_BYTES or body[0] or int.from_bytes(body[1:5]) != len(body) - _PREFIX_BYTES
        ):
            self._done(Internal(f"the server's answer of {len(body)} bytes is not one uncompressed message"))
            return
        self._done(Incoming(status=int(status), fields=self._fields, body=body[_PREFIX_BYTES:]))


class _Caller:
    """Opens calls on a connection; header blocks that repeat are encoded once."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._blocks: dict[str, bytes] = {}

    def open(self, connection: Connection, request: Outgoing, call: _Call) -> Stream:
        """Send a request.

        Raises:
            Unavailable: the connection takes no more.
        """
        block = self._blocks.get(request.path) or self._encode(request.path)
        if request.fields:
            block += encode_block([(name.encode(), value.encode()) for name, value in request.fields])
        stream = connection.request(block, call, end=False)
        pieces = request.body if isinstance(request.body, list) else [request.body]
        size = sum(map(len, pieces))
        prefix = b"\0" + size.to_bytes(4)
        if size < 1 << 16:
            connection.send_data(stream, b"".join((prefix, *pieces)), end=True)
            return stream
        connection.send_data(stream, prefix)
        for index, piece in enumerate(pieces, 1):
            connection.send_data(stream, piece, end=index == len(pieces))
        return stream

    def _encode(self, path: str) -> bytes:
        if len(self._blocks) >= _MAX_BLOCKS:
            self._blocks.clear()
        block = self._blocks[path] = call_block(self._endpoint, path, b"salver")
        return block


def call_block(endpoint: Endpoint, path: str, agent: bytes, fields: Sequence[tuple[str, str]] = ()) -> bytes:
    """The header block of a gRPC call, with the endpoint's own fields and others."""
    return encode_block(
        [
            (b":method", b"POST"),
            (b":scheme", b"http" if endpoint.context is None else b"https"),
            (b":path", path.encode()),
            (b":authority", endpoint.authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", agent),
            *((name.encode(), value.encode()) for name, value in (*endpoint.fields, *fields)),
        ]
    )


class BlockingHttp2:
    """One connection that carries one call at a time; a `salver.client.blocking.Connection`."""

    def __init__(self, endpoint: Endpoint, until_s: float | None) -> None:
        self._endpoint = endpoint
        self._wire = Wire(endpoint, until_s)
        self._connection = Connection(_BOUNDS)
        self._caller = _Caller(endpoint)
        self._carried = 0
        self.usable = True

    def is_stale(self) -> bool:
        """As `Connection.is_stale`. A server may send PING or SETTINGS at any time: they are answered."""
        try:
            while self._wire.is_readable():
                data = self._wire.read(None)
                if not data:
                    return True
                self._connection.receive(data)
                self._flush(None)
        except Unavailable:  # it ended while it was asked or answered
            return True
        return self._connection.fault is not None or self._connection.goaway is not None

    def exchange(self, request: Outgoing, until_s: float | None) -> Incoming:
        """As `Connection.exchange`."""
        found: list[Incoming | SalverError] = []
        call = _Call(found.append)
        self.usable = False
        self._carried += 1
        try:
            self._caller.open(self._connection, request, call)
            while not found:
                self._flush(until_s)
                data = self._wire.read(until_s)
                if not data:
                    raise Unavailable(f"{self._endpoint.shown} closed the connection without an answer")
                self._connection.receive(data)
        except Unavailable as error:
            if self._carried > 1 and not call.started and not request.once:
                raise StaleConnection(error.message) from None
            raise
        answer = found[0]
        if isinstance(answer, SalverError):
            raise answer
        self._flush(until_s)
        self._connection.replenish()
        self.usable = self._connection.fault is None and self._connection.goaway is None
        return answer

    def _flush(self, until_s: float | None) -> None:
        out = self._connection.out
        if out:
            pieces = [b"".join(out)] if sum(map(len, out)) < 1 << 16 else list(out)
            out.clear()
            self._wire.write(pieces, until_s)

    def close(self) -> None:
        """As `Connection.close`."""
        self._wire.close()


class _Channel(asyncio.Protocol):
    """One connection of an event loop, with many calls in flight."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None
        self._flush_due = False
        self._caller = _Caller(endpoint)
        self.connection = Connection(_BOUNDS)
        self.ended = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether it takes calls."""
        return self._transport is not None and self.connection.fault is None and self.connection.goaway is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.connection.receive(data)
        self._flush()
        if self.connection.fault is not None:
            self.close()
        elif not self.connection.streams:
            self.connection.replenish()
            if self.connection.goaway is not None:
                self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.ended.set()
        self.connection.close(f"the connection to {self._endpoint.shown} ended")

    def pause_writing(self) -> None:
        self.connection.pause()

    def resume_writing(self) -> None:
        self.connection.resume()
        self._flush()

    async def exchange(self, request: Outgoing) -> Incoming:
        """One call.

        Raises:
            SalverError: it was not answered.
        """
        answer: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()

        def done(found: Incoming | SalverError) -> None:
            if answer.done():
                return
            if isinstance(found, SalverError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        stream = self._caller.open(self.connection, request, _Call(done))
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)
        try:
            return await answer
        except asyncio.CancelledError:  # the caller gave up: so may the server
            self.connection.reset(stream)
            self._flush()
            raise

    def _flush(self) -> None:
        self._flush_due = False
        out = self.connection.out
        if out and self._transport is not None:
            self._transport.writelines(out)
            out.clear()

    def close(self) -> None:
        """End it; calls in flight are told."""
        if self._transport is not None:
            self._transport.close()

    async def end(self) -> None:
        """End it, and wait until it has ended; TLS takes a word of the other side, which may not come."""
        self.close()
        try:
            await asyncio.wait_for(self.ended.wait(), _CLOSE_S)
        except TimeoutError:
            if self._transport is not None:
                self._transport.abort()
            await self.ended.wait()


class Http2Pool:
    """Connections of one event loop to one server: one, and another when the server lets it carry no more calls."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channels: list[_Channel] = []
        self._opening = asyncio.Lock()

    async def send(self, request: Outgoing) -> Incoming:
        """One call."""
        channel = self._find()
        if channel is None:
            async with self._opening:
                channel = self._find()
                if channel is None:
                    channel = await connect(self._endpoint, lambda: _Channel(self._endpoint))
                    self._channels.append(channel)
        return await channel.exchange(request)

    def _find(self) -> _Channel | None:
        self._channels = [channel for channel in self._channels if channel.is_open]
        for channel in self._channels:
            if len(channel.connection.streams) < channel.connection.max_streams:
                return channel
        return None

    async def close(self) -> None:
        """Close all connections."""
        channels, self._channels = self._channels, []
        await asyncio.gather(*(channel.end() for channel in channels))
