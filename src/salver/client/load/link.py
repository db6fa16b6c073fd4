"""One connection of the load generator: a socket that never blocks, and what its protocols have in common."""

from __future__ import annotations

import abc
import errno
import selectors
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from salver.client.endpoint import Endpoint
from salver.client.load.requests import Request

_READ_BYTES: Final = 1 << 18
_AGAIN: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Call(NamedTuple):
    """A request that is due, or under way. ``due_s`` of `time.perf_counter`."""

    request: Request
    due_s: float


class Verdict(NamedTuple):
    """How a call ended.

    Args:
        outcome: its name.
        ok: whether it was answered well.
        fields: header fields of the answer; with gRPC its trailers too.
        status: of HTTP; with gRPC its own.
        retry_after_s: what a refusal said; None where it did not.
    """

    outcome: str
    ok: bool
    status: int
    fields: dict[bytes, bytes]
    retry_after_s: float | None


class Owner(Protocol):
    """What a link tells."""

    keeps_bodies: bool

    def on_end(self, link: Link, call: Call, verdict: Verdict, body: bytes) -> None:
        """A call was answered, or cut off. The body is empty unless it is kept."""

    def on_unsent(self, call: Call) -> None:
        """A call that the server never saw: send it on another connection."""

    def on_open(self, link: Link) -> None:
        """The connection is there."""

    def on_gone(self, link: Link) -> None:
        """The link takes no more calls; those on it have been told before."""


class Link(abc.ABC):
    """A connection.

    Args:
        endpoint: where to.
        address: of its socket: family and what `socket.connect` takes.
        owner: see `Owner`.
        selector: tells it when it may read or write.
    """

    def __init__(self, endpoint: Endpoint, address: Address, owner: Owner, selector: selectors.BaseSelector) -> None:
        self._endpoint = endpoint
        self._owner = owner
        self._selector = selector
        self._unsent: memoryview | None = None
        self._context = endpoint.context
        self.is_open = False
        self.is_ready = False
        self.was_ready = False
        self.is_gone = False
        self._socket: socket.socket = socket.socket(address.family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        if address.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A Unix socket says at once that nobody listens, or that its backlog is full, and has no SO_ERROR then.
        self._failed = self._socket.connect_ex(address.name) not in (0, errno.EINPROGRESS)
        self._selector.register(self._socket, selectors.EVENT_WRITE, self)
        self._recv: Callable[[int], bytes] = self._socket.recv
        self._send: Callable[[Any], int] = self._socket.send

    @property
    @abc.abstractmethod
    def room(self) -> int:
        """Calls that it takes now."""

    @property
    @abc.abstractmethod
    def calls(self) -> int:
        """Calls under way."""

    @abc.abstractmethod
    def start(self, call: Call) -> None:
        """Begin a call; written at the latest at the next `flush`."""

    @abc.abstractmethod
    def give_up(self, before_s: float) -> list[Call]:
        """Forget the calls that were due before this, and return them."""

    @abc.abstractmethod
    def _opened(self) -> None:
        """The connection is there."""

    @abc.abstractmethod
    def _take(self, data: bytes) -> None:
        """What came."""

    @abc.abstractmethod
    def _ended(self, sent: bool) -> None:
        """The connection is gone, whether or not anything was sent over it since the last answer: tell the owner of
        the calls that were under way."""

    @abc.abstractmethod
    def flush(self) -> None:
        """Write what waits."""

    def ready(self, mask: int) -> None:
        """The selector's word."""
        if not self.is_open:
            self._open()
            return
        if mask & selectors.EVENT_WRITE:
            self._write_on()
        if mask & selectors.EVENT_READ:
            self._read()

    def _open(self) -> None:
        if self._failed or self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._lose(False)
            return
        if self._context is not None:
            try:
                self._shake_hands(self._context)
            except _AGAIN:
                return
            except OSError:
                self._lose(False)
                return
        self.is_open = True
        self._selector.modify(self._socket, selectors.EVENT_READ, self)
        self._opened()

    def _announce(self) -> None:
        """Tell the owner that calls may be sent."""
        self.is_ready = self.was_ready = True
        self._owner.on_open(self)

    def _shake_hands(self, context: ssl.SSLContext) -> None:
        if not isinstance(self._socket, ssl.SSLSocket):
            self._selector.unregister(self._socket)
            name = self._endpoint.host or None
            self._socket = context.wrap_socket(self._socket, server_hostname=name, do_handshake_on_connect=False)
            self._selector.register(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)
            self._recv, self._send = self._socket.recv, self._socket.send
        self._socket.do_handshake()

    def _read(self) -> None:
        try:
            data = self._recv(_READ_BYTES)
            while data:
                self._take(data)
                if self._context is None or self.is_gone:  # level-triggered: what is left is told again
                    return
                data = self._recv(_READ_BYTES)
        except _AGAIN:
            return
        except OSError:
            self._lose(True)
            return
        self._lose(True)

    def _write(self, data: bytes) -> bool:
        """Send, now or when there is room; False where the connection turned out to be gone."""
        if self._unsent is not None:
            self._unsent = memoryview(bytes(self._unsent) + data)
            return True
        try:
            sent = self._send(data)
        except _AGAIN:
            sent = 0
        except OSError:
            return False
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._selector.modify(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)
        return True

    def _write_on(self) -> None:
        if self._unsent is None:
            return
        try:
            self._unsent = self._unsent[self._send(self._unsent) :]
        except _AGAIN:
            return
        except OSError:
            self._lose(True)
            return
        if not self._unsent:
            self._unsent = None
            self._selector.modify(self._socket, selectors.EVENT_READ, self)

    def _lose(self, sent: bool) -> None:
        if not self.is_gone:
            self.close()
            self._ended(sent)
            self._owner.on_gone(self)

    def close(self) -> None:
        """End it, without a word to the owner."""
        if not self.is_gone:
            self.is_gone = True
            self.is_open = self.is_ready = False
            self._selector.unregister(self._socket)
            self._socket.close()


class Address(NamedTuple):
    """Where a socket connects to."""

    family: socket.AddressFamily
    name: Any


def resolve(endpoint: Endpoint) -> Address:
    """The first address of an endpoint: names are looked up once a run.

    Raises:
        OSError: the name is not known.
    """
    if endpoint.path:
        return Address(socket.AF_UNIX, endpoint.path)
    family, _, _, _, name = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)[0]
    return Address(family, name)
