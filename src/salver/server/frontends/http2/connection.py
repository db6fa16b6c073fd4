"""One HTTP/2 connection on a transport: streams to calls and exchanges, answers to frames."""

from __future__ import annotations

import asyncio
import contextlib
from time import monotonic, perf_counter
from typing import Final, cast

from salver.core.errors import ResourceExhausted, SalverError
from salver.server.frontends.access import Peer
from salver.server.frontends.grpc.call import Call
from salver.server.frontends.http.peers import peer_of
from salver.server.frontends.http.shared import LINGER_S, Host
from salver.server.frontends.http2 import _exchange, _grpc
from salver.server.frontends.http2._exchange import Blocks, HttpStream
from salver.server.frontends.http2._grpc import StreamCall
from salver.server.frontends.http2._grpc_streaming import StreamingCall
from salver.wire.http2 import Bounds, Connection, ErrorCode, Head, Stream

DEADLINE_STEP_S: Final = 0.005
"""Deadlines are looked at no more often than that."""

MAX_BUFFERED_BODIES: Final = 4
"""Times `max_body_bytes`: what requests of one connection may hold that are still coming in."""

_JOIN_BYTES: Final = 1 << 16
_NEVER: Final = float("inf")
_ALIVE: Final = b"alive?\0\0"


class Http2Connection(asyncio.Protocol):
    """Frames in and out of one transport; all that a turn of the loop makes leaves in one write."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.peer = Peer()
        self.limits = host.limits
        self.guard = host.guard
        self.router = host.router
        self.methods = host.methods
        self.time = host.time
        self.blocks = Blocks()
        self.limit_hit = host.limit_hit
        self.machine = Connection(
            Bounds(max_streams=host.limits.max_streams, max_header_bytes=host.limits.max_header_bytes), self._open
        )
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._is_corked = False
        self._is_flush_due = False
        self._is_deaf = False
        self._is_heard = True  # since the last `check`
        self._taken = 0  # the last stream at the last `check`
        self._was_used = False  # between the last two calls of `check`
        self._heard_s = 0.0
        self._closing_since_s = 0.0
        self._writes_paused_since_s = 0.0
        self._partial_since_s = 0.0
        self._stalled_since_s = 0.0
        self._useful = 0
        self._steps = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = _NEVER
        self.buffered_bytes = 0
        """Of requests that are still coming in."""

    def hold(self, change: int) -> None:
        """Keep book of what requests hold that are still coming in."""
        self.buffered_bytes += change
        self._host.intake.held_bytes += change

    def check_intake(self) -> None:
        """Refuse the request that made it too much, here or on all connections together.

        Raises:
            ResourceExhausted: it is.
        """
        if self.buffered_bytes > MAX_BUFFERED_BODIES * self.limits.max_body_bytes:
            self.limit_hit("buffered_bytes")
            raise ResourceExhausted("the requests that are coming in on this connection are too large together")
        if self._host.intake.is_over:
            self.limit_hit("max_incoming_bytes")
            raise self._host.intake.refusal()

    @property
    def date_line(self) -> bytes:
        """The ``Date`` field."""
        return self._host.date_line

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.peer = peer_of(transport)
        self._heard_s = self.time()
        excess = self._host.opened(self)
        if excess > 0:
            self.limit_hit("max_connections")
            self.close()
        elif self._host.draining:
            self.drain()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._is_deaf = True
        self._host.closed(self)
        self.machine.close()
        self.hold(-self.buffered_bytes)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        machine = self.machine
        self._is_heard = True
        self._is_corked = True
        machine.receive(data)
        self._is_corked = False
        if machine.out:
            self._flush()
        if machine.floods.refused or machine.fault is not None:
            self._report()

    def _report(self) -> None:
        machine = self.machine
        is_counted = bool(machine.floods.refused)
        for limit in machine.floods.refused:
            self.limit_hit(limit)
        machine.floods.refused.clear()
        if machine.fault is not None:
            if machine.fault.error is not ErrorCode.ENHANCE_YOUR_CALM or not is_counted:
                self.limit_hit("http2_errors")
            self._shut()

    def pause_writing(self) -> None:
        self._writes_paused_since_s = self.time()
        self.machine.pause()
        if self._transport is not None and not self._is_deaf:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writes_paused_since_s = 0.0
        if self._transport is not None and not self._is_deaf:
            self._transport.resume_reading()
        self.machine.resume()
        self._flush()

    def wrote(self) -> None:
        """Something is to be written: now, if bytes are being received, else at the end of this turn of the loop."""
        if not self._is_corked and not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        out = self.machine.out
        transport = self._transport
        if transport is None or not out:
            return
        if self._closing_since_s:
            out.clear()
            return
        if len(out) == 1:
            transport.write(out[0])
        elif sum(map(len, out)) < _JOIN_BYTES:
            transport.write(b"".join(out))
        else:
            transport.writelines(out)
        out.clear()

    # Streams

    def _open(self, stream: Stream, head: Head, body: bytes | None) -> None:
        plan = head.memo
        if plan is None:
            plan = head.memo = self._plan(head)
        receiver: StreamCall | HttpStream
        if type(plan) is _grpc.Plan:
            if plan.is_plain and body and (message := plan.only_message(body)) is not None:
                began_s = perf_counter()
                call = stream.receiver = StreamCall(
                    self,
                    plan.path,
                    plan.metadata,
                    None,
                    began_s,
                    self.peer,
                    message,
                    connection=self,
                    stream=stream,
                    plan=plan,
                )
                call.attempt(plan.method.handle, call)
                return
            receiver = stream.receiver = (StreamingCall if plan.method.streaming else StreamCall)(
                self, plan.path, plan.metadata, None, 0.0, self.peer, connection=self, stream=stream, plan=plan
            )
            if not plan.is_plain:
                receiver.open()
        else:
            receiver = stream.receiver = HttpStream(self, stream, plan)
            receiver.open(body == b"")
        if body is not None:
            receiver.on_data(stream, body, True)

    def _plan(self, head: Head) -> _grpc.Plan | _exchange.Plan:
        fields = head.mapping
        kind = fields.get(b"content-type", b"")
        is_grpc = kind in (b"application/grpc", b"application/grpc+proto") or kind.startswith(b"application/grpc;")
        if is_grpc and fields[b":method"] == b"POST":
            return _grpc.Plan(head, self)
        return _exchange.Plan(head, self)

    # Calls

    def send(self, call: Call, message: bytes) -> None:
        """As `CallWriter`."""
        cast(StreamCall, call).put(message)
        self.wrote()

    def finish(self, call: Call, error: SalverError | None) -> None:
        """As `CallWriter`."""
        cast(StreamCall, call).end(error)
        self.wrote()

    # Deadlines

    def watch(self, deadline_s: float) -> None:
        """Look for calls that have expired at that time; one timer serves all calls of a connection."""
        if deadline_s < self._timer_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_s = deadline_s
            wait_s = max(deadline_s - monotonic(), DEADLINE_STEP_S)
            self._timer = self._loop.call_later(wait_s, self._expire)

    def _expire(self) -> None:
        self._timer, self._timer_s = None, _NEVER
        now_s = monotonic()
        earliest_s = _NEVER
        for stream in list(self.machine.streams.values()):
            call = stream.receiver
            if isinstance(call, StreamCall) and call.deadline_s is not None and not call.code:
                if call.deadline_s <= now_s:
                    call.expire()
                else:
                    earliest_s = min(earliest_s, call.deadline_s)
        if earliest_s < _NEVER:
            self.watch(earliest_s)

    # Ends

    def drain(self) -> None:
        """Ask the client to open no more streams (GOAWAY)."""
        self.machine.drain()
        self._flush()

    def check(self, now_s: float) -> None:
        """Cut off a client that idles, stalls or lingers for too long. Called about once a second."""
        patience_s = self.limits.idle_timeout_s
        self.machine.floods.replenish()
        self._was_used = bool(self.machine.streams) or self.machine.last_id != self._taken
        self._taken = self.machine.last_id
        if self._closing_since_s:
            if now_s - self._closing_since_s > min(LINGER_S, patience_s):
                self.abort()
            return
        if self._is_heard:
            self._is_heard, self._heard_s = False, now_s
        if self._is_stalled(now_s, patience_s):
            self.limit_hit("idle_timeout_s")
            self.abort()
            return
        for stream in list(self.machine.streams.values()):
            receiver = stream.receiver
            if isinstance(receiver, StreamCall | HttpStream):
                receiver.check(now_s, patience_s)
        if self.machine.out:  # a refusal reaches the client before the connection ends, next time if need be
            self._flush()
            return
        silent_s = now_s - self._heard_s
        if not self.machine.streams and (silent_s > patience_s or self.machine.is_drained):
            self.close()
        elif silent_s > 2 * patience_s:
            self.abort()
        elif silent_s > patience_s:
            self.machine.ping(_ALIVE)
            self._flush()

    def _is_stalled(self, now_s: float, patience_s: float) -> bool:
        """Whether a frame does not end, or answers are not read, for that long."""
        machine = self.machine
        if not machine.is_partial or machine.floods.useful != self._useful:
            self._useful, self._partial_since_s = machine.floods.useful, now_s
        if not machine.sender.queued_bytes or machine.sender.steps != self._steps:
            self._steps, self._stalled_since_s = machine.sender.steps, now_s
        since_s = min(self._partial_since_s, self._stalled_since_s, self._writes_paused_since_s or now_s)
        return now_s - since_s > patience_s

    @property
    def in_use(self) -> bool:
        """As `ServedConnection`."""
        machine = self.machine
        is_used = self._was_used or bool(machine.streams) or machine.last_id != self._taken
        return is_used and not machine.is_draining

    @property
    def is_idle(self) -> bool:
        """Whether no stream is open."""
        return not self.machine.streams

    def close(self) -> None:
        """End an idle connection, and say so."""
        self.machine.drain()
        self.machine.finish_drain()
        self._flush()
        self._shut()

    def _shut(self) -> None:
        """Say that no more comes, and linger until the client closes too, so that it is not reset while it reads."""
        transport = self._transport
        if transport is None or self._closing_since_s:
            return
        self._is_deaf = True
        self._closing_since_s = self.time()
        if transport.can_write_eof():
            with contextlib.suppress(OSError):  # the client may be gone already
                transport.write_eof()
        else:
            transport.close()

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()
