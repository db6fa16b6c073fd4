"""Sequences: order, state and slots, as a pure state machine, under rules (Hypothesis) and simulated traffic."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from salver.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    SalverError,
    Unavailable,
)
from salver.core.tensors import Signature, TensorSpec
from salver.server.engine.base import InferRequest, SequenceStep
from salver.server.engine.config import SequenceConfig, StateConfig
from salver.server.engine.scheduler import CANCELLED, DONE, Batch, Limits, WaitUntil
from salver.server.engine.sequences import SequenceScheduler
from salver.server.engine.stateful import Stateful

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", datatype="INT64", shape=("batch",)),
        TensorSpec(name="s", datatype="INT64", shape=("batch", 1)),
    ),
    outputs=(
        TensorSpec(name="y", datatype="INT64", shape=("batch",)),
        TensorSpec(name="s2", datatype="INT64", shape=("batch", 1)),
    ),
)
"""A chain of numbers: what it gives depends on every step before, and on their order."""

Strategy = Literal["direct", "oldest"]
BOTH: tuple[Strategy, ...] = ("oldest", "direct")


def step(state: int, x: int) -> int:
    return (state * 31 + x) % 1_000_003


def _ignore(_result: Any, _timing: Any) -> None:
    """Schedulers never call `done`."""


def ask(name: int | str, x: int = 1, *, start: bool = False, end: bool = False, **more: Any) -> InferRequest:
    inputs = {"x": np.array([x])}
    return InferRequest(inputs, 1, _ignore, sequence=SequenceStep(name, start, end), **more)


def make(
    strategy: Strategy = "oldest",
    *,
    merge: bool = True,
    max_sequences: int = 100,
    idle_timeout_s: float = 10.0,
    max_state_bytes: int = 1 << 20,
    **limits: int,
) -> SequenceScheduler:
    config = SequenceConfig(
        max_state_bytes=max_state_bytes,
        strategy=strategy,
        max_sequences=max_sequences,
        idle_timeout_s=idle_timeout_s,
        states=(StateConfig(input="s", output="s2", initial=7),),
    )
    return SequenceScheduler(Limits(**limits), config, Stateful(SIGNATURE, config), merge=merge, row_bytes=16)


def run(batch: Batch) -> list[dict[str, Any]]:
    """What the model answers."""
    values = [step(int(r.inputs["s"][0, 0]), int(r.inputs["x"][0])) for r in batch.requests]
    return [{"y": np.array([value]), "s2": np.array([[value]])} for value in values]


def take(scheduler: SequenceScheduler, lane: int = 0, now: float = 0.0) -> Batch:
    found = scheduler.next_batch(lane, now)
    assert isinstance(found, Batch)
    return found


def turn(scheduler: SequenceScheduler, now: float = 0.0) -> list[tuple[int | str, int]]:
    """Run one batch; (sequence, answer) of each request."""
    batch = take(scheduler, now=now)
    answers = run(batch)
    scheduler.complete(batch, now, answers=answers)
    assert all(list(answer) == ["y"] for answer in answers), "states are no business of clients"
    return [(r.sequence.id, int(a["y"][0])) for r, a in zip(batch.requests, answers, strict=True) if r.sequence]


class TestOrder:
    @pytest.mark.parametrize("strategy", BOTH)
    def test_requests_of_one_sequence_run_one_after_another_with_the_state_left(self, strategy: Strategy) -> None:
        scheduler = make(strategy)
        for i in range(4):
            scheduler.submit(ask(5, i, start=i == 0, end=i == 3), 0.0)
        expected, got = 7, []
        for i in range(4):
            expected = step(expected, i)
            got += turn(scheduler)
            assert got[-1] == (5, expected)
        assert scheduler.idle
        assert scheduler.gauges()["sequences"] == 0

    @pytest.mark.parametrize("strategy", BOTH)
    def test_different_sequences_share_batches(self, strategy: Strategy) -> None:
        scheduler = make(strategy)
        for i in range(2):
            for name in ("a", "b", 3):
                scheduler.submit(ask(name, i, start=i == 0), 0.0)
        assert [name for name, _ in turn(scheduler)] == ["a", "b", 3]
        assert turn(scheduler) == [(name, step(step(7, 0), 1)) for name in ("a", "b", 3)]
        assert scheduler.gauges()["sequences"] == 3

    def test_a_number_and_a_text_are_different_sequences(self) -> None:
        scheduler = make()
        scheduler.submit(ask(1, start=True), 0.0)
        scheduler.submit(ask("1", start=True), 0.0)
        assert len(take(scheduler).requests) == 2

    def test_a_second_start_begins_anew_after_what_was_sent_before(self) -> None:
        scheduler = make()
        for i, start in enumerate((True, False, True, False)):
            scheduler.submit(ask(1, i, start=start), 0.0)
        got = [turn(scheduler)[0][1] for _ in range(4)]
        assert got == [step(7, 0), step(step(7, 0), 1), step(7, 2), step(step(7, 2), 3)]

    def test_a_sequence_may_start_again_after_its_end_before_that_has_run(self) -> None:
        scheduler = make()
        scheduler.submit(ask(1, 1, start=True, end=True), 0.0)
        scheduler.submit(ask(1, 2, start=True), 0.0)
        assert [turn(scheduler), turn(scheduler)] == [[(1, step(7, 1))], [(1, step(7, 2))]]

    def test_an_answer_of_the_outputs_wanted_takes_the_state_along(self) -> None:
        scheduler = make()
        scheduler.submit(ask(1, start=True, outputs=("y",)), 0.0)
        assert take(scheduler).requests[0].outputs == ("y", "s2")

    def test_time_in_the_queue_counts_from_arrival(self) -> None:
        scheduler = make()
        requests = [ask(1, start=True), ask(1)]
        for request in requests:
            scheduler.submit(request, 1.0)
        turn(scheduler, now=4.0)
        assert requests[1].arrived_s == 1.0


class TestRefusals:
    def test_a_request_without_a_sequence_is_told_what_to_give(self) -> None:
        with pytest.raises(InvalidArgument, match="'sequence_id'"):
            make().submit(InferRequest({"x": np.array([1])}, 1, _ignore), 0.0)

    def test_a_sequence_that_is_not_alive_must_start(self) -> None:
        scheduler = make()
        with pytest.raises(InvalidArgument, match="sequence 9 is not alive: its first request has 'sequence_start'"):
            scheduler.submit(ask(9), 0.0)
        scheduler.submit(ask(9, start=True, end=True), 0.0)
        with pytest.raises(InvalidArgument, match="not alive"):  # though its end has not run
            scheduler.submit(ask(9), 0.0)

    def test_a_request_has_one_row(self) -> None:
        request = InferRequest({"x": np.array([1, 2])}, 2, _ignore, sequence=SequenceStep(1, start=True))
        with pytest.raises(InvalidArgument, match="got 2 rows, expected 1"):
            make().submit(request, 0.0)

    def test_sequences_are_bounded_and_the_hint_says_when_one_may_be_gone(self) -> None:
        scheduler = make(max_sequences=2, idle_timeout_s=0.5)
        for name in (1, 2):
            scheduler.submit(ask(name, start=True), 0.0)
        turn(scheduler)
        with pytest.raises(ResourceExhausted, match="2 sequences are alive, at most 2") as refused:
            scheduler.submit(ask(3, start=True), 0.1)
        assert refused.value.retry_after_s == pytest.approx(0.4)
        scheduler.submit(ask(3, start=True), 0.5)

    def test_states_are_bounded_and_whoever_ends_is_let_through(self) -> None:
        scheduler = make(max_state_bytes=20)
        for name in (1, 2, 3):
            scheduler.submit(ask(name, start=True), 0.0)
        turn(scheduler)
        assert scheduler.gauges()["state_bytes"] == 24
        for request in (ask(4, start=True), ask(1)):
            with pytest.raises(ResourceExhausted, match="3 sequences take 24 bytes, at most 20") as refused:
                scheduler.submit(request, 0.0)
            assert refused.value.retry_after_s is not None
        scheduler.submit(ask(2, end=True), 0.0)
        turn(scheduler)
        scheduler.submit(ask(1), 0.0)
        assert scheduler.gauges()["state_bytes"] == 16

    def test_an_id_has_a_length(self) -> None:
        with pytest.raises(InvalidArgument, match="has 129 characters, expected at most 128"):
            make().submit(ask("x" * 129, start=True), 0.0)

    @pytest.mark.parametrize("strategy", BOTH)
    def test_what_waits_in_sequences_is_bounded(self, strategy: Strategy) -> None:
        scheduler = make(strategy, max_queue=3)
        scheduler.submit(ask(1, start=True), 0.0)
        batch = take(scheduler)
        for _ in range(3):
            scheduler.submit(ask(1), 0.0)
        with pytest.raises(ResourceExhausted, match="3 requests") as refused:
            scheduler.submit(ask(1), 0.0)
        assert refused.value.retry_after_s is not None
        scheduler.complete(batch, 0.1, answers=run(batch))
        assert len(take(scheduler, now=0.1).requests) == 1
        scheduler.submit(ask(2, start=True), 0.1)

    def test_bytes_that_wait_in_sequences_are_bounded(self) -> None:
        scheduler = make(max_queue_bytes=40)
        scheduler.submit(ask(1, start=True), 0.0)
        scheduler.submit(ask(1), 0.0)
        with pytest.raises(ResourceExhausted, match="32 bytes"):
            scheduler.submit(ask(1), 0.0)

    @pytest.mark.parametrize("strategy", BOTH)
    def test_a_deadline_passes_while_its_turn_has_not_come(self, strategy: Strategy) -> None:
        scheduler = make(strategy)
        scheduler.submit(ask(1, start=True), 0.0)
        late, after = ask(1, 2, deadline_s=1.0), ask(1, 3)
        batch = take(scheduler)
        scheduler.submit(late, 0.0)
        scheduler.submit(after, 0.0)
        assert scheduler.next_batch(0, 0.5) == WaitUntil(1.0)
        scheduler.next_batch(0, 1.5)
        ((request, error),) = scheduler.take_refused()
        assert request is late
        assert isinstance(error, DeadlineExceeded)
        scheduler.complete(batch, 2.0, answers=run(batch))
        assert turn(scheduler, 2.0) == [(1, step(step(7, 1), 3))]

    def test_deadlines_that_were_met_take_no_memory(self) -> None:
        scheduler = make()
        scheduler.submit(ask(1, start=True), 0.0)
        for _ in range(1000):
            for _ in range(2):
                scheduler.submit(ask(1, deadline_s=1e9), 0.0)
            turn(scheduler)
            turn(scheduler)
        assert len(scheduler._waiting_deadlines) < 200

    def test_a_passed_deadline_is_refused_at_once(self) -> None:
        with pytest.raises(DeadlineExceeded):
            make().submit(ask(1, start=True, deadline_s=1.0), 2.0)


class TestFailures:
    def test_a_batch_that_fails_is_not_run_again_and_states_stay(self) -> None:
        scheduler = make()
        for name in (1, 2):
            scheduler.submit(ask(name, 1, start=True), 0.0)
        turn(scheduler)
        for name in (1, 2):
            scheduler.submit(ask(name, 2), 0.0)
        scheduler.fail(take(scheduler), Internal("no"))
        refused = scheduler.take_refused()
        assert len(refused) == 2
        assert all("keeps the state it had before" in error.message for _, error in refused)
        scheduler.submit(ask(1, 3), 0.0)
        assert turn(scheduler) == [(1, step(step(7, 1), 3))]

    def test_a_sequence_whose_start_failed_has_not_begun(self) -> None:
        scheduler = make()
        requests = [ask(1, 1, start=True), ask(1, 2), ask(1, 3, start=True), ask(1, 4)]
        for request in requests:
            scheduler.submit(request, 0.0)
        scheduler.fail(take(scheduler), Internal("no"))
        first, second = scheduler.take_refused()
        assert (first[0], second[0]) == (requests[0], requests[1])
        assert isinstance(second[1], FailedPrecondition)
        assert "begin again" in second[1].message
        assert [turn(scheduler), turn(scheduler)] == [[(1, step(7, 3))], [(1, step(step(7, 3), 4))]]

    def test_an_end_that_failed_may_be_sent_again(self) -> None:
        scheduler = make()
        scheduler.submit(ask(1, 1, start=True), 0.0)
        turn(scheduler)
        scheduler.submit(ask(1, 2, end=True), 0.0)
        scheduler.fail(take(scheduler), Internal("no"))
        scheduler.submit(ask(1, 2, end=True), 0.0)
        assert turn(scheduler) == [(1, step(step(7, 1), 2))]
        assert scheduler.gauges()["sequences"] == 0


class TestCancel:
    def test_the_others_go_on_without_it(self) -> None:
        scheduler = make()
        requests = [ask(1, i, start=i == 0) for i in range(4)]
        for request in requests:
            scheduler.submit(request, 0.0)
        scheduler.cancel(requests[2])
        assert [turn(scheduler)[0][1] for _ in range(3)] == [
            step(7, 0),
            step(step(7, 0), 1),
            step(step(step(7, 0), 1), 3),
        ]
        assert scheduler.idle

    def test_one_that_is_queued_makes_room_for_the_next(self) -> None:
        scheduler = make()
        requests = [ask(1, 1, start=True), ask(1, 2), ask(1, 3)]
        scheduler.submit(requests[0], 0.0)
        turn(scheduler)
        for request in requests[1:]:
            scheduler.submit(request, 0.0)
        scheduler.cancel(requests[1])
        assert turn(scheduler) == [(1, step(step(7, 1), 3))]

    def test_one_that_runs_has_been_a_step_of_its_sequence(self) -> None:
        scheduler = make()
        requests = [ask(1, 1, start=True), ask(1, 2)]
        for request in requests:
            scheduler.submit(request, 0.0)
        batch = take(scheduler)
        scheduler.cancel(requests[0])
        scheduler.complete(batch, 0.0, answers=run(batch))
        assert requests[0].state == CANCELLED
        assert turn(scheduler) == [(1, step(step(7, 1), 2))]

    def test_a_cancelled_restart_never_lets_the_old_state_through(self) -> None:
        scheduler = make()
        scheduler.submit(ask(1, 1, start=True), 0.0)
        batch = take(scheduler)
        restart, following = ask(1, 2, start=True), ask(1, 3)
        scheduler.submit(restart, 0.0)
        scheduler.submit(following, 0.0)
        scheduler.cancel(restart)
        scheduler.complete(batch, 0.0, answers=run(batch))
        ((request, error),) = scheduler.take_refused()
        assert request is following
        assert isinstance(error, FailedPrecondition)
        assert scheduler.gauges()["sequences"] == 0

    def test_a_cancelled_end_ends(self) -> None:
        scheduler = make()
        scheduler.submit(ask(1, start=True), 0.0)
        end = ask(1, end=True)
        scheduler.submit(end, 0.0)
        scheduler.cancel(end)
        turn(scheduler)
        assert scheduler.gauges()["sequences"] == 0

    def test_cancelled_requests_hold_no_inputs_and_still_count(self) -> None:
        scheduler = make(max_queue=5)
        scheduler.submit(ask(1, start=True), 0.0)
        take(scheduler)
        for _ in range(5):
            request = ask(1)
            scheduler.submit(request, 0.0)
            scheduler.cancel(request)
            assert request.inputs == {}
        with pytest.raises(ResourceExhausted):
            scheduler.submit(ask(1), 0.0)


class TestTime:
    @pytest.mark.parametrize("strategy", BOTH)
    def test_an_idle_sequence_ends_and_is_told_so(self, strategy: Strategy) -> None:
        scheduler = make(strategy, idle_timeout_s=5.0)
        scheduler.submit(ask(1, start=True), 0.0)
        turn(scheduler, now=1.0)
        assert scheduler.next_batch(0, 2.0) == WaitUntil(6.0)
        assert scheduler.next_batch(0, 6.0) is None
        assert scheduler.gauges()["sequences"] == 0
        with pytest.raises(InvalidArgument, match="after 5 s without a request"):
            scheduler.submit(ask(1), 6.0)

    def test_a_sequence_whose_request_waits_or_runs_is_not_idle(self) -> None:
        scheduler = make(idle_timeout_s=5.0)
        scheduler.submit(ask(1, start=True), 0.0)
        batch = take(scheduler)
        assert scheduler.next_batch(0, 100.0) is None
        scheduler.complete(batch, 100.0, answers=run(batch))
        scheduler.submit(ask(1), 104.0)
        assert len(take(scheduler, now=104.0).requests) == 1


class TestSlots:
    def test_a_sequence_keeps_its_row_and_others_wait_for_one(self) -> None:
        scheduler = make("direct", max_batch=2)
        for name in "abc":
            scheduler.submit(ask(name, start=True), 0.0)
        batch = take(scheduler)
        assert [
            (r.sequence.id, slot) for r, slot in zip(batch.requests, batch.slots or (), strict=True) if r.sequence
        ] == [
            ("a", 0),
            ("b", 1),
        ]
        scheduler.complete(batch, 0.0, answers=run(batch))
        scheduler.submit(ask("b"), 0.0)
        batch = take(scheduler)
        assert batch.slots == [1]
        scheduler.complete(batch, 0.0, answers=run(batch))
        scheduler.submit(ask("a", end=True), 0.0)
        turn(scheduler)
        batch = take(scheduler)
        assert ([r.sequence.id for r in batch.requests if r.sequence], batch.slots) == (["c"], [0])

    def test_an_idle_sequence_gives_its_row_away_in_time(self) -> None:
        scheduler = make("direct", max_batch=1, idle_timeout_s=5.0)
        scheduler.submit(ask(1, start=True), 0.0)
        scheduler.submit(ask(2, start=True), 0.0)
        turn(scheduler)
        assert scheduler.next_batch(0, 4.0) == WaitUntil(5.0)
        assert turn(scheduler, 5.0) == [(2, step(7, 1))]

    def test_a_thousand_sequences_whose_clients_went_away_give_way_at_once(self) -> None:
        scheduler = make("direct", max_batch=1, max_sequences=3000, max_queue=3000)
        scheduler.submit(ask(0, start=True, end=True), 0.0)
        gone = [ask(name, start=True) for name in range(1, 2000)]
        for request in gone:
            scheduler.submit(request, 0.0)
        for request in gone[:-1]:
            scheduler.cancel(request)
        turn(scheduler)
        assert turn(scheduler) == [(1999, step(7, 1))]

    def test_a_model_that_runs_one_request_at_a_time_has_no_rows_to_give(self) -> None:
        scheduler = make("direct", merge=False)
        assert not scheduler.has_slots
        for name in (1, 2):
            scheduler.submit(ask(name, start=True), 0.0)
        assert [turn(scheduler), turn(scheduler)] == [[(1, step(7, 1))], [(2, step(7, 1))]]


class TestEnd:
    @pytest.mark.parametrize("strategy", BOTH)
    def test_draining_runs_what_waits_and_takes_nothing_new(self, strategy: Strategy) -> None:
        scheduler = make(strategy, max_batch=1)
        for name in (1, 2):
            for i in range(3):
                scheduler.submit(ask(name, i, start=i == 0), 0.0)
        scheduler.drain()
        with pytest.raises(Unavailable):
            scheduler.submit(ask(3, start=True), 0.0)
        ran = 0
        while not scheduler.idle:
            ran += len(turn(scheduler))
        assert ran == 6
        assert scheduler.gauges()["sequences"] == 0

    @pytest.mark.parametrize("strategy", BOTH)
    def test_refuse_all_empties_everything(self, strategy: Strategy) -> None:
        scheduler = make(strategy, max_batch=1)
        requests = [ask(name, start=i == 0) for name in (1, 2, 3) for i in range(3)]
        for request in requests:
            scheduler.submit(request, 0.0)
        batch = take(scheduler)
        scheduler.drain()
        scheduler.refuse_all(Unavailable("gone"))
        refused = [request for request, _ in scheduler.take_refused()]
        assert {id(r) for r in refused} == {id(r) for r in requests} - {id(r) for r in batch.requests}
        scheduler.complete(batch, 0.0, answers=run(batch))
        assert scheduler.idle
        assert not any(scheduler.gauges().values())


class SequenceMachine(RuleBasedStateMachine):
    """Any order of events keeps the promises: in order, one at a time, nothing lost, no state of another."""

    strategy: Strategy = "oldest"

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(max_batch=3, max_queue=12, lanes=2)
        self.scheduler = make(self.strategy, max_sequences=5, idle_timeout_s=4.0, max_batch=3, max_queue=12, lanes=2)
        self.now = 0.0
        self.number: dict[InferRequest, int] = {}
        self.log: dict[int, list[InferRequest]] = defaultdict(list)
        self.state: dict[int, int | None] = {}
        self.slot: dict[int, int] = {}
        self.running: dict[int, Batch] = {}
        self.answered: dict[InferRequest, str] = {}
        self.value: dict[InferRequest, int] = {}

    def settle(self, request: InferRequest, how: str) -> None:
        assert request not in self.answered
        self.answered[request] = how

    def collect_refused(self) -> None:
        for request, error in self.scheduler.take_refused():
            if request.state == DONE:
                self.settle(request, error.code)
                if isinstance(error, FailedPrecondition):
                    assert self.expected(request) is None

    def expected(self, request: InferRequest) -> int | None:
        """The state a request must find, from what became of those before it."""
        assert request.sequence is not None
        name = request.sequence.id
        assert isinstance(name, int)
        log = self.log[name]
        while log and log[0] is not request:
            before = log.pop(0)
            assert before in self.answered, "one before it has not ended"
            assert before.sequence is not None
            if before.sequence.start:
                self.state[name] = None
            if before in self.value:
                self.state[name] = self.value[before]
            if before.sequence.end and (before in self.value or self.answered[before] == "cancelled"):
                self.state[name] = None
        assert log
        return 7 if request.sequence.start else self.state.get(name)

    @rule(
        name=st.integers(1, 7),
        start=st.booleans(),
        end=st.sampled_from([False, False, True]),
        allow_s=st.one_of(st.none(), st.floats(0, 5)),
        priority=st.sampled_from([0, 0, 1]),
    )
    def submit(self, name: int, start: bool, end: bool, allow_s: float | None, priority: int) -> None:
        deadline_s = None if allow_s is None else self.now + allow_s
        serial = len(self.number) + 1
        request = ask(name, serial, start=start, end=end, deadline_s=deadline_s, priority=priority)
        try:
            self.scheduler.submit(request, self.now)
        except SalverError:
            return
        self.number[request] = serial
        self.log[name].append(request)
        self.collect_refused()

    @precondition(lambda self: self.number)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(list(self.number)[-15:]))
        self.scheduler.cancel(request)
        if request not in self.answered:
            self.answered[request] = "cancelled"
        self.collect_refused()

    @rule(lane=st.integers(0, 1))
    def next_batch(self, lane: int) -> None:
        found = self.scheduler.next_batch(lane, self.now)
        self.collect_refused()
        if not isinstance(found, Batch):
            return
        assert lane not in self.running
        assert len(found.requests) <= self.limits.max_batch
        names = [r.sequence.id for r in found.requests if r.sequence]
        busy = [r.sequence.id for batch in self.running.values() for r in batch.requests if r.sequence]
        assert len(set(names + busy)) == len(names + busy), "one at a time"
        for request in found.requests:
            assert request not in self.answered
            assert request.deadline_s is None or self.now <= request.deadline_s
            assert int(request.inputs["s"][0, 0]) == self.expected(request)
        if self.strategy == "direct":
            assert found.slots is not None
            assert len(set(found.slots)) == len(found.slots)
            for request, slot in zip(found.requests, found.slots, strict=True):
                assert request.sequence is not None
                assert 0 <= slot < self.limits.max_batch
                assert request.sequence.start or self.slot[int(request.sequence.id)] == slot
                self.slot[int(request.sequence.id)] = slot
        self.running[lane] = found

    @precondition(lambda self: self.running)
    @rule(data=st.data(), good=st.sampled_from([True, True, False]))
    def end_batch(self, data: st.DataObject, good: bool) -> None:
        batch = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        if not good:
            self.scheduler.fail(batch, Internal("no"))
            self.collect_refused()
            return
        answers = run(batch)
        for request, answer in zip(batch.requests, answers, strict=True):
            self.value[request] = int(answer["y"][0])
        self.scheduler.complete(batch, self.now, answers=answers)
        for request in batch.requests:
            if request.state == DONE:
                self.settle(request, "OK")
        self.collect_refused()

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def bounded(self) -> None:
        gauges = self.scheduler.gauges()
        assert gauges["queued"] <= self.limits.max_queue
        assert gauges["sequences"] <= 5
        assert self.scheduler._waiting_bytes >= 0
        held_states = sum(s.state is not None for s in self.scheduler._live.values())
        assert gauges["state_bytes"] == 8 * held_states
        if self.scheduler._free is not None:
            held = [s.slot for s in self.scheduler._live.values() if s.slot >= 0]
            assert sorted(held + self.scheduler._free) == list(range(self.limits.max_batch))

    def teardown(self) -> None:
        for _ in range(10 * len(self.number) + 20):
            for lane in range(2):
                if lane in self.running:
                    batch = self.running.pop(lane)
                    answers = run(batch)
                    for request, answer in zip(batch.requests, answers, strict=True):
                        self.value[request] = int(answer["y"][0])
                    self.scheduler.complete(batch, self.now, answers=answers)
                    for request in batch.requests:
                        if request.state == DONE:
                            self.settle(request, "OK")
                self.next_batch(lane)
            self.now += 1.0
        assert set(self.answered) == set(self.number)
        assert self.scheduler.idle
        assert self.scheduler._waiting_bytes == 0
        assert not any(self.scheduler.gauges().values())


class DirectMachine(SequenceMachine):
    strategy: Strategy = "direct"


TestOldestRules = SequenceMachine.TestCase
TestDirectRules = DirectMachine.TestCase
TestOldestRules.settings = TestDirectRules.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def simulate(strategy: Strategy, seed: int, count: int, lanes: int) -> dict[str, int]:
    """Clients that stream sequences of random length, some pipelined, some going away; a virtual clock."""
    pick = random.Random(seed)
    scheduler = make(strategy, max_sequences=64, idle_timeout_s=0.05, max_batch=8, max_queue=128, lanes=lanes)
    running: dict[int, Batch] = {}
    events: list[tuple[float, int, int]] = []
    clients: dict[int, tuple[int, int]] = {}  # sequence -> (requests left, state expected so far)
    expected: dict[InferRequest, int] = {}
    totals = {"OK": 0, "refused": 0, "failed": 0, "abandoned": 0}
    now, order, serial, sent = 0.0, 0, 0, 0

    def feed() -> None:
        nonlocal order
        for lane in range(lanes):
            if lane not in running and isinstance(batch := scheduler.next_batch(lane, now), Batch):
                running[lane] = batch
                order += 1
                heapq.heappush(events, (now + 1e-3 + 1e-4 * len(batch.requests) * pick.random(), order, lane))
        for request, error in scheduler.take_refused():
            assert isinstance(error, Internal | FailedPrecondition)
            assert expected.pop(request, None) is not None
            totals["failed"] += 1
            assert request.sequence is not None
            clients.pop(int(request.sequence.id), None)

    while sent < count or events or not scheduler.idle:
        if sent >= count and not events:  # what waits, waits for the row of a sequence that was abandoned
            now += 0.5
            feed()
            continue
        if sent < count and (not events or pick.random() < 0.5):
            for _ in range(pick.randrange(1, 8)):
                if len(clients) < (40 if strategy == "oldest" else 12):
                    serial += 1
                    clients[serial] = (pick.randrange(1, 30), 7)
                name = pick.choice(list(clients))
                left, state = clients[name]
                start, end, x = state == 7, left == 1, pick.randrange(1000)
                request = ask(name, x, start=start, end=end)
                sent += 1
                try:
                    scheduler.submit(request, now)
                except SalverError as error:
                    assert isinstance(error, ResourceExhausted | InvalidArgument)
                    totals["refused"] += 1
                    if isinstance(error, InvalidArgument):  # it idled too long
                        del clients[name]
                    continue
                expected[request] = step(state, x)
                if end or pick.random() < 0.02:
                    totals["abandoned"] += not end
                    del clients[name]
                else:
                    clients[name] = (left - 1, expected[request])
            feed()
            now += pick.random() * 1e-3
            continue
        at_s, _, lane = heapq.heappop(events)
        now = max(now, at_s)
        batch = running.pop(lane)
        if pick.random() < 0.002:
            scheduler.fail(batch, Internal("simulated"))
            for request in batch.requests:  # their clients give up; what they sent already runs on the state before
                assert request.sequence is not None
                clients.pop(int(request.sequence.id), None)
                for other in expected:
                    if other.sequence is not None and other.sequence.id == request.sequence.id:
                        expected[other] = -1
        else:
            answers = run(batch)
            scheduler.complete(batch, now, answers=answers)
            for request, answer in zip(batch.requests, answers, strict=True):
                assert request.state == DONE
                assert expected.pop(request) in (-1, int(answer["y"][0]))
                totals["OK"] += 1
        feed()
    assert not expected
    assert scheduler.idle
    scheduler.next_batch(0, now + 1.0)
    assert not any(scheduler.gauges().values())
    assert scheduler._waiting_bytes == 0
    return totals


@pytest.mark.parametrize(("strategy", "seed", "lanes"), [("oldest", 1, 1), ("oldest", 2, 3), ("direct", 3, 1)])
def test_simulated_streams_find_their_own_state(strategy: Strategy, seed: int, lanes: int) -> None:
    totals = simulate(strategy, seed, 40_000, lanes)
    assert totals["OK"] > 5_000
    assert totals["failed"] > 0
    assert totals["abandoned"] > 100
