"""The asynchronous client: one event loop, many calls in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar, cast

from salver.client.endpoint import Endpoint, parse_endpoint, unreachable
from salver.client.flow import Flow, Retry, Send
from salver.client.http1 import ResponseReader, write_request
from salver.client.messages import Answer, Value
from salver.client.operations import Operations, make_protocol
from salver.client.protocol import Incoming, Operation, Outgoing
from salver.core.errors import DeadlineExceeded, SalverError, Unavailable
from salver.core.registry import load

T = TypeVar("T")
_MAX_IDLE: Final = 64
_GRPC: Final = "salver.client.http2:Http2Pool"


class Pool(Protocol):
    """Connections to one server."""

    async def send(self, request: Outgoing) -> Incoming:
        """One exchange."""

    async def close(self) -> None:
        """Close what is open."""


class Http1Connection(asyncio.Protocol):
    """HTTP/1.1 on one transport, one request at a time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None
        self._reader: ResponseReader | None = None
        self._answer: asyncio.Future[Incoming] | None = None
        self._carried = 0
        self.usable = True
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        reader, answer = self._reader, self._answer
        if reader is None or answer is None or answer.done():
            self.close()  # nobody asked for it
            return
        try:
            incoming = reader.feed(data)
        except Unavailable as error:
            answer.set_exception(error)
            self.close()
            return
        if incoming is not None:
            self.usable = reader.keep_alive
            self._reader = None
            answer.set_result(incoming)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.usable = False
        self.ended.set()
        answer, reader = self._answer, self._reader
        if answer is None or answer.done() or reader is None:
            return
        incoming = reader.end()
        if incoming is not None:
            answer.set_result(incoming)
        else:
            answer.set_exception(Unavailable(f"{self._endpoint.shown} closed the connection without an answer"))

    def is_stale_after(self, request: Outgoing) -> bool:
        """Whether a failure means no more than that the server had ended an idle connection."""
        return self._carried > 1 and not request.once and self._reader is not None and not self._reader.started

    async def exchange(self, request: Outgoing) -> Incoming:
        """Send a request and wait for its answer.

        Raises:
            Unavailable: the connection failed.
        """
        if self._transport is None:
            raise Unavailable(f"the connection to {self._endpoint.shown} has ended")
        self._carried += 1
        self.usable = False
        self._reader = ResponseReader()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines(write_request(self._endpoint, request))
        return await self._answer

    def close(self) -> None:
        """End it."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()


class Http1Pool:
    """Idle connections of one event loop, the one used last first."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._idle: list[Http1Connection] = []

    async def send(self, request: Outgoing) -> Incoming:
        """One exchange; see `salver.client.blocking.Pool`."""
        while True:
            connection = self._take() or await connect(self._endpoint, lambda: Http1Connection(self._endpoint))
            try:
                answer = await connection.exchange(request)
            except Unavailable:
                if connection.is_stale_after(request):
                    continue
                raise
            finally:
                if connection.usable and len(self._idle) < _MAX_IDLE:
                    self._idle.append(connection)
                else:
                    connection.close()
            return answer

    def _take(self) -> Http1Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def close(self) -> None:
        """Close what is idle."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        for connection in idle:
            await connection.ended.wait()


P = TypeVar("P", bound=asyncio.Protocol)


async def connect(endpoint: Endpoint, make: Callable[[], P]) -> P:
    """A connection to an endpoint.

    Raises:
        Unavailable: it cannot be reached.
        FailedPrecondition: its certificate is not trusted.
    """
    loop = asyncio.get_running_loop()
    try:
        if endpoint.path:
            _, protocol = await loop.create_unix_connection(make, endpoint.path)
        else:
            _, protocol = await loop.create_connection(make, endpoint.host, endpoint.port, ssl=endpoint.context)
    except OSError as error:
        raise unreachable(endpoint, error) from None
    return protocol


class AsyncClient:
    """A server, asked from coroutines of one event loop.

        async with salver.client.AsyncClient("grpc://127.0.0.1:8081") as client:
            answer = await client.infer("digits", {"image": images})

    Arguments and methods are those of `Client`; the methods are coroutines.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float | None = 60.0,
        retry: Retry | None = None,
        api_key: str = "",
        ca: str = "",
        client_cert: str = "",
        client_key: str = "",
    ) -> None:
        endpoint = parse_endpoint(url, api_key=api_key, ca=ca, client_cert=client_cert, client_key=client_key)
        self._timeout_s = timeout_s
        self._operations = Operations(make_protocol(endpoint), retry or Retry())
        self._pool: Pool = load(_GRPC)(endpoint) if endpoint.is_grpc else Http1Pool(endpoint)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Value],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        id: str = "",
        timeout_s: float | None = None,
    ) -> Answer:
        """As `Client.infer`."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        told = timeout_s is not None
        return await self._drive(
            self._operations.infer(model, inputs, version, outputs, parameters, id, limit_s, told=told)
        )

    async def live(self) -> bool:
        """As `Client.live`."""
        return bool(await self._ask("live"))

    async def ready(self) -> bool:
        """As `Client.ready`."""
        return bool(await self._ask("ready"))

    async def model_ready(self, model: str, version: str = "") -> bool:
        """As `Client.model_ready`."""
        return bool(await self._ask("model_ready", model=model, version=version))

    async def server(self) -> dict[str, Any]:
        """As `Client.server`."""
        return dict(await self._ask("server"))

    async def model(self, model: str, version: str = "") -> dict[str, Any]:
        """As `Client.model`."""
        return dict(await self._ask("model", model=model, version=version))

    async def config(self, model: str, version: str = "") -> dict[str, Any]:
        """As `Client.config`."""
        return dict(await self._ask("config", model=model, version=version))

    async def statistics(self, model: str = "", version: str = "") -> list[dict[str, Any]]:
        """As `Client.statistics`."""
        return list((await self._ask("statistics", model=model, version=version)).get("model_stats", ()))

    async def index(self) -> list[dict[str, Any]]:
        """As `Client.index`."""
        return list(await self._ask("index"))

    async def load(
        self, model: str, *, config: Mapping[str, Any] | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """As `Client.load`."""
        await self._ask("load", model=model, config=config, files=files)

    async def unload(self, model: str) -> None:
        """As `Client.unload`."""
        await self._ask("unload", model=model)

    async def close(self) -> None:
        """As `Client.close`."""
        await self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, operation: Operation, **arguments: Any) -> Any:
        return await self._drive(self._operations.ask(operation, arguments, self._timeout_s))

    async def _drive(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Send):
                    try:
                        incoming = await self._send(step)
                    except SalverError as error:
                        step = flow.throw(error)
                    else:
                        step = flow.send(incoming)
                else:
                    await asyncio.sleep(step.seconds)
                    step = flow.send(None)
        except StopIteration as stop:
            return cast(T, stop.value)

    async def _send(self, step: Send) -> Incoming:
        if step.until_s is None:
            return await self._pool.send(step.request)
        try:
            async with asyncio.timeout_at(step.until_s):
                return await self._pool.send(step.request)
        except TimeoutError:
            raise DeadlineExceeded("the server did not answer in time") from None
