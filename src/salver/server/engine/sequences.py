"""The scheduler of a model with state: requests of one sequence run in order, one at a time, each with the state that
the one before it left; requests of different sequences share batches as others do.

A pure state machine like the scheduler it extends. A request waits here until those before it in its sequence have
ended, and until its sequence has a slot where slots are needed (strategy ``direct``); then it is queued. Meaning of
start and end as in Triton's sequence batcher
(https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/architecture.html#stateful-models).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import Final

from salver.core.arrays import Array
from salver.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    SalverError,
    Unavailable,
)
from salver.server.engine.base import InferRequest, SequenceStep
from salver.server.engine.config import SequenceConfig
from salver.server.engine.cost import CostModel
from salver.server.engine.queues import QUEUED
from salver.server.engine.scheduler import (
    CANCELLED,
    DONE,
    SLACK,
    Batch,
    Limits,
    Scheduler,
    WaitUntil,
    because,
    measure,
)
from salver.server.engine.stateful import State, Stateful

WAITING: Final = 5
"""The mark of a request whose turn in its sequence has not come."""

_RETRY_S: Final = 1.0  # sequences end when clients say so: nothing better is known


class _Sequence:
    """One sequence that is alive.

    Its requests wait in ``waiting``, except the one that is queued or runs, ``busy``. ``state`` is None before its
    first request has run well.
    """

    __slots__ = ("busy", "id", "slot", "state", "state_bytes", "waiting")

    def __init__(self, name: int | str) -> None:
        self.id = name
        self.waiting: deque[InferRequest] = deque()
        self.busy: InferRequest | None = None
        self.state: State | None = None
        self.state_bytes = 0
        self.slot = -1

    @property
    def ends(self) -> bool:
        """Whether the last request it was given is its end."""
        last = self.waiting[-1] if self.waiting else self.busy
        return last is not None and _step(last).end


class SequenceScheduler(Scheduler):
    """Queue, batches and lanes of a model with state. A batch that fails is never run again.

    What a request's ``sequence`` says counts when its turn has come, even if the request was cancelled by then: a start
    resets the state, an end ends the sequence. A request that fails or is refused leaves the state as it was.

    Args:
        limits, merge, row_bytes, cost: as `Scheduler`; the bounds count waiting requests too.
        config: how many sequences may live, and how long without requests.
        stateful: the model's states and controls.
    """

    def __init__(
        self,
        limits: Limits,
        config: SequenceConfig,
        stateful: Stateful,
        *,
        merge: bool,
        row_bytes: int = 0,
        cost: CostModel | None = None,
    ) -> None:
        super().__init__(limits, merge=merge, split=False, row_bytes=row_bytes, cost=cost)
        self._config = config
        self._stateful = stateful
        self._live: dict[int | str, _Sequence] = {}
        self._idle: dict[int | str, float] = {}  # since when, oldest first
        self._turns: deque[_Sequence] = deque()
        self._advancing = False
        self._waiting = 0
        self._waiting_bytes = 0
        self._state_bytes = 0
        self._waiting_deadlines: list[tuple[float, int, InferRequest]] = []
        self._now = 0.0
        self._closing = False
        self._free: list[int] | None = None
        self._backlog: deque[_Sequence] = deque()
        if config.strategy == "direct" and (merge or not stateful.keeps_state):
            self._free = list(range(limits.max_batch if merge else 1))

    @property
    def has_slots(self) -> bool:
        """Whether each sequence has a row of its own in every batch."""
        return self._free is not None

    @property
    def idle(self) -> bool:
        return not self._waiting and super().idle

    def gauges(self) -> dict[str, int]:
        found = super().gauges()
        found["queued"] += self._waiting
        found["sequences"] = len(self._live)
        found["state_bytes"] = self._state_bytes
        return found

    def submit(self, request: InferRequest, now: float) -> None:
        """Let a request wait for its turn, or queue it.

        Raises:
            InvalidArgument: it names no sequence, or one that is not alive and does not start it, or has several rows.
            ResourceExhausted: too many sequences live, or requests wait.
            DeadlineExceeded: the deadline has passed.
            Unavailable: draining.
        """
        self._now = now
        self._expire_idle()
        if self._slo_s and request.deadline_s is None:
            request.deadline_s = now + self._slo_s
        step = _step(request)
        self._check(request, step)
        sequence = self._live.get(step.id)
        if not step.start and (sequence is None or sequence.ends):
            raise InvalidArgument(
                f"sequence {step.id!r} is not alive: its first request has 'sequence_start' true; it ends with "
                f"'sequence_end', or after {self._config.idle_timeout_s:g} s without a request"
            )
        size = request.rows * self._row_bytes or measure(request.inputs)
        self._check_room(size, now)
        if self._state_bytes > self._config.max_state_bytes and not step.end:
            retry_s = self._retry_s()
            raise ResourceExhausted(
                f"the states of {len(self._live)} sequences take {self._state_bytes} bytes, at most "
                f"{self._config.max_state_bytes} may be; end some with 'sequence_end', or retry in {retry_s:.3g} s",
                retry_after_s=retry_s,
            )
        if sequence is None:
            sequence = self._begin(step.id)
        request.arrived_s = now
        request.size_bytes = size
        request.state = WAITING
        self._idle.pop(step.id, None)
        sequence.waiting.append(request)
        self._waiting += 1
        self._waiting_bytes += size
        self._advance(sequence)
        if request.deadline_s is not None and request.state == WAITING:
            self._watch_waiting(request, request.deadline_s)

    def cancel(self, request: InferRequest) -> None:
        if request.state == WAITING:
            self._leave_waiting(request)
            request.state = CANCELLED
            return
        queued = request.state == QUEUED
        super().cancel(request)
        if queued:
            self._settle(request, None)

    def next_batch(self, lane: int, now: float) -> Batch | WaitUntil | None:
        self._now = now
        self._expire_idle()
        self._expire_waiting()
        found = super().next_batch(lane, now)
        if type(found) is Batch:
            if self._free is not None:
                found.slots = [self._of(request).slot for request in found.requests]
            return found
        at_s = self._next_event_s()
        if type(found) is WaitUntil and (at_s is None or found.at_s < at_s):
            return found
        return None if at_s is None else WaitUntil(at_s)

    def complete(
        self, batch: Batch, now: float, cpu_s: float | None = None, answers: Sequence[dict[str, Array]] = ()
    ) -> None:
        """A batch ran: as `Scheduler.complete`; the next states are taken out of the answers."""
        super().complete(batch, now, cpu_s)
        self._now = now
        shared = len(batch.requests) > 1
        for request, outputs in zip(batch.requests, answers, strict=True):
            self._settle(request, self._stateful.take(outputs, shared=shared))

    def fail(self, batch: Batch, error: SalverError) -> None:
        told = error.reworded(
            f"{error.message} (the sequence keeps the state it had before; one that was starting has to start again)"
        )
        super().fail(batch, told)
        for request in batch.requests:
            self._settle(request, None)

    def drain(self) -> None:
        """Take no more requests; what waits still runs. Sequences for which nothing waits end."""
        self._closing = True
        for name in list(self._idle):
            self._end(self._live[name])

    def refuse_all(self, error: SalverError) -> None:
        for sequence in self._live.values():
            for request in sequence.waiting:
                self._drop(request, error)
            sequence.waiting.clear()
        self._waiting = 0
        while self._backlog:
            del self._live[self._backlog.pop().id]
        super().refuse_all(error)

    def _check(self, request: InferRequest, step: SequenceStep) -> None:
        if self._closing:
            raise because("draining", Unavailable("the model is draining: it takes no new requests"))
        if self._stateful.batched and request.rows != 1:
            raise InvalidArgument(f"got {request.rows} rows, expected 1: each request is one step of one sequence")
        self._stateful.check_id(step.id)
        if request.deadline_s is not None and request.deadline_s < self._now:
            late_s = self._now - request.deadline_s
            told = f"the deadline passed {late_s:.3g} s before the request was queued"
            raise because("deadline", DeadlineExceeded(told))

    def _check_room(self, size: int, now: float) -> None:
        waiting = self.queued + self._waiting
        limits = self._limits
        taken = self.queued_bytes + self._waiting_bytes
        if waiting and (waiting >= limits.max_queue or taken + size > limits.max_queue_bytes):
            wait_s = max(self.wait_s(now), self.cost.mean_s(1) * self._waiting, 0.001)
            told = (
                f"the queue is full: {waiting} requests ({taken} bytes) wait, at most {limits.max_queue} "
                f"({limits.max_queue_bytes} bytes) may; retry in about {wait_s:.3g} s"
            )
            raise because("queue_full", ResourceExhausted(told, retry_after_s=wait_s))

    def _begin(self, name: int | str) -> _Sequence:
        if len(self._live) >= self._config.max_sequences:
            retry_s = self._retry_s()
            raise ResourceExhausted(
                f"{len(self._live)} sequences are alive, at most {self._config.max_sequences} may be; end some with "
                f"'sequence_end', or retry in {retry_s:.3g} s",
                retry_after_s=retry_s,
            )
        sequence = self._live[name] = _Sequence(name)
        if self._free:
            sequence.slot = heapq.heappop(self._free)
        elif self._free is not None:
            self._backlog.append(sequence)
        return sequence

    def _retry_s(self) -> float:
        """When a sequence may be gone."""
        oldest_s = next(iter(self._idle.values()), self._now)
        return min(max(oldest_s + self._config.idle_timeout_s - self._now, 0.001), _RETRY_S)

    def _advance(self, sequence: _Sequence) -> None:
        """Let a sequence go on as far as it can. Not by recursion: its end may let in another, and so on."""
        if self._advancing:
            self._turns.append(sequence)
            return
        self._advancing = True
        try:
            self._take_turn(sequence)
            while self._turns:
                self._take_turn(self._turns.popleft())
        finally:
            self._advancing = False

    def _take_turn(self, sequence: _Sequence) -> None:
        if self._free is not None and sequence.slot < 0:
            return
        while sequence.waiting and sequence.busy is None:
            self._release(sequence, sequence.waiting.popleft())
        if sequence.busy is not None or sequence.waiting:
            return
        if sequence.state is None or self._closing:
            self._end(sequence)
        else:
            self._idle[sequence.id] = self._now

    def _release(self, sequence: _Sequence, request: InferRequest) -> None:
        """The turn of a request has come: queue it, or refuse it."""
        step = _step(request)
        self._waiting -= 1
        if step.start or (step.end and request.state == CANCELLED):
            self._set_state(sequence, None)
        if request.state != WAITING:
            return
        if not step.start and sequence.state is None:
            self._drop(
                request,
                FailedPrecondition(
                    f"sequence {step.id!r} has no state: its first request failed, was refused or was cancelled; "
                    "begin again with 'sequence_start'"
                ),
            )
            return
        self._waiting_bytes -= request.size_bytes
        arrived_s = request.arrived_s
        self._fill(request, sequence.state)
        try:
            super().submit(request, self._now)
        except SalverError as error:
            request.size_bytes = 0
            self._drop(request, error)
            return
        request.arrived_s = arrived_s
        sequence.busy = request

    def _fill(self, request: InferRequest, state: State | None) -> None:
        stateful = self._stateful
        if state is None:
            state = stateful.initial(request.arrays())
        request.inputs = {**request.arrays(), **state, **stateful.controls(_step(request))}
        request.outputs = stateful.widen(request.outputs)
        if stateful.ragged:
            request.key = (request.key, stateful.shapes(state))

    def _settle(self, request: InferRequest, state: State | None) -> None:
        """A request that was queued has ended, with the next state if it ran well."""
        sequence = self._of(request)
        sequence.busy = None
        if (state is not None or request.state == CANCELLED) and _step(request).end:
            self._set_state(sequence, None)
        elif state is not None:
            self._set_state(sequence, state)
        self._advance(sequence)

    def _set_state(self, sequence: _Sequence, state: State | None) -> None:
        size = 0 if state is None else sum(array.nbytes for array in state.values())
        self._state_bytes += size - sequence.state_bytes
        sequence.state, sequence.state_bytes = state, size

    def _of(self, request: InferRequest) -> _Sequence:
        """The sequence of a request that is queued or runs."""
        return self._live[_step(request).id]

    def _end(self, sequence: _Sequence) -> None:
        self._set_state(sequence, None)
        del self._live[sequence.id]
        self._idle.pop(sequence.id, None)
        if self._free is None:
            return
        if self._backlog:
            following = self._backlog.popleft()
            following.slot = sequence.slot
            self._advance(following)
        else:
            heapq.heappush(self._free, sequence.slot)

    def _reject(self, request: InferRequest, error: SalverError) -> None:
        super()._reject(request, error)
        self._settle(request, None)

    def _drop(self, request: InferRequest, error: SalverError) -> None:
        """Refuse a request whose turn has not come, or just now; it keeps its place in its sequence."""
        if request.state == WAITING:
            self._leave_waiting(request)
            request.state = DONE
            self._refused.append((request, error))

    def _leave_waiting(self, request: InferRequest) -> None:
        self._waiting_bytes -= request.size_bytes
        request.size_bytes = 0
        request.inputs = {}

    def _watch_waiting(self, request: InferRequest, deadline_s: float) -> None:
        heap = self._waiting_deadlines
        if len(heap) > 2 * self._waiting + SLACK:
            heap = self._waiting_deadlines = [entry for entry in heap if entry[2].state == WAITING]
            heapq.heapify(heap)
        self._sequence += 1
        heapq.heappush(heap, (deadline_s, self._sequence, request))

    def _expire_waiting(self) -> None:
        heap = self._waiting_deadlines
        while heap and (heap[0][0] < self._now or heap[0][2].state != WAITING):
            deadline_s, _, request = heapq.heappop(heap)
            waited_s = deadline_s - request.arrived_s
            late = DeadlineExceeded(f"the deadline passed after {waited_s:.3g} s in the queue")
            self._drop(request, because("deadline", late))

    def _expire_idle(self) -> None:
        before_s = self._now - self._config.idle_timeout_s
        while self._idle:
            name, since_s = next(iter(self._idle.items()))
            if since_s > before_s:
                return
            self._end(self._live[name])

    def _next_event_s(self) -> float | None:
        """When something happens by itself: a sequence has idled too long, or a deadline passes."""
        events = [entry[0] for entry in self._waiting_deadlines[:1]]
        if self._idle:
            events.append(next(iter(self._idle.values())) + self._config.idle_timeout_s)
        return min(events, default=None)


def _step(request: InferRequest) -> SequenceStep:
    """Where in which sequence a request stands.

    Raises:
        InvalidArgument: in none.
    """
    if request.sequence is None:
        raise InvalidArgument(
            "the model keeps state between requests: give each the parameter 'sequence_id', and the first of a "
            "sequence 'sequence_start'"
        )
    return request.sequence
