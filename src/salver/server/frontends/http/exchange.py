"""One HTTP request and its answer, as a handler sees them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import msgspec

from salver.core.errors import Internal, SalverError, TooLarge
from salver.server.frontends.access import Peer, Scope
from salver.server.frontends.codes import error_body, error_fields, status_of

JSON: Final = b"content-type: application/json\r\n"
BINARY: Final = b"content-type: application/octet-stream\r\n"

Body = bytes | list[bytes | memoryview]
"""A whole body, or its pieces in order."""

Argument = TypeVar("Argument")
_LOG: Final = logging.getLogger(__name__)


class Match:
    """What a path leads to. Kept per path, so that a handler may remember what it worked out for it.

    Args:
        handlers: method -> handler.
        scopes: method -> what a caller needs.
        params: the path's parameters, percent-decoded, in order.
        memo: a handler's own.
    """

    __slots__ = ("handlers", "memo", "params", "scopes")

    def __init__(
        self,
        handlers: dict[bytes, Callable[[Exchange], None]],
        params: tuple[str, ...],
        scopes: dict[bytes, Scope] | None = None,
    ) -> None:
        self.handlers = handlers
        self.params = params
        self.scopes = scopes or {}
        self.memo: Any = None


NO_MATCH: Final = Match({}, ())
"""The match of a request that was refused before it was routed."""


class Writer(Protocol):
    """The side of a connection that an exchange answers to."""

    peer: Peer

    def answered(self, exchange: Exchange) -> None:
        """The exchange has its answer, its head, or another piece of its body."""

    def cut(self, exchange: Exchange) -> None:
        """The exchange has begun to answer and cannot go on: the client must see that this is not the whole answer."""

    def limit_hit(self, name: str) -> None:
        """A limit refused the request."""


class Exchange(msgspec.Struct, eq=False):
    """One request and its answer. A struct: one is made for every request.

    A handler calls `respond` or `fail` once, now or later; or, to stream, `begin`, then `send` as often as it likes,
    then `end`.

    Args:
        writer: who writes the answer.
        method: ``b"POST"``.
        target: path and query as they came.
        match: what the path leads to.
        fields: the header fields the server knows (`headers.KNOWN`), by lower-case name.
        body: the whole body, content coding undone.
        started_s: `time.perf_counter()` when the last byte was read.
        extra: header lines that the connection adds to the answer.
        cancel: what to call when the client goes away before the answer; set by the handler.
        close: whether the connection ends after it.
        is_old: whether it came as HTTP/1.0, which knows no chunks.
        is_begun: whether the head of a streamed answer has been written.
        code: ``OK`` or the error's canonical code, once there is an answer.
        status: of the answer.
        answer: its header lines and its body, once it is there.
        chunks: pieces of a streamed body that have not been written yet; an empty one is its end. None where it is
            whole.
    """

    writer: Writer
    method: bytes
    target: bytes
    match: Match
    fields: dict[bytes, bytes]
    body: bytes
    started_s: float
    extra: bytes = b""
    cancel: Callable[[], None] | None = None
    close: bool = False
    is_old: bool = False
    is_begun: bool = False
    code: str = ""
    status: int = 0
    answer: tuple[bytes, Body] | None = None
    chunks: list[bytes] | None = None

    @property
    def peer(self) -> Peer:
        """The client."""
        return self.writer.peer

    def respond(self, body: Body, fields: bytes = JSON, status: int = 200, code: str = "OK") -> None:
        """Give the answer. The first one counts; a later one is dropped.

        Args:
            fields: header lines, each ended by CRLF; the connection adds length, date and connection.
        """
        if self.answer is None:
            self.code = code
            self.status = status
            self.answer = (fields, body)
            self.cancel = None
            self.writer.answered(self)

    def begin(self, fields: bytes, status: int = 200) -> None:
        """Start a streamed answer."""
        if self.answer is None:
            self.code = "OK"
            self.status = status
            self.chunks = []
            self.answer = (fields, b"")
            self.writer.answered(self)

    def send(self, chunk: bytes) -> None:
        """Write a piece of a streamed body."""
        if self.chunks is not None and chunk:
            self.chunks.append(chunk)
            self.writer.answered(self)

    def end(self) -> None:
        """End a streamed body."""
        if self.chunks is not None:
            self.cancel = None
            self.chunks.append(b"")
            self.writer.answered(self)

    def fail(self, error: SalverError) -> None:
        """Answer with an error; an answer that has begun is cut off. A limit that the error names is counted."""
        if isinstance(error, TooLarge) and error.limit:
            self.writer.limit_hit(error.limit)
        if self.chunks is not None:
            self.cancel = None
            self.writer.cut(self)
            return
        status = status_of(error)
        self.respond(error_body(error), JSON + error_fields(error, status), status, error.code.value)

    def attempt(self, step: Callable[[Argument], None], argument: Argument) -> None:
        """Run a step of answering: the boundary at which any error becomes the answer. A defect is logged with its
        traceback, answered with 500 and without, and the connection lives."""
        try:
            step(argument)
        except SalverError as error:
            self.fail(error)
        except Exception:  # noqa: BLE001  # the request boundary
            _LOG.exception("%s %s failed", self.method.decode("latin-1"), self.target.decode("latin-1"))
            self.fail(Internal("internal error; the server's log has the details"))
