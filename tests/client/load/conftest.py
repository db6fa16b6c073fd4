"""Servers that follow a script, byte by byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from salver.client.load import LoadPlan

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
INPUTS = {"x": np.ones((1, 2), np.float32)}

Session = Callable[[socket.socket, int], None]
"""What a server does on one connection, the connections being numbered from 0."""


class Listener:
    """A server; `connections` counts what it accepted."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.connections = 0
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connected, _ = self._socket.accept()
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.Thread(target=self._serve, args=(connected, self.connections))
                self.connections += 1
                self._threads.append(thread)
                thread.start()

    def _serve(self, connected: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError, EOFError), connected:
            self._session(connected, number)

    def stop(self) -> None:
        """No more connections."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._accepting.join()

    def join(self) -> None:
        """All sessions have ended."""
        for thread in self._threads:
            thread.join()


def read_request(connected: socket.socket) -> bytes:
    """One request of HTTP/1.1 with a content-length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connected)
    head, _, body = data.partition(b"\r\n\r\n")
    [length] = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while len(body) < length:
        body += _more(connected)
    return head + b"\r\n\r\n" + body


def _more(connected: socket.socket) -> bytes:
    data = connected.recv(65536)
    if not data:
        raise EOFError
    return data


def answering(answer: bytes) -> Session:
    """Every request is answered with these bytes."""

    def session(connected: socket.socket, number: int) -> None:
        while True:
            read_request(connected)
            connected.sendall(answer)

    return session


@pytest.fixture
def listening() -> Callable[[Session], Any]:
    """``with listening(session) as listener``."""

    @contextmanager
    def listen(session: Session) -> Iterator[Listener]:
        listener = Listener(session)
        try:
            yield listener
        finally:
            listener.stop()
            listener.join()

    return listen


def plan_for(url: str, **given: Any) -> LoadPlan:
    """Twenty requests, four at a time, all of them counted."""
    defaults: dict[str, Any] = {"model": "m", "inputs": INPUTS, "warmup_s": 0.0, "duration_s": 0.0}
    if not {"rate_per_s", "trace"} & set(given):
        defaults |= {"concurrency": 4, "max_requests": 20}
    return LoadPlan(url=url, **(defaults | given))
