"""One HTTP/1.1 connection (RFC 9112) on a transport: requests to handlers, answers to bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final, cast

from salver.core.errors import SalverError, Unavailable
from salver.server.frontends.codes import HttpError
from salver.server.frontends.http._reader import RequestReader
from salver.server.frontends.http.admission import check_caller
from salver.server.frontends.http.answers import answer_options, plain_answer, write_answer, write_chunks
from salver.server.frontends.http.coding import decompress
from salver.server.frontends.http.exchange import NO_MATCH, Exchange
from salver.server.frontends.http.peers import peer_of
from salver.server.frontends.http.shared import LINGER_S, MIN_BODY_BYTES_S, Host

MAX_PIPELINED: Final = 64
MAX_REFUSED: Final = 256
"""Connections over the limit that are told so; still more are cut without a word."""

MAX_QUEUED_BYTES: Final = 64 << 20
"""Of streamed answers that the client does not read; with more the connection ends."""

_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(RequestReader, asyncio.Protocol):
    """One connection. Answers leave in the order in which requests came, whatever the order in which they are made."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._transport: asyncio.Transport | None = None
        self._pending: deque[Exchange] = deque()  # in the order of their answers
        self._waiting: deque[Exchange] = deque()  # the last of these, which no handler has seen yet
        self._advance_due = False
        self._corked = False
        self._flush_due = False
        self._queued_bytes = 0
        self._closing_since_s = 0.0
        self._writes_paused_since_s = 0.0
        self._reads_paused = False
        self._is_last = False  # the next answer is, as far as others do not wait behind it
        self._was_used = False  # between the last two calls of `check`
        self._first: bytes | None = b""  # what came first, while that may yet be HTTP/2

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._since_s = self._time()
        self._is_last = self._host.draining
        self.peer = peer_of(transport)
        tls: Any = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            self._leave(b"")
            return
        excess = self._host.opened(self)
        if excess > 0:
            self._host.limit_hit("max_connections")
        if excess > MAX_REFUSED:
            self.abort()
        elif excess > 0:
            self._refuse(Unavailable("the server has as many connections as it allows (max_connections); retry later"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._host.closed(self)
        self._forget()
        self._end_reading()

    def eof_received(self) -> None:
        """The client is gone: answers made are flushed, requests in flight are cancelled, and the transport closes."""
        self._forget()
        self._closing_since_s = self._time()

    def _forget(self) -> None:
        self._deaf = True
        for exchange in self._pending:
            if exchange.cancel is not None:
                exchange.cancel()
                exchange.cancel = None  # a reference cycle, which would keep the request's arrays for long
        self._pending.clear()
        self._waiting.clear()
        self._let_go()

    def pause_writing(self) -> None:
        self._writes_paused_since_s = self._time()
        self._pace()

    def resume_writing(self) -> None:
        self._writes_paused_since_s = 0.0
        self._queued_bytes = 0
        self._flush()
        self._pace()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._first is not None:
            data = self._first + data
            if data.startswith(_HTTP2_PREFACE[: len(data)]):
                self._first = data
                if len(data) >= len(_HTTP2_PREFACE):
                    self._leave(data)
                return
            self._first = None
        self._read(data)

    def _parse(self, data: bytes) -> None:
        self._corked = True
        super()._parse(data)
        self._corked = False
        if self._pending:
            self._flush()
        self._pace()

    def _send_continue(self) -> None:
        self._flush()

    def _leave(self, data: bytes) -> None:
        """Leave the transport to HTTP/2."""
        transport, self._transport = self._transport, None
        self._end_reading()
        if transport is not None:
            self._host.hand_over(self, transport, data)

    # Answering

    def _take_refused(self, exchange: Exchange, error: SalverError) -> None:
        self._pending.append(exchange)
        exchange.fail(error)

    def _take(self, exchange: Exchange, step: Callable[[Exchange], None]) -> None:
        """Hand a request to its handler, or keep it where the connection has enough in flight: one read may hold
        thousands, whose answers would be made, and kept in memory, faster than they are read."""
        pending = self._pending
        pending.append(exchange)
        if len(pending) < MAX_PIPELINED and not self._waiting:
            exchange.attempt(step, exchange)
            return
        if len(pending) > MAX_PIPELINED or self._waiting:
            self._waiting.append(exchange)
        else:
            exchange.attempt(step, exchange)
        self._pace()

    def _room(self) -> int:
        """How many more requests may be with handlers."""
        return MAX_PIPELINED - (len(self._pending) - len(self._waiting))

    def _advance(self) -> None:
        """Hand on requests that were kept, a turn's worth."""
        self._advance_due = False
        self._corked = True
        for _ in range(self._room()):
            if not self._waiting or self._writes_paused_since_s:
                break
            exchange = self._waiting.popleft()
            exchange.attempt(self._handle, exchange)
        self._corked = False
        self._flush()

    def _handle(self, exchange: Exchange) -> None:
        # Checked before its body was read; but a head seen before may come from another caller.
        check_caller(self._host.guard, exchange.match, exchange.method, exchange.fields, self.peer)
        coding = exchange.fields.get(b"content-encoding")
        if coding is not None:
            exchange.body = decompress(exchange.body, coding, self._limits.max_decompressed_bytes)
        handler = exchange.match.handlers.get(exchange.method)
        if handler is not None:
            handler(exchange)
        else:
            answer_options(exchange)

    def limit_hit(self, name: str) -> None:
        self._host.limit_hit(name)

    def answered(self, exchange: Exchange) -> None:
        """Write the answer now if it is the only one; else with the others of this turn of the loop."""
        if exchange.chunks and not self._may_go_on(exchange):
            return
        if self._corked:
            return
        pending = self._pending
        if len(pending) == 1:
            transport = self._transport
            if (
                exchange.close
                or self._is_last
                or self._partial
                or self._reads_paused
                or transport is None
                or (whole := plain_answer(exchange, self._host.date_line)) is None
            ):
                self._flush()
            else:  # what `_flush` comes to for nearly every answer
                pending.clear()
                self._since_s = 0.0
                transport.write(whole)
        elif not self._flush_due and pending and pending[0].answer is not None:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush_together)

    def _flush_together(self) -> None:
        self._flush_due = False
        self._flush()

    def _may_go_on(self, exchange: Exchange) -> bool:
        """Whether a piece of a streamed answer may be written now; pieces that may not wait, up to a bound."""
        if not self._pending:  # the client is gone
            return False
        if self._corked or self._writes_paused_since_s or exchange is not self._pending[0]:
            self._queued_bytes += len(exchange.chunks[-1]) if exchange.chunks else 0
            if self._queued_bytes > MAX_QUEUED_BYTES:
                self._host.limit_hit("queued_bytes")
                self.abort()
            return False
        return True

    def cut(self, exchange: Exchange) -> None:
        """End the connection without the end of the answer."""
        self.abort()

    def _flush(self) -> None:
        """Write every answer whose turn it is, in one write."""
        transport = self._transport
        if transport is None:
            return
        pending, host = self._pending, self._host
        out: list[bytes | memoryview] = []
        last = False
        while pending and not last:
            exchange = pending[0]
            if exchange.answer is None:
                break
            last = exchange.close or (self._is_last and len(pending) == 1 and not self._partial)
            if exchange.chunks is None:
                write_answer(exchange, last, host.date_line, out)
            else:
                self._queued_bytes = 0
                last = last or exchange.is_old
                if not write_chunks(exchange, last, host.date_line, out):
                    last = False
                    break
            pending.popleft()
        if self._continue_due and not pending and not last:
            self._continue_due = False
            out.append(_CONTINUE)
        if len(out) == 1:
            transport.write(out[0])
        elif out:
            transport.writelines(out)
        if last:
            self._forget()  # an old client's stream ends with its connection: what it asked behind that is not answered
            self._shut(transport)
        elif not pending and not self._partial:
            self._since_s = 0.0
        if self._waiting and not (self._advance_due or last or self._writes_paused_since_s or self._room() < 1):
            self._advance_due = True
            asyncio.get_running_loop().call_soon(self._advance)
        if self._reads_paused:
            self._pace()

    # Ending

    def _refuse(self, error: SalverError) -> None:
        """Answer with an error, after the answers that come first, and listen no more."""
        exchange = Exchange(self, b"", self._target, NO_MATCH, {}, b"", perf_counter())
        exchange.close = True
        self._deaf = True
        self._partial = False
        self._continue_due = False
        self._let_go()
        self._pending.append(exchange)
        exchange.fail(error)

    def _shut(self, transport: asyncio.Transport) -> None:
        """Say that no more comes, and linger until the client closes too, at most `LINGER_S`."""
        self._deaf = True
        self._closing_since_s = self._time()
        if self._reads_paused:
            self._reads_paused = False
            transport.resume_reading()
        if transport.can_write_eof():
            with contextlib.suppress(OSError):  # the client may be gone already
                transport.write_eof()
        else:  # TLS says good-bye in its own way
            transport.close()

    def _pace(self) -> None:
        """Read no more from a client that has enough in flight, or does not read its answers."""
        transport = self._transport
        if transport is None or self._closing_since_s:
            return
        stop = len(self._pending) >= MAX_PIPELINED or self._writes_paused_since_s > 0
        if stop != self._reads_paused:
            self._reads_paused = stop
            if stop:
                transport.pause_reading()
            else:
                if not self._pending:
                    self._since_s = self._time()
                transport.resume_reading()

    def check(self, now_s: float) -> None:
        """Cut off a client that idles, stalls or lingers for too long. Called about once a second."""
        patience_s = self._limits.idle_timeout_s
        self._was_used = bool(self._pending) or self._since_s == 0.0
        if self._closing_since_s:
            if now_s - self._closing_since_s > min(LINGER_S, patience_s):
                self.abort()
        elif self._writes_paused_since_s:
            if now_s - self._writes_paused_since_s > patience_s:
                self._host.limit_hit("idle_timeout_s")
                self.abort()
        elif self._partial and not self._reads_paused:
            if now_s - self._since_s > patience_s + self._body_bytes / MIN_BODY_BYTES_S:
                self._host.limit_hit("idle_timeout_s")
                self._refuse(HttpError(408, f"the request did not arrive in time (idle_timeout_s is {patience_s:g})"))
        elif not self._pending:
            self._since_s = self._since_s or now_s
            if now_s - self._since_s > patience_s:
                self.close()

    def drain(self) -> None:
        """The next answer says that it is the last."""
        self._is_last = True

    @property
    def in_use(self) -> bool:
        """As `ServedConnection`."""
        return (self._was_used or bool(self._pending) or self._since_s == 0.0) and not self._is_last

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being read or answered."""
        return not self._pending and not self._partial

    def close(self) -> None:
        """End an idle connection."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()
