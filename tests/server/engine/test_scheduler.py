"""The scheduler under rules (Hypothesis) and under a million simulated requests."""

from __future__ import annotations

import heapq
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from salver.core.errors import DeadlineExceeded, Internal, ResourceExhausted, SalverError, Unavailable
from salver.server.engine.base import InferRequest
from salver.server.engine.queues import PATIENCE
from salver.server.engine.scheduler import CANCELLED, DONE, Batch, Limits, Scheduler, WaitUntil

_X = {"x": np.zeros((1, 4), np.float32)}


def _ignore(_result: Any, _timing: Any) -> None:
    """Schedulers never call `done`."""


def make_request(rows: int = 1, **more: Any) -> InferRequest:
    return InferRequest(_X, rows, _ignore, **more)


def make_scheduler(merge: bool = True, split: bool = True, **limits: Any) -> Scheduler:
    return Scheduler(Limits(**limits), merge=merge, split=split, row_bytes=16)


def take(scheduler: Scheduler, lane: int = 0, now: float = 0.0) -> Batch:
    found = scheduler.next_batch(lane, now)
    assert isinstance(found, Batch)
    return found


class TestBatching:
    def test_a_free_lane_takes_what_waits_at_once(self) -> None:
        scheduler = make_scheduler()
        requests = [make_request() for _ in range(3)]
        for request in requests:
            scheduler.submit(request, 0.0)
        assert take(scheduler).requests == requests
        assert scheduler.next_batch(0, 0.0) is None

    def test_max_batch_counts_rows_and_a_larger_request_runs_alone(self) -> None:
        scheduler = make_scheduler(max_batch=4)
        sizes = [2, 2, 1, 9, 3, 2]
        for rows in sizes:
            scheduler.submit(make_request(rows), 0.0)
        taken = []
        while scheduler.queued:
            batch = take(scheduler)
            taken.append([r.rows for r in batch.requests])
            scheduler.complete(batch, 0.0)
        assert taken == [[2, 2], [1], [9], [3], [2]]

    def test_keys_are_never_merged_and_take_turns(self) -> None:
        scheduler = make_scheduler(max_batch=2)
        for key in "aaabbc":
            scheduler.submit(make_request(key=key), 0.0)
        taken = []
        while scheduler.queued:
            batch = take(scheduler)
            taken.append("".join(str(r.key) for r in batch.requests))
            scheduler.complete(batch, 0.0)
        assert taken == ["aa", "bb", "c", "a"]

    def test_a_model_that_is_not_merge_safe_runs_one_request_at_a_time(self) -> None:
        scheduler = make_scheduler(merge=False)
        for _ in range(3):
            scheduler.submit(make_request(), 0.0)
        assert len(take(scheduler).requests) == 1

    def test_smaller_priority_first_and_empty_levels_are_forgotten(self) -> None:
        scheduler = make_scheduler(max_batch=1)
        for priority in [5, 0, -3, 5, 1 << 60]:
            scheduler.submit(make_request(priority=priority), 0.0)
        order = []
        while scheduler.queued:
            batch = take(scheduler)
            order.append(batch.requests[0].priority)
            scheduler.complete(batch, 0.0)
        assert order == [-3, 0, 5, 5, 1 << 60]
        assert list(scheduler._queues.levels) == [0]

    def test_lanes_run_side_by_side(self) -> None:
        scheduler = make_scheduler(max_batch=1, lanes=2)
        for _ in range(3):
            scheduler.submit(make_request(), 0.0)
        first, second = take(scheduler, 0), take(scheduler, 1)
        assert scheduler.running == 2
        assert first.requests != second.requests
        assert scheduler.next_batch(0, 0.0) is None
        scheduler.complete(first, 0.0)
        assert take(scheduler, 0).lane == 0


class TestRefusals:
    def test_a_full_queue_says_when_to_come_back(self) -> None:
        scheduler = make_scheduler(max_batch=1, max_queue=3)
        scheduler.cost.learn(1, 0.5, 0.5)
        for _ in range(3):
            scheduler.submit(make_request(), 0.0)
        with pytest.raises(ResourceExhausted, match="3 requests") as refused:
            scheduler.submit(make_request(), 0.0)
        assert refused.value.retry_after_s == pytest.approx(0.5)

    def test_bytes_are_bounded_but_a_large_request_passes_an_empty_queue(self) -> None:
        scheduler = make_scheduler(max_queue_bytes=100)
        scheduler.submit(make_request(100), 0.0)
        with pytest.raises(ResourceExhausted, match="1600 bytes"):
            scheduler.submit(make_request(), 0.0)

    def test_strings_are_measured_by_their_characters(self) -> None:
        scheduler = Scheduler(Limits(max_queue_bytes=1000), merge=True)
        text = {"x": np.array(["a" * 600], dtype=object)}
        scheduler.submit(InferRequest(text, 1, _ignore), 0.0)
        with pytest.raises(ResourceExhausted):
            scheduler.submit(InferRequest(text, 1, _ignore), 0.0)

    def test_a_passed_deadline_is_refused_at_once(self) -> None:
        with pytest.raises(DeadlineExceeded, match="passed 1 s before"):
            make_scheduler().submit(make_request(deadline_s=1.0), 2.0)

    def test_a_deadline_that_cannot_be_met_is_refused_early(self) -> None:
        scheduler = make_scheduler(max_batch=1)
        scheduler.cost.learn(1, 1.0, 1.0)
        for _ in range(5):
            scheduler.submit(make_request(), 0.0)
        with pytest.raises(DeadlineExceeded, match="an answer would take about 6 s"):
            scheduler.submit(make_request(deadline_s=4.0), 0.0)
        scheduler.submit(make_request(deadline_s=6.0), 0.0)
        scheduler.submit(make_request(deadline_s=4.0, priority=-1), 0.0)  # overtakes those ahead

    def test_a_deadline_that_passes_in_the_queue_is_refused_even_while_the_lane_is_busy(self) -> None:
        scheduler = make_scheduler(max_batch=1)
        scheduler.submit(make_request(), 0.0)
        take(scheduler)
        late = make_request(deadline_s=2.0)
        scheduler.submit(late, 1.0)
        assert scheduler.next_batch(0, 1.5) == WaitUntil(2.0)
        assert scheduler.next_batch(0, 2.5) is None
        ((request, error),) = scheduler.take_refused()
        assert request is late
        assert late.state == DONE
        assert isinstance(error, DeadlineExceeded)

    def test_draining_takes_nothing_new_and_runs_what_waits(self) -> None:
        scheduler = make_scheduler()
        scheduler.submit(make_request(), 0.0)
        scheduler.drain()
        with pytest.raises(Unavailable):
            scheduler.submit(make_request(), 0.0)
        batch = take(scheduler)
        assert not scheduler.idle
        scheduler.complete(batch, 0.0)
        assert scheduler.idle

    def test_refuse_all_empties_queue_and_retries(self) -> None:
        scheduler = make_scheduler(max_batch=2)
        requests = [make_request(priority=i % 2) for i in range(6)]
        for request in requests:
            scheduler.submit(request, 0.0)
        scheduler.fail(take(scheduler), Internal("no"))
        scheduler.refuse_all(Unavailable("gone"))
        assert {id(r) for r, _ in scheduler.take_refused()} == {id(r) for r in requests}
        assert scheduler.idle
        assert scheduler.queued_rows == scheduler.queued_bytes == 0


class TestRetryAfter:
    def test_a_full_queue_has_room_when_the_next_batch_starts(self) -> None:
        scheduler = make_scheduler(max_batch=2, max_queue=4)
        scheduler.cost.learn(2, 1.0, 1.0)
        scheduler.submit(make_request(2), 0.0)
        take(scheduler)
        for _ in range(4):
            scheduler.submit(make_request(), 0.0)
        with pytest.raises(ResourceExhausted, match=r"retry in about 0.75 s") as refused:
            scheduler.submit(make_request(), 0.25)
        assert refused.value.retry_after_s == pytest.approx(0.75)

    def test_of_bytes_as_many_batches_as_it_takes(self) -> None:
        scheduler = make_scheduler(max_batch=2, max_queue_bytes=160)
        scheduler.cost.learn(2, 1.0, 1.0)
        for _ in range(10):
            scheduler.submit(make_request(), 0.0)
        with pytest.raises(ResourceExhausted) as refused:
            scheduler.submit(make_request(4), 0.0)
        assert refused.value.retry_after_s == pytest.approx(2.0)

    def test_an_objective_can_be_met_when_enough_has_run(self) -> None:
        scheduler = make_scheduler(max_batch=1, slo_s=4.0)
        batch = None
        for now in (0.0, 1.0):
            scheduler.submit(make_request(), now)
            batch = take(scheduler, 0, now)
            scheduler.complete(batch, now + 1.0)
        for _ in range(5):
            scheduler.submit(make_request(), 2.0)
        with pytest.raises(ResourceExhausted, match="about 6 s, more than the 4 s") as refused:
            scheduler.submit(make_request(), 2.0)
        assert refused.value.retry_after_s == pytest.approx(2.0)
        assert refused.value.reason == "slo"

    def test_a_deadline_and_a_drain(self) -> None:
        scheduler = make_scheduler(max_batch=1)
        scheduler.cost.learn(1, 1.0, 1.0)
        scheduler.submit(make_request(), 0.0)
        with pytest.raises(DeadlineExceeded) as refused:
            scheduler.submit(make_request(deadline_s=0.5), 0.0)
        assert refused.value.retry_after_s == pytest.approx(1.5)
        scheduler.drain()
        with pytest.raises(Unavailable) as drained:
            scheduler.submit(make_request(), 0.0)
        assert (drained.value.retry_after_s, drained.value.reason) == (1.0, "draining")


class TestReasons:
    """Why a batch has the size it has."""

    @pytest.mark.parametrize(
        ("keys", "rows", "merge", "reason"),
        [
            ("a", 1, True, "idle_lane"),
            ("aa", 1, True, "idle_lane"),
            ("ab", 1, True, "key"),
            ("aaaa", 1, True, "full"),
            ("aa", 3, True, "full"),
            ("aa", 1, False, "alone"),
        ],
    )
    def test_of_a_first_batch(self, keys: str, rows: int, merge: bool, reason: str) -> None:
        scheduler = make_scheduler(merge=merge, max_batch=4)
        for key in keys:
            scheduler.submit(make_request(rows, key=key), 0.0)
        assert take(scheduler).reason == reason

    def test_of_one_that_failed(self) -> None:
        scheduler = make_scheduler()
        for _ in range(2):
            scheduler.submit(make_request(), 0.0)
        scheduler.fail(take(scheduler), Internal("no"))
        assert take(scheduler).reason == "retry"


class TestObjective:
    def make(self) -> Scheduler:
        scheduler = make_scheduler(max_batch=32, slo_s=20.0)
        for _ in range(10):
            scheduler.cost.learn(1, 2.0, 1.0)
            scheduler.cost.learn(32, 33.0, 1.0)
        warm = make_request()
        scheduler.submit(warm, -2.0)
        scheduler.complete(take(scheduler, 0, -2.0), 0.0)
        return scheduler

    def test_a_batch_takes_half_of_the_objective_at_most(self) -> None:
        scheduler = self.make()
        for _ in range(16):
            scheduler.submit(make_request(), 0.0)
        batch = take(scheduler)
        assert batch.rows in (8, 9)
        assert batch.reason == "slo"

    def test_the_oldest_request_must_make_it(self) -> None:
        scheduler = self.make()
        for now in (0.0, *[13.0] * 7):
            scheduler.submit(make_request(), now)
        batch = take(scheduler, 0, 13.5)  # 6.5 s are left for the oldest
        assert 4 <= batch.rows <= 5
        assert batch.reason == "slo"

    def test_who_cannot_make_it_is_refused_when_the_batch_is_formed(self) -> None:
        scheduler = self.make()
        late = make_request()
        scheduler.submit(late, 0.0)
        other = make_request()
        scheduler.submit(other, 10.0)
        batch = take(scheduler, 0, 19.0)
        assert batch.requests == [other]
        ((request, error),) = scheduler.take_refused()
        assert (request, error.code, error.reason) == (late, "RESOURCE_EXHAUSTED", "slo")
        assert error.retry_after_s is not None

    def test_one_does_not_make_many_run_in_small_batches(self) -> None:
        scheduler = self.make()
        late = make_request()
        scheduler.submit(late, 0.0)
        for _ in range(12):
            scheduler.submit(make_request(), 16.0)
        assert take(scheduler, 0, 17.5).rows in (8, 9)
        assert [request for request, _ in scheduler.take_refused()] == [late]

    def test_a_request_that_has_its_own_deadline_keeps_it(self) -> None:
        scheduler = self.make()
        patient, tight = make_request(deadline_s=100.0), make_request(deadline_s=1.0)
        scheduler.submit(patient, 0.0)
        assert patient.deadline_s == 100.0
        with pytest.raises(DeadlineExceeded):
            scheduler.submit(tight, 0.0)

    def test_time_outside_the_run_counts(self) -> None:
        scheduler = self.make()
        first = make_request()
        scheduler.submit(first, 0.0)
        batch = take(scheduler, 0, 0.0)
        scheduler.complete(batch, 2.0)
        scheduler.answered(batch, 8.0)
        for _ in range(8):
            scheduler.submit(make_request(), 2.0)
        assert take(scheduler, 0, 5.0).rows < 8

    def test_but_for_half_of_the_objective_at_most_because_refusing_does_not_shorten_it(self) -> None:
        scheduler = self.make()
        scheduler.submit(make_request(), 0.0)
        batch = take(scheduler, 0, 0.0)
        scheduler.complete(batch, 2.0)
        scheduler.answered(batch, 1000.0)
        scheduler.submit(make_request(), 2.0)
        assert take(scheduler, 0, 2.0).rows == 1

    def test_a_model_that_became_too_slow_is_tried_again_and_again(self) -> None:
        scheduler = make_scheduler(slo_s=1.0)
        scheduler.cost.learn(1, 5.0, 5.0)
        ran = refused = 0
        now = 0.0
        while now < 1000.0:
            try:
                scheduler.submit(make_request(), now)
            except ResourceExhausted:
                refused += 1
            else:
                batch = take(scheduler, 0, now)
                now += 5.0 if now < 500 else 0.1
                scheduler.complete(batch, now)
                ran += now > 600.0
            now += 0.5
        assert refused > 500
        assert ran > 300


class TestClients:
    def test_they_take_turns_by_rows(self) -> None:
        scheduler = make_scheduler(max_batch=4)
        for client, rows in [("a", 1)] * 6 + [("b", 2)] * 3 + [("c", 1)]:
            scheduler.submit(make_request(rows, client=client), 0.0)
        taken = []
        while scheduler.queued:
            batch = take(scheduler)
            taken.append("".join(str(r.client) for r in batch.requests))
            scheduler.complete(batch, 0.0)
        assert taken == ["abc", "aab", "aab", "a"]

    def test_one_that_floods_does_not_starve_another(self) -> None:
        scheduler = make_scheduler(max_batch=4, max_queue=2000)
        for _ in range(1000):
            scheduler.submit(make_request(client="flood"), 0.0)
        other = make_request(client="other")
        scheduler.submit(other, 0.0)
        assert other in take(scheduler).requests

    def test_a_full_queue_refuses_who_has_more_than_its_share(self) -> None:
        scheduler = make_scheduler(max_queue=4)
        flood = [make_request(client="flood") for _ in range(4)]
        for request in flood:
            scheduler.submit(request, 0.0)
        with pytest.raises(ResourceExhausted) as refused:
            scheduler.submit(make_request(client="flood"), 0.0)
        assert refused.value.reason == "queue_full"
        others = [make_request(client="other") for _ in range(3)]
        scheduler.submit(others[0], 0.0)
        scheduler.submit(others[1], 0.0)
        with pytest.raises(ResourceExhausted):
            scheduler.submit(others[2], 0.0)
        gave_way = scheduler.take_refused()
        assert [request for request, _ in gave_way] == [flood[3], flood[2]]
        assert {error.reason for _, error in gave_way} == {"client_share"}
        assert take(scheduler).requests == [flood[0], others[0], flood[1], others[1]]

    def test_of_what_must_give_way_the_lowest_priority_is_first(self) -> None:
        scheduler = make_scheduler(max_queue=3)
        requests = [make_request(client="a", priority=priority) for priority in (1, 2, 0)]
        for request in requests:
            scheduler.submit(request, 0.0)
        scheduler.submit(make_request(client="b"), 0.0)
        assert [request for request, _ in scheduler.take_refused()] == [requests[1]]

    def test_a_full_queue_refuses_what_is_less_urgent(self) -> None:
        scheduler = make_scheduler(max_queue=4)
        waiting = [
            make_request(priority=priority, client=client) for priority, client in ((0, 1), (5, 1), (5, 2), (0, 2))
        ]
        for now, request in enumerate(waiting):
            scheduler.submit(request, float(now))
        for expected in (waiting[2], waiting[1]):
            scheduler.submit(make_request(priority=0, client=2), 9.0)
            [(request, error)] = scheduler.take_refused()
            assert (request, error.reason) == (expected, "priority")
        scheduler.submit(make_request(priority=-1), 9.0)
        assert scheduler.take_refused()[0][1].reason == "priority"
        with pytest.raises(ResourceExhausted, match="the queue is full"):
            scheduler.submit(make_request(priority=6), 9.0)
        assert scheduler.queued == 4

    def test_what_is_known_of_them_takes_no_memory_when_they_are_gone(self) -> None:
        scheduler = make_scheduler(max_queue=10)
        for number in range(5000):
            for client in (number, number + 1):
                scheduler.submit(make_request(client=client), 0.0)
            scheduler.complete(take(scheduler), 0.0)
        assert not scheduler._queues._held


class TestPatience:
    def test_the_lowest_priority_is_picked_after_a_bounded_number_of_batches(self) -> None:
        scheduler = make_scheduler(max_batch=1)
        low = [make_request(priority=9), make_request(priority=5)]
        for at, request in enumerate(low):
            scheduler.submit(request, float(at))
        order = []
        for turn in range(40):
            scheduler.submit(make_request(), 10.0 + turn)
            batch = take(scheduler, 0, 10.0 + turn)
            order.append(batch.requests[0].priority)
            scheduler.complete(batch, 10.0 + turn)
        assert (order.index(9), order.index(5)) == (PATIENCE - 1, 2 * PATIENCE - 1)
        assert order.count(0) == 38


class TestBatchSizes:
    def test_a_batch_is_padded_to_the_next_declared_size(self) -> None:
        scheduler = make_scheduler(max_batch=8, batch_sizes=(2, 4, 8))
        runs = []
        for rows in (1, 3, 4, 9):
            scheduler.submit(make_request(rows), 0.0)
            batch = take(scheduler)
            runs.append((batch.rows, batch.run_rows))
            scheduler.complete(batch, 1.0)
        assert runs == [(1, 2), (3, 4), (4, 4), (9, 9)]
        assert scheduler.padded_rows == 2
        assert scheduler.cost.sizes == (2, 4, 9)

    def test_not_where_rows_must_not_share_a_batch(self) -> None:
        scheduler = make_scheduler(merge=False, batch_sizes=(2, 4))
        scheduler.submit(make_request(), 0.0)
        assert take(scheduler).run_rows == 1


class TestRunningBatches:
    def test_age_of_the_oldest(self) -> None:
        scheduler = make_scheduler(max_batch=1, lanes=2)
        assert scheduler.oldest_run_s(5.0) == 0.0
        for lane, now in ((0, 1.0), (1, 3.0)):
            scheduler.submit(make_request(), now)
            take(scheduler, lane, now)
        assert scheduler.oldest_run_s(5.0) == 4.0


class TestSplit:
    @pytest.mark.parametrize("bad", range(7))
    def test_a_bad_request_fails_alone(self, bad: int) -> None:
        scheduler = make_scheduler()
        requests = [make_request() for _ in range(7)]
        for request in requests:
            scheduler.submit(request, 0.0)
        runs = 0
        while scheduler.queued:
            batch = take(scheduler)
            runs += 1
            if requests[bad] in batch.requests:
                scheduler.fail(batch, Internal("bad row"))
            else:
                scheduler.complete(batch, 0.0)
        assert [r for r, _ in scheduler.take_refused()] == [requests[bad]]
        assert all(r.state == DONE for r in requests)
        assert runs <= 2 * 3 + 1

    def test_without_split_all_of_the_batch_fail(self) -> None:
        scheduler = make_scheduler(split=False)
        for _ in range(3):
            scheduler.submit(make_request(), 0.0)
        scheduler.fail(take(scheduler), Internal("no"))
        assert len(scheduler.take_refused()) == 3
        assert scheduler.idle


class TestCancel:
    def test_cancelled_requests_never_run_and_take_no_memory(self) -> None:
        scheduler = make_scheduler(max_queue=10)
        scheduler.submit(make_request(), 0.0)
        take(scheduler)
        for i in range(5000):
            request = make_request(key=i % 7, deadline_s=100.0)
            scheduler.submit(request, 0.0)
            scheduler.cancel(request)
        assert scheduler.queued == 0
        assert len(list(scheduler._queues)) < 200
        assert len(scheduler._deadlines) < 200

    def test_a_running_request_that_is_cancelled_is_not_answered(self) -> None:
        scheduler = make_scheduler()
        request, other = make_request(), make_request()
        scheduler.submit(request, 0.0)
        scheduler.submit(other, 0.0)
        batch = take(scheduler)
        scheduler.cancel(request)
        scheduler.complete(batch, 0.0)
        assert (request.state, other.state) == (CANCELLED, DONE)


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of events keeps the promises: once, never late, never mixed, in order, within bounds."""

    slo_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.lanes = 2
        self.limits = Limits(max_batch=4, max_queue=12, lanes=self.lanes, slo_s=self.slo_s)
        self.scheduler = Scheduler(self.limits, merge=True, row_bytes=16)
        self.now = 0.0
        self.serial = 0
        self.number: dict[InferRequest, int] = {}
        self.waiting: dict[InferRequest, int] = {}
        self.running: dict[int, Batch] = {}
        self.started: set[InferRequest] = set()
        self.answered: dict[InferRequest, str] = {}
        self.last: dict[tuple[int, object, object], int] = {}
        self.passed = 0

    def settle(self, request: InferRequest, how: str) -> None:
        assert request not in self.answered
        self.answered[request] = how

    def collect_refused(self) -> None:
        for request, error in self.scheduler.take_refused():
            if request.state == DONE:
                assert error.reason or error.code == "INTERNAL"
                assert request.state == DONE
                self.waiting.pop(request, None)
                self.settle(request, error.code)

    @rule(
        rows=st.integers(0, 6),
        key=st.sampled_from("ab"),
        priority=st.sampled_from([0, 0, 1, -1]),
        allow_s=st.one_of(st.none(), st.floats(0, 5)),
        client=st.sampled_from([None, None, "x", "y"]),
    )
    def submit(self, rows: int, key: str, priority: int, allow_s: float | None, client: str | None) -> None:
        deadline_s = None if allow_s is None else self.now + allow_s
        request = make_request(rows, key=key, priority=priority, deadline_s=deadline_s, client=client)
        try:
            self.scheduler.submit(request, self.now)
        except SalverError as error:
            assert error.reason
            return
        finally:
            self.collect_refused()  # others may have given way
        self.serial += 1
        self.number[request] = self.serial
        self.waiting[request] = rows

    @precondition(lambda self: self.number)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(list(self.number)))
        self.scheduler.cancel(request)
        self.waiting.pop(request, None)
        if request not in self.answered:
            self.answered[request] = "cancelled"

    @rule(lane=st.integers(0, 1))
    def next_batch(self, lane: int) -> None:
        found = self.scheduler.next_batch(lane, self.now)
        self.collect_refused()
        if not isinstance(found, Batch):
            assert lane in self.running or not self.waiting
            return
        assert lane not in self.running
        assert found.rows == sum(r.rows for r in found.requests)
        assert found.rows <= self.limits.max_batch or len(found.requests) == 1
        assert len({(r.key, r.priority) for r in found.requests}) == 1
        for request in found.requests:
            assert self.waiting.pop(request) == request.rows
            assert request.deadline_s is None or self.now <= request.deadline_s
            if request not in self.started:
                place = (request.priority, request.key, request.client)
                assert self.number[request] > self.last.get(place, 0)
                self.last[place] = self.number[request]
                self.started.add(request)
        self.passed = self.passed + 1 if any(r.priority < found.requests[0].priority for r in self.waiting) else 0
        assert self.passed <= 1 or found.reason == "retry"  # strictly, but for one batch now and then
        self.running[lane] = found

    @precondition(lambda self: self.running)
    @rule(data=st.data(), good=st.booleans())
    def end_batch(self, data: st.DataObject, good: bool) -> None:
        batch = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        if good:
            self.scheduler.complete(batch, self.now)
            for request in batch.requests:
                if request.state == DONE:
                    self.settle(request, "OK")
            return
        self.scheduler.fail(batch, Internal("no"))
        if len(batch.requests) > 1:
            self.waiting |= {r: r.rows for r in batch.requests if r not in self.answered}
        self.collect_refused()

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def counts_match(self) -> None:
        assert self.scheduler.queued == len(self.waiting)
        assert self.scheduler.queued_rows == sum(self.waiting.values())
        assert self.scheduler.queued_bytes == 16 * sum(max(rows, 1) for rows in self.waiting.values())
        assert self.scheduler.running == len(self.running)
        held: dict[str | None, int] = {}
        for request in self.waiting:
            held[request.client] = held.get(request.client, 0) + request.rows
        for client in (None, "x", "y"):
            assert self.scheduler._queues.share_of(client)[0] == held.get(client, 0)

    def teardown(self) -> None:
        for _ in range(10 * len(self.number) + 10):
            for lane in range(self.lanes):
                if lane in self.running:
                    batch = self.running.pop(lane)
                    self.scheduler.complete(batch, self.now)
                    for request in batch.requests:
                        if request.state == DONE:
                            self.settle(request, "OK")
                self.next_batch(lane)
        assert set(self.answered) == set(self.number)
        assert self.scheduler.idle


class ObjectiveMachine(SchedulerMachine):
    """The same with an objective, which gives every request a deadline."""

    slo_s = 4.0


TestSchedulerRules = SchedulerMachine.TestCase
TestSchedulerRules.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
TestObjectiveRules = ObjectiveMachine.TestCase
TestObjectiveRules.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)


def simulate(
    seed: int, count: int, *, load: float, lanes: int, clients: bool = False, slo_s: float = 0.0
) -> dict[str, int]:
    """Drive a scheduler with a virtual clock; the check is in the asserts. Returns how requests ended.

    A simulated model takes 1 ms and up to 0.1 ms a row; it fails on any batch that holds a poisoned request, and
    now and then on any. Each request carries its number as payload; the answer must bring the same one back.
    """
    pick = random.Random(seed)
    limits = Limits(max_batch=16, max_queue=256, lanes=lanes, slo_s=slo_s)
    scheduler = Scheduler(limits, merge=True, row_bytes=16)
    running: dict[int, Batch] = {}
    events: list[tuple[float, int, int]] = []  # when, order, lane
    last_started: dict[tuple[int, object, object], int] = {}
    open_requests: dict[InferRequest, int] = {}
    recent: list[InferRequest] = []
    ends = ["OK", "refused", "cancelled", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL"]
    totals = dict.fromkeys(ends, 0)
    now, sequence, number = 0.0, 0, 0

    def end(request: InferRequest, how: str) -> None:
        index = open_requests.pop(request)  # KeyError: answered twice, or never taken
        assert request.inputs["number"] == index
        totals[how] += 1

    def refuse() -> None:
        for request, error in scheduler.take_refused():
            if request.state == DONE:
                end(request, error.code)

    def feed() -> None:
        nonlocal sequence
        for lane in range(lanes):
            if lane in running:
                continue
            batch = scheduler.next_batch(lane, now)
            if not isinstance(batch, Batch):
                break
            assert batch.rows <= limits.max_batch or len(batch.requests) == 1
            key, priority = batch.requests[0].key, batch.requests[0].priority
            for request in batch.requests:
                assert request.key == key
                assert request.priority == priority
                assert request.deadline_s is None or now <= request.deadline_s
                index = open_requests[request]
                if request.outputs is None:  # its first start: first come, first served
                    place = (priority, key, request.client)
                    assert index > last_started.get(place, -1)
                    last_started[place] = index
                    request.outputs = ()
            running[lane] = batch
            sequence += 1
            heapq.heappush(events, (now + 1e-3 + 1e-4 * batch.rows * pick.random(), sequence, lane))
        refuse()

    while number < count or events:
        if number < count and (not events or pick.random() < load):
            for _ in range(pick.randrange(1, 24)):
                dice = pick.random()
                request = InferRequest(
                    {"number": number},  # type: ignore[dict-item]  # a payload to recognize, never run
                    1 if dice < 0.8 else pick.randrange(1, 24),
                    _ignore,
                    key=None if dice < 0.7 else pick.randrange(3),
                    priority=0 if dice < 0.9 else pick.randrange(-1, 3),
                    deadline_s=None if dice < 0.5 else now + pick.random() * 0.02,
                    client=pick.choice("abc") if clients else None,
                )
                number += 1
                try:
                    scheduler.submit(request, now)
                except (ResourceExhausted, DeadlineExceeded):
                    totals["refused"] += 1
                    continue
                open_requests[request] = number - 1
                if dice > 0.97:
                    recent.append(request)
            if len(recent) > 4:
                request = recent.pop(pick.randrange(len(recent)))
                if request in open_requests:
                    scheduler.cancel(request)
                    end(request, "cancelled")
            feed()
            now += pick.random() * 1e-3
            continue
        ends, _, lane = heapq.heappop(events)
        now = max(now, ends)
        batch = running.pop(lane)
        poisoned = any(r.inputs["number"] % 997 == 0 for r in batch.requests)
        if poisoned or pick.random() < 0.002:
            scheduler.fail(batch, Internal("simulated"))
        else:
            scheduler.complete(batch, now)
            for request in batch.requests:
                if request.state == DONE:
                    end(request, "OK")
        feed()
    assert not open_requests
    assert scheduler.idle
    assert scheduler.queued == scheduler.queued_rows == scheduler.queued_bytes == 0
    assert sum(totals.values()) == number
    return totals


@pytest.mark.parametrize(
    ("seed", "load", "lanes", "clients", "slo_s"),
    [
        (1, 0.15, 1, False, 0.0),
        (2, 0.3, 1, True, 0.0),
        (3, 0.3, 4, False, 0.02),
        (4, 0.6, 2, True, 0.05),
        (5, 0.05, 2, False, 0.0),
    ],
)
def test_simulated_requests_are_answered_once_and_in_time(
    seed: int, load: float, lanes: int, clients: bool, slo_s: float
) -> None:
    totals = simulate(seed, 60_000, load=load, lanes=lanes, clients=clients, slo_s=slo_s)
    assert totals["OK"] > 3_000
    assert totals["INTERNAL"] > 0
    assert totals["cancelled"] > 0
