"""The blocking client: plain sockets, connections kept and shared between threads."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_READ_BYTES: Final = 1 << 18
_MAX_IDLE: Final = 16
_GRPC: Final = "salver.client.http2:BlockingHttp2"


class Connection(Protocol):
    """One connection that carries one request at a time."""

    usable: bool
    """Whether it may carry another."""

    def is_stale(self) -> bool:
        """Whether the server has ended it while it was idle."""

    def exchange(self, request: Outgoing, until_s: float | None) -> Incoming:
        """Send a request and wait for its answer.

        Raises:
            Unavailable: the connection failed.
            DeadlineExceeded: there was no answer in time.
        """

    def close(self) -> None:
        """End it."""


class StaleConnection(Unavailable):
    """A kept connection was found closed before any byte of an answer came."""


class Wire:
    """A socket whose reads and writes end at a deadline."""

    def __init__(self, endpoint: Endpoint, until_s: float | None) -> None:
        self._endpoint = endpoint
        try:
            self._socket = _connect(endpoint, _left_s(until_s))
        except TimeoutError:
            raise DeadlineExceeded(f"no connection to {endpoint.shown} in time") from None
        except OSError as error:
            raise unreachable(endpoint, error) from None

    def write(self, pieces: Sequence[bytes | memoryview], until_s: float | None) -> None:
        """Send everything."""
        try:
            self._socket.settimeout(_left_s(until_s))
            for piece in pieces:
                self._socket.sendall(piece)
        except TimeoutError:
            raise DeadlineExceeded(f"{self._endpoint.shown} did not take the request in time") from None
        except OSError as error:
            raise Unavailable(f"the connection to {self._endpoint.shown} failed: {error}") from None

    def read(self, until_s: float | None) -> bytes:
        """What has come, at least a byte; empty at the end of the connection."""
        try:
            self._socket.settimeout(_left_s(until_s))
            return self._socket.recv(_READ_BYTES)
        except TimeoutError:
            raise DeadlineExceeded(f"{self._endpoint.shown} did not answer in time") from None
        except OSError as error:
            raise Unavailable(f"the connection to {self._endpoint.shown} failed: {error}") from None

    def is_readable(self) -> bool:
        """Whether something has come that nobody asked for: most likely the end of the connection."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._socket.close()


def _left_s(until_s: float | None) -> float | None:
    if until_s is None:
        return None
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _connect(endpoint: Endpoint, timeout_s: float | None) -> socket.socket:
    if endpoint.path:
        connected = socket.socket(socket.AF_UNIX)
        with _closed_on_failure(connected):
            connected.settimeout(timeout_s)
            connected.connect(endpoint.path)
        return connected
    connected = socket.create_connection((endpoint.host, endpoint.port), timeout_s)
    with _closed_on_failure(connected):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if endpoint.context is not None:
            return endpoint.context.wrap_socket(connected, server_hostname=endpoint.host)
    return connected


@contextlib.contextmanager
def _closed_on_failure(connected: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connected.close()
        raise


class Http1Connection:
    """HTTP/1.1 on one socket."""

    def __init__(self, endpoint: Endpoint, until_s: float | None) -> None:
        self._endpoint = endpoint
        self._wire = Wire(endpoint, until_s)
        self._carried = 0
        self.usable = True

    def is_stale(self) -> bool:
        """As `Connection.is_stale`."""
        return self._wire.is_readable()

    def exchange(self, request: Outgoing, until_s: float | None) -> Incoming:
        """As `Connection.exchange`."""
        self.usable = False
        self._carried += 1
        reader = ResponseReader()
        unsent: Unavailable | None = None
        try:
            try:
                self._wire.write(write_request(self._endpoint, request), until_s)
            except Unavailable as error:  # an answer that came before all was sent, such as 413, says why
                unsent = error
            answer = None
            while answer is None:
                data = self._wire.read(until_s)
                answer = reader.feed(data) if data else reader.end()
                if answer is None and not data:
                    raise Unavailable(f"{self._endpoint.shown} closed the connection without an answer")
        except Unavailable as error:
            if self._carried > 1 and not reader.started and not request.once:
                raise StaleConnection(error.message) from None
            raise unsent or error from None
        self.usable = reader.keep_alive and unsent is None
        return answer

    def close(self) -> None:
        """As `Connection.close`."""
        self._wire.close()


class Pool:
    """Idle connections to one server, the one used last first.

    Args:
        open_: makes a connection, before a deadline.
    """

    def __init__(self, open_: Callable[[float | None], Connection]) -> None:
        self._open = open_
        self._idle: list[Connection] = []
        self._lock = threading.Lock()

    def send(self, request: Outgoing, until_s: float | None) -> Incoming:
        """One exchange. A kept connection that the server has closed meanwhile costs nothing but another one."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = self._open(until_s)
            elif connection.is_stale():
                connection.close()
                continue
            try:
                answer = connection.exchange(request, until_s)
            except StaleConnection:
                connection.close()
                continue
            except BaseException:
                connection.close()
                raise
            self._keep(connection)
            return answer

    def _keep(self, connection: Connection) -> None:
        with self._lock:
            if connection.usable and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class Client:
    """A server, asked from ordinary code. Safe to share between threads.

        with salver.client.Client("http://127.0.0.1:8080") as client:
            probabilities = client.infer("digits", {"image": images})["probabilities"]

    Args:
        url: ``http://host:port``, ``https://``, ``grpc://``, ``grpcs://``, ``http+unix:///path``, ``grpc+unix:///path``.
        timeout_s: for every call that names none; None to wait for ever.
        retry: see `Retry`.
        api_key, ca, client_cert, client_key: as `parse_endpoint`.

    Raises:
        InvalidArgument, FailedPrecondition: as `parse_endpoint`.
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
        connect: Callable[[Endpoint, float | None], Connection] = load(_GRPC) if endpoint.is_grpc else Http1Connection
        self._pool = Pool(lambda until_s: connect(endpoint, until_s))

    def infer(
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
        """Run a model once.

        Args:
            inputs: name -> array, or `Tensor`.
            version: a number, or a label where the server knows labels; empty for the server's choice.
            outputs: names wanted; empty for all.
            parameters: of the request: ``priority``, ``sequence_id``, and the server's own.
            timeout_s: for this call, all its attempts together. Given here, the server is told, and drops late work.

        Raises:
            SalverError: the server's error by its code, or `Unavailable`, `DeadlineExceeded` of the way to it.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        told = timeout_s is not None
        return self._drive(self._operations.infer(model, inputs, version, outputs, parameters, id, limit_s, told=told))

    def live(self) -> bool:
        """Whether the server answers."""
        return bool(self._ask("live"))

    def ready(self) -> bool:
        """Whether all its models are ready."""
        return bool(self._ask("ready"))

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether one model is ready."""
        return bool(self._ask("model_ready", model=model, version=version))

    def server(self) -> dict[str, Any]:
        """The server's name, version and extensions."""
        return dict(self._ask("server"))

    def model(self, model: str, version: str = "") -> dict[str, Any]:
        """A model's metadata: versions, inputs, outputs."""
        return dict(self._ask("model", model=model, version=version))

    def config(self, model: str, version: str = "") -> dict[str, Any]:
        """A model's configuration, in Triton's terms."""
        return dict(self._ask("config", model=model, version=version))

    def statistics(self, model: str = "", version: str = "") -> list[dict[str, Any]]:
        """Counts and times per model."""
        return list(self._ask("statistics", model=model, version=version).get("model_stats", ()))

    def index(self) -> list[dict[str, Any]]:
        """The models the server knows, loaded or not."""
        return list(self._ask("index"))

    def load(
        self, model: str, *, config: Mapping[str, Any] | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Load a model, or load it again."""
        self._ask("load", model=model, config=config, files=files)

    def unload(self, model: str) -> None:
        """Take a model out of service."""
        self._ask("unload", model=model)

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, operation: Operation, **arguments: Any) -> Any:
        return self._drive(self._operations.ask(operation, arguments, self._timeout_s))

    def _drive(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Send):
                    try:
                        incoming = self._pool.send(step.request, step.until_s)
                    except SalverError as error:
                        step = flow.throw(error)
                    else:
                        step = flow.send(incoming)
                else:
                    time.sleep(step.seconds)
                    step = flow.send(None)
        except StopIteration as stop:
            return cast(T, stop.value)
