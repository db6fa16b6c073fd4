"""The port of the client's protocols: calls to bytes and back, with no socket. One implementation per protocol."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from salver.client.messages import Answer, InferCall

Operation = Literal[
    "live", "ready", "model_ready", "server", "model", "config", "statistics", "index", "load", "unload"
]
"""What may be asked besides inference."""


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """One request.

    Args:
        fields: header fields, names in lower case.
        body: whole, or in pieces.
        once: whether it must not be sent a second time when the first may have arrived.
    """

    path: str
    method: str = "POST"
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes | list[bytes | memoryview] = b""
    once: bool = False


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """One response.

    Args:
        status: of HTTP; with gRPC its own.
        fields: header fields by lower-case name, and with gRPC the trailers too.
    """

    status: int
    fields: dict[bytes, bytes]
    body: bytes


class Protocol(abc.ABC):
    """A wire protocol, as a client speaks it."""

    @abc.abstractmethod
    def infer(self, call: InferCall, left_s: float | None) -> Outgoing:
        """The request for one inference.

        Args:
            left_s: time until the caller gives up; the server is told.
        """

    @abc.abstractmethod
    def read_infer(self, incoming: Incoming) -> Answer:
        """The answer.

        Raises:
            SalverError: the server's error, by its code.
            Internal: bytes that are not of this protocol.
        """

    @abc.abstractmethod
    def ask(self, operation: Operation, arguments: Mapping[str, Any]) -> Outgoing:
        """The request for another operation; arguments are ``model``, ``version``, ``config``, ``files``."""

    @abc.abstractmethod
    def read(self, operation: Operation, incoming: Incoming) -> Any:
        """Its answer: plain data, named alike in all protocols. ``live``, ``ready`` and ``model_ready`` give a bool."""
