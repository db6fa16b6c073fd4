"""One gRPC call, as a handler sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import msgspec

from salver.core.errors import Internal, SalverError
from salver.server.frontends.access import Peer

Argument = TypeVar("Argument")
_LOG: Final = logging.getLogger(__name__)


class CallWriter(Protocol):
    """The side of a connection that a call answers to."""

    def send(self, call: Call, message: bytes) -> None:
        """Write one response message of a call."""

    def finish(self, call: Call, error: SalverError | None) -> None:
        """Write the status, OK where there is no error, and end the call."""


class Call(msgspec.Struct, eq=False):
    """One call and its answer. A struct: one is made for every request.

    A unary handler finds the request in `message` and calls `respond` or `fail` once, now or later. A streaming handler
    is called as soon as the call opens: it sets `on_message` and `on_end`, calls `send` as often as it likes, and
    `finish` or `fail` at the end. It answers each message at least once: while many are unanswered, no more are read.

    Args:
        writer: who writes the answer.
        path: ``/inference.GRPCInferenceService/ModelInfer``.
        metadata: the request's header fields by lower-case name, pseudo-fields included. Shared: read only.
        deadline_s: `time.monotonic()` at which the client stops waiting (``grpc-timeout``); None for never.
        started_s: `time.perf_counter()` when the request was complete, or the stream opened.
        peer: the client.
        message: the request of a unary call.
        cancel: what to call when the client goes away or its deadline passes; set by the handler.
        code: ``OK`` or the error's canonical code, once there is a status.
    """

    writer: CallWriter
    path: bytes
    metadata: dict[bytes, bytes]
    deadline_s: float | None
    started_s: float
    peer: Peer
    message: bytes = b""
    cancel: Callable[[], None] | None = None
    on_message: Callable[[bytes], None] | None = None
    on_end: Callable[[], None] | None = None
    code: str = ""

    def respond(self, message: bytes) -> None:
        """Give the only response, with status OK. The first answer counts; a later one is dropped."""
        if not self.code:
            self.code = "OK"
            self.cancel = None
            self.writer.send(self, message)
            self.writer.finish(self, None)

    def send(self, message: bytes) -> None:
        """Give one of several responses; dropped once there is a status."""
        if not self.code:
            self.writer.send(self, message)

    def finish(self) -> None:
        """End a streaming call with status OK."""
        if not self.code:
            self.code = "OK"
            self.cancel = None
            self.writer.finish(self, None)

    def fail(self, error: SalverError) -> None:
        """End with an error."""
        if not self.code:
            self.code = error.code.value
            self.cancel = None
            self.writer.finish(self, error)

    def attempt(self, step: Callable[[Argument], None], argument: Argument) -> None:
        """Run a step of answering: the boundary at which any error becomes the status. A defect is logged with its
        traceback and answered with INTERNAL, without."""
        try:
            step(argument)
        except SalverError as error:
            self.fail(error)
        except Exception:  # noqa: BLE001  # the request boundary
            _LOG.exception("%s failed", self.path.decode("latin-1"))
            self.fail(Internal("internal error; the server's log has the details"))
