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
from salver.server.engine.scheduler import CANCELLED, DONE, Batch, Limits, Scheduler, WaitUntil

_X = {"x": np.zeros((1, 4), np.float32)}


def _ignore(_result: Any, _timing: Any) -> None:
    """Schedulers never call `done`."""


def make_request(rows: int = 1, **more: Any) -> InferRequest:
    return InferRequest(_X, rows, _ignore, **more)


def make_scheduler(merge: bool = True, split: bool = True, **limits: int) -> Scheduler:
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
        assert list(scheduler._levels) == [0]

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
        assert refused.value.retry_after_s == pytest.approx(1.5)

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
        with pytest.raises(DeadlineExceeded, match="requests ahead take about 5 s"):
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
        assert sum(len(g) for level in scheduler._levels.values() for g in level.groups.values()) < 200
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

    def __init__(self) -> None:
        super().__init__()
        self.lanes = 2
        self.limits = Limits(max_batch=4, max_queue=12, lanes=self.lanes)
        self.scheduler = Scheduler(self.limits, merge=True, row_bytes=16)
        self.now = 0.0
        self.serial = 0
        self.number: dict[InferRequest, int] = {}
        self.waiting: dict[InferRequest, int] = {}
        self.running: dict[int, Batch] = {}
        self.started: set[InferRequest] = set()
        self.answered: dict[InferRequest, str] = {}
        self.last: dict[tuple[int, object], int] = {}

    def settle(self, request: InferRequest, how: str) -> None:
        assert request not in self.answered
        self.answered[request] = how

    def collect_refused(self) -> None:
        for request, error in self.scheduler.take_refused():
            if request.state == DONE:
                self.waiting.pop(request, None)
                self.settle(request, error.code)

    @rule(
        rows=st.integers(1, 6),
        key=st.sampled_from("ab"),
        priority=st.sampled_from([0, 0, 1, -1]),
        allow_s=st.one_of(st.none(), st.floats(0, 5)),
    )
    def submit(self, rows: int, key: str, priority: int, allow_s: float | None) -> None:
        deadline_s = None if allow_s is None else self.now + allow_s
        request = make_request(rows, key=key, priority=priority, deadline_s=deadline_s)
        try:
            self.scheduler.submit(request, self.now)
        except SalverError:
            return
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
                place = (request.priority, request.key)
                assert self.number[request] > self.last.get(place, 0)
                self.last[place] = self.number[request]
                self.started.add(request)
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
        assert self.scheduler.queued_bytes == 16 * sum(self.waiting.values())
        assert self.scheduler.running == len(self.running)

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


TestSchedulerRules = SchedulerMachine.TestCase
TestSchedulerRules.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def simulate(seed: int, count: int, *, load: float, lanes: int) -> dict[str, int]:
    """Drive a scheduler with a virtual clock; the check is in the asserts. Returns how requests ended.

    A simulated model takes 1 ms and up to 0.1 ms a row; it fails on any batch that holds a poisoned request, and
    now and then on any. Each request carries its number as payload; the answer must bring the same one back.
    """
    pick = random.Random(seed)
    limits = Limits(max_batch=16, max_queue=256, lanes=lanes)
    scheduler = Scheduler(limits, merge=True, row_bytes=16)
    running: dict[int, Batch] = {}
    events: list[tuple[float, int, int]] = []  # when, order, lane
    last_started: dict[tuple[int, object], int] = {}
    open_requests: dict[InferRequest, int] = {}
    recent: list[InferRequest] = []
    totals = dict.fromkeys(["OK", "refused", "cancelled", "DEADLINE_EXCEEDED", "INTERNAL"], 0)
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
                    assert index > last_started.get((priority, key), -1)
                    last_started[priority, key] = index
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


@pytest.mark.parametrize(("seed", "load", "lanes"), [(1, 0.15, 1), (2, 0.3, 1), (3, 0.3, 4), (4, 0.6, 2), (5, 0.05, 2)])
def test_simulated_requests_are_answered_once_and_in_time(seed: int, load: float, lanes: int) -> None:
    totals = simulate(seed, 200_000, load=load, lanes=lanes)
    assert totals["OK"] > 10_000
    assert totals["INTERNAL"] > 0
    assert totals["cancelled"] > 0
