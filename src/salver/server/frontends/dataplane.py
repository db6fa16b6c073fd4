"""The one way from a decoded request to the engine and back, whatever the protocol: reserved parameters, deadline,
merge key, cancellation and metrics. A frontend decodes before it and encodes after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic, perf_counter
from typing import Any, Final, Protocol

import msgspec

from salver.core.arrays import Array
from salver.core.errors import Code, InvalidArgument, SalverError, TooLarge
from salver.server.engine.base import Engine, InferRequest, SequenceStep, ServedModel, Tensors, Timing, merge_key
from salver.server.frontends.access import Peer

Encode = Callable[[dict[str, Array]], None]
"""Writes the answer from the outputs; what it raises becomes the answer."""

_MAX_WHOLE: Final = (1 << 63) - 1


class Recorder(Protocol):
    """The part of the metrics that inference reports to."""

    def record(self, model: ServedModel, code: str, timing: Timing | None, total_s: float, encode_s: float) -> None:
        """A request ended."""

    def limit_hit(self, name: str) -> None:
        """A limit refused something."""


class Reply(Protocol):
    """What is answered: an `Exchange`, a `Call`, or one message of a stream."""

    cancel: Callable[[], None] | None
    code: str

    @property
    def peer(self) -> Peer:
        """Who asked."""

    def fail(self, error: SalverError) -> None:
        """Answer with an error."""

    def attempt(self, step: Callable[[dict[str, Array]], None], outputs: dict[str, Array], /) -> None:
        """Run the last step of answering; what it raises becomes the answer."""


class Dataplane:
    """Runs decoded requests.

    Args:
        engine: runs them.
        metrics: counts them.
    """

    def __init__(self, engine: Engine, metrics: Recorder) -> None:
        self.engine = engine
        self.metrics = metrics

    def infer(
        self,
        reply: Reply,
        model: ServedModel,
        inputs: Tensors,
        rows: int,
        encode: Encode,
        started_s: float,
        outputs: tuple[str, ...] | None = None,
        parameters: Mapping[str, Any] | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """Run one request; its answer is written by ``encode``, its error by ``reply.fail``.

        Args:
            inputs, rows: as `Signature.check` accepts and returns them.
            started_s: `time.perf_counter()` when its last byte was there.
            outputs: names wanted, in order; None for all.
            parameters: those of the request; the reserved ones count: ``timeout`` (µs, 0 for none), ``priority``,
                ``sequence_id``, ``sequence_start``, ``sequence_end``.
            deadline_s: `time.monotonic()` at which the client stops waiting.

        Raises:
            SalverError: it was refused; the request has been counted, and the caller's boundary answers it.
        """
        inference = _Inference(reply, model, encode, self.metrics, started_s)
        request = InferRequest(inputs, rows, inference.done, deadline_s=deadline_s, client=reply.peer.client)
        if outputs is not None or model.ragged:
            request.outputs = outputs
            request.key = merge_key(inputs, outputs, model.signature)
        try:
            if parameters:
                _apply(request, parameters)
            reply.cancel = _Waiting(self, model, request, started_s).give_up
            self.engine.submit(model, request)
        except SalverError as error:
            self.refuse(model, error, started_s)
            raise

    def refuse(self, model: ServedModel, error: SalverError, started_s: float) -> None:
        """Count a request that ended before it reached the engine, such as one that could not be decoded."""
        if isinstance(error, TooLarge):
            self.count_limit(error)
        self.metrics.record(model, error.code.value, None, perf_counter() - started_s, 0.0)

    def count_limit(self, error: TooLarge) -> None:
        """Count a limit that was hit, once."""
        if error.limit:
            self.metrics.limit_hit(error.limit)
            error.limit = ""


class _Waiting(msgspec.Struct, eq=False, frozen=True):
    """A request for whose answer somebody waits. The reply knows of it, and the request of the reply: until the reply
    lets go of `cancel`, which it does when it is answered or given up, so that no cycle is left."""

    dataplane: Dataplane
    model: ServedModel
    request: InferRequest
    started_s: float

    def give_up(self) -> None:
        """The client went away, or the deadline that it set passed: nobody waits for the answer."""
        request = self.request
        self.dataplane.engine.cancel(self.model, request)
        is_late = request.deadline_s is not None and monotonic() >= request.deadline_s
        code = Code.DEADLINE_EXCEEDED if is_late else Code.CANCELLED
        self.dataplane.metrics.record(self.model, code.value, None, perf_counter() - self.started_s, 0.0)


class _Inference(msgspec.Struct, eq=False, frozen=True):
    """One request between its decoding and its answer."""

    reply: Reply
    model: ServedModel
    encode: Encode
    metrics: Recorder
    started_s: float

    def done(self, result: dict[str, Array] | SalverError, timing: Timing | None) -> None:
        """Called by the engine, once."""
        reply = self.reply
        reply.cancel = None
        encode_from_s = perf_counter()
        if isinstance(result, SalverError):
            reply.fail(result)
        else:
            reply.attempt(self.encode, result)
        now_s = perf_counter()
        self.metrics.record(self.model, reply.code, timing, now_s - self.started_s, now_s - encode_from_s)


def _apply(request: InferRequest, parameters: Mapping[str, Any]) -> None:
    timeout_us = _whole(parameters, "timeout")
    if timeout_us:
        until_s = monotonic() + timeout_us / 1e6
        request.deadline_s = until_s if request.deadline_s is None else min(until_s, request.deadline_s)
    request.priority = _whole(parameters, "priority")
    sequence = parameters.get("sequence_id", 0)
    if type(sequence) not in (int, str) or (type(sequence) is int and not 0 <= sequence < 1 << 64):
        raise InvalidArgument(f"parameter 'sequence_id' is {sequence!r}, expected a whole number or a text")
    if sequence:
        start, end = _flag(parameters, "sequence_start"), _flag(parameters, "sequence_end")
        request.sequence = SequenceStep(sequence, start, end)


def _whole(parameters: Mapping[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= _MAX_WHOLE:
        raise InvalidArgument(f"parameter '{name}' is {value!r}, expected a whole number from 0 to {_MAX_WHOLE}")
    return value


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidArgument(f"parameter '{name}' is {value!r}, expected true or false")
    return value
