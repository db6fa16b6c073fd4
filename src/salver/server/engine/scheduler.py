"""Which requests run next, together, and where: a pure state machine for one version of a model.

No clock, thread, event loop or I/O inside: `now` is given, what happened is told, and whom to answer is handed out. The
engine drives it in real time, the tests and the planner through simulated requests. All work is O(1) amortized per
request (O(log n) for one with a deadline, or beside requests of other clients).
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from salver.core.arrays import Array
from salver.core.errors import DeadlineExceeded, ResourceExhausted, SalverError, Unavailable
from salver.server.engine.base import InferRequest, Packed, Tensors
from salver.server.engine.cost import CostModel
from salver.server.engine.forecast import Forecast
from salver.server.engine.queues import QUEUED, Group, Queues

NEW: Final = 0
RUNNING: Final = 2
DONE: Final = 3
CANCELLED: Final = 4

SLACK: Final = 64  # dead entries that are not worth a sweep
_PROBE_PAUSE: Final = 4.0  # run times between two runs that are expected to be late
_DOUBT: Final = 1.25  # who must wait for others is refused on arrival when that is expected to take so much too long
_TINY_S: Final = 0.001


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a scheduler takes.

    Args:
        max_batch: rows in one batch. A single request may have more; it then runs alone.
        max_queue: requests that wait.
        max_queue_bytes: bytes of input that wait; a request that finds the queue empty is taken whatever its size.
        lanes: batches that run at the same time.
        slo_s: latency objective from arrival to answer; 0 for none.
        batch_sizes: the numbers of rows that the model is run with, rising; empty for any.
    """

    max_batch: int = 32
    max_queue: int = 1024
    max_queue_bytes: int = 1 << 30
    lanes: int = 1
    slo_s: float = 0.0
    batch_sizes: tuple[int, ...] = ()


class Batch:
    """Requests that run together on one lane.

    ``run_rows`` is what the model is run with: ``rows``, or the next of its declared batch sizes. ``slots`` is the row
    that each must have where the model keeps state by row; else None, and rows lie side by side. ``reason`` is why it
    has the size it has: ``full`` (no room for the next request), ``slo`` (a larger one would be late), ``idle_lane``
    (nothing more waited), ``key`` (what else waited cannot share a batch with it), ``alone`` (requests are not merged),
    ``retry`` (part of a batch that failed).
    """

    __slots__ = ("lane", "reason", "requests", "rows", "run_rows", "slots", "started_s")

    def __init__(self, requests: list[InferRequest], rows: int, lane: int, started_s: float) -> None:
        self.requests = requests
        self.reason = ""
        self.rows = rows
        self.run_rows = rows
        self.lane = lane
        self.started_s = started_s
        self.slots: list[int] | None = None


class WaitUntil(msgspec.Struct, frozen=True):
    """Nothing for this lane now; ask again at ``at_s``, when the next deadline passes."""

    at_s: float


class Scheduler:
    """Queue, batches and lanes of one version of a model.

    A request is NEW, then QUEUED, RUNNING (perhaps QUEUED again, when its batch failed and was split), and ends DONE or
    CANCELLED. The driver answers a request of a completed batch, or of `take_refused`, if it is DONE and not otherwise.
    The errors of those that were refused say why in `SalverError.reason`: ``queue_full``, ``deadline`` (its own passed
    or cannot be met), ``slo`` (the objective cannot be met), ``client_share`` (it gave way to a client that has less),
    ``priority`` (it gave way to a more urgent one), ``draining``.

    With an objective, a request that names no deadline gets the one that follows from it. A batch is as large as its
    oldest request allows, and takes at most half of the objective. What is expected to be late is refused when it
    arrives, or when its batch is formed; so is a request for whose sake others would have to run in small batches while
    more wait than one batch takes (early drop: Shen et al., Nexus, SOSP 2019, section 6.3). No work is done for what is
    refused, so throughput stays where it is when more is asked than can be done.

    Args:
        limits: see `Limits`.
        merge: whether requests may share a batch. Only for models whose answers do not depend on batch-mates.
        split: whether a failed batch may be run again in parts. Only for models without state.
        row_bytes: bytes of input per row where that is fixed; 0 to measure each request.
        cost: what batches cost, perhaps learned already at warm-up.

    Attributes:
        padded_rows: rows that were run only to make up a declared batch size.
    """

    def __init__(
        self, limits: Limits, *, merge: bool, split: bool = True, row_bytes: int = 0, cost: CostModel | None = None
    ) -> None:
        self.cost = cost or CostModel()
        self.queued_bytes = 0
        self.draining = False
        self.padded_rows = 0
        self._limits = limits
        self._slo_s = limits.slo_s
        self._max_rows = limits.max_batch if merge else 0
        self._split = split
        self._row_bytes = row_bytes
        self._queues = Queues()
        self._retries: deque[list[InferRequest]] = deque()
        self._deadlines: list[tuple[float, int, InferRequest]] = []
        self._sequence = 0
        self._running: list[Batch | None] = [None] * limits.lanes
        self._refused: list[tuple[InferRequest, SalverError]] = []
        self._dead = 0  # cancelled or expired entries that still lie in a queue
        self._forecast = Forecast(self.cost, self._queues, self._max_rows, limits.lanes, limits.slo_s)
        self._probe_at_s = -math.inf

    @property
    def idle(self) -> bool:
        """Whether nothing waits, runs, or is refused and not yet handed out."""
        return not self.queued and not self._refused and all(batch is None for batch in self._running)

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return self._queues.count

    @property
    def overhead_s(self) -> float:
        """Time between arrival and answer that is no run: reading, writing, the event loop's other work; as `answered`
        has told."""
        return self._forecast.overhead_s

    @property
    def queued_rows(self) -> int:
        """Rows of the requests that wait."""
        return self._queues.rows

    @property
    def full_rows(self) -> int:
        """Rows of a batch when enough wait; 0 where requests are not merged."""
        return self._forecast.best_rows

    @property
    def running(self) -> int:
        """Batches that run now."""
        return sum(batch is not None for batch in self._running)

    def oldest_run_s(self, now: float) -> float:
        """Age of the oldest batch that runs; 0 when none does."""
        return max((now - batch.started_s for batch in self._running if batch is not None), default=0.0)

    def gauges(self) -> dict[str, int]:
        """What waits and runs now."""
        return {"queued": self.queued, "queued_rows": self.queued_rows, "running": self.running}

    def submit(self, request: InferRequest, now: float) -> None:
        """Queue a request.

        Raises:
            ResourceExhausted: the queue is full, or the objective cannot be met; ``retry_after_s`` is about the time
                after which it would be taken.
            DeadlineExceeded: the deadline has passed, or will have before an answer is there.
            Unavailable: draining.
        """
        if self.draining:
            told = "the model is draining: it takes no new requests"
            raise because("draining", Unavailable(told, retry_after_s=self.wait_s(now) or None))
        rows = request.rows
        size = rows * self._row_bytes or measure(request.inputs)
        request.arrived_s = now
        deadline_s = request.deadline_s
        if deadline_s is None and self._slo_s:
            deadline_s = request.deadline_s = now + self._slo_s
        if deadline_s is not None:
            self._check_deadline(request, deadline_s, now)
        queues, limits = self._queues, self._limits
        queued = queues.count
        held_bytes = self.queued_bytes + size
        if queued and (queued >= limits.max_queue or held_bytes > limits.max_queue_bytes):
            self._make_room(request, size, now)
            held_bytes = self.queued_bytes + size
        if deadline_s is not None:
            self._watch(request, deadline_s)
        request.size_bytes = size
        request.state = QUEUED
        queues.push(request)
        self.queued_bytes = held_bytes

    def cancel(self, request: InferRequest) -> None:
        """Forget a request that is queued, running, or done and not yet answered. Its batch, if it runs, runs on."""
        if request.state == QUEUED:
            self._leave(request)
            self._bury()
        request.state = CANCELLED

    def next_batch(self, lane: int, now: float) -> Batch | WaitUntil | None:
        """The work of a lane: a batch at once when the lane is free and something waits. None: nothing until the next
        event. Requests that cannot be answered in time are refused on the way, see `take_refused`."""
        if self._deadlines:
            self._expire(now)
        if self._queues.count and self._running[lane] is None:
            batch = (self._retries and self._take_retry(lane, now)) or self._take(lane, now)
            if batch is not None:
                return batch
        if self._deadlines and self._queues.count:
            return WaitUntil(self._deadlines[0][0])
        return None

    def complete(
        self, batch: Batch, now: float, cpu_s: float | None = None, answers: Sequence[dict[str, Array]] = ()
    ) -> None:
        """A batch ran: free its lane, learn its cost. Its requests that are DONE now are to be answered.

        Args:
            cpu_s: CPU time of the run, where it was measured.
            answers: outputs of each request; what is no business of clients is taken out.
        """
        self._running[batch.lane] = None
        elapsed_s = now - batch.started_s
        self.cost.learn(batch.run_rows, elapsed_s, elapsed_s if cpu_s is None else cpu_s)
        if self._slo_s:
            self._forecast.follow()
        for request in batch.requests:
            if request.state == RUNNING:
                request.state = DONE

    def answered(self, batch: Batch, seconds: float) -> None:
        """A completed batch was answered; ``seconds`` went to what is no run. Counts with an objective only."""
        self._forecast.note_outside(len(batch.requests), seconds)

    def fail(self, batch: Batch, error: SalverError) -> None:
        """A batch failed: free its lane. A batch of several is split and its halves run again, so that a bad request
        fails alone (after at most log2 splits); a request that was alone is refused with the error."""
        self._running[batch.lane] = None
        alive = [request for request in batch.requests if request.state == RUNNING]
        if len(batch.requests) == 1 or not self._split:
            for request in alive:
                request.state = DONE
                self._refused.append((request, error))
            return
        middle = (len(alive) + 1) // 2
        for half in (alive[middle:], alive[:middle]):  # before all others, in their order
            if half:
                self._retries.appendleft(half)
        for request in alive:
            self._requeue(request)

    def take_refused(self) -> list[tuple[InferRequest, SalverError]]:
        """Requests that ended without an answer since the last call, with their errors; answer those that are DONE."""
        refused, self._refused = self._refused, []
        return refused

    def drain(self) -> None:
        """Take no more requests; what waits still runs."""
        self.draining = True

    def refuse_all(self, error: SalverError) -> None:
        """Refuse everything that waits (the drain took too long, or the model went away)."""
        waiting = [*self._queues, *(request for half in self._retries for request in half)]
        for request in waiting:
            if request.state == QUEUED:
                self._refuse(request, because("draining", error))

    def wait_s(self, now: float) -> float:
        """Expected time until a request that came now would start; 0 before any cost was learned."""
        return self._free_in_s(now) + self._forecast.work_s(self.queued_rows)

    def _free_in_s(self, now: float) -> float:
        """Expected time until a lane is free."""
        free_in_s = math.inf
        for batch in self._running:
            if batch is None:
                return 0.0
            free_in_s = min(free_in_s, max(0.0, self.cost.mean_s(batch.run_rows) - (now - batch.started_s)))
        return free_in_s

    def _check_deadline(self, request: InferRequest, deadline_s: float, now: float) -> None:
        if deadline_s < now:
            told = f"the deadline passed {now - deadline_s:.3g} s before the request was queued"
            raise because("deadline", DeadlineExceeded(told))
        forecast = self._forecast
        if deadline_s - now >= forecast.sure_s and self._queues.rows + request.rows <= forecast.best_rows:
            return
        done_in_s = forecast.done_in_s(request, self._free_in_s(now))
        allowed_s = deadline_s - now
        most_s = _DOUBT * allowed_s if self.queued else allowed_s
        if done_in_s > most_s and not self._may_probe(self.queued, now):
            raise self._too_late(request, done_in_s, allowed_s)

    def _too_late(self, request: InferRequest, done_in_s: float, allowed_s: float) -> SalverError:
        retry_after_s = max(done_in_s - allowed_s, _TINY_S)
        if self._has_own_deadline(request):
            told = (
                f"the deadline is in {allowed_s:.3g} s, but an answer would take about {done_in_s:.3g} s; allow more "
                "time or send fewer requests at once"
            )
            return because("deadline", DeadlineExceeded(told, retry_after_s=retry_after_s))
        told = (
            f"an answer would take about {done_in_s:.3g} s, more than the {self._slo_s:.3g} s that the server aims at; "
            f"retry in about {retry_after_s:.3g} s"
        )
        return because("slo", ResourceExhausted(told, retry_after_s=retry_after_s))

    def _has_own_deadline(self, request: InferRequest) -> bool:
        return not self._slo_s or request.deadline_s != request.arrived_s + self._slo_s

    def _may_probe(self, others: int, now: float) -> bool:
        """Whether a request may be run though it is expected to be late: no others wait, nothing runs, and it is time
        to see whether the estimate still holds."""
        return not others and now >= self._probe_at_s and not self.running

    def _make_room(self, request: InferRequest, size: int, now: float) -> None:
        """Let what is less urgent give way in a full queue, then a client that has more than its share to one that has
        less; or refuse."""
        queues, limits = self._queues, self._limits
        while self.queued >= limits.max_queue or self.queued_bytes + size > limits.max_queue_bytes:
            victim, reason = queues.newest_behind(request.priority), "priority"
            if victim is None:
                own, clients = queues.share_of(request.client)
                has_share = (own + request.rows) * clients > queues.rows
                victim, reason = None if has_share else queues.newest_of(queues.largest()), "client_share"
            if victim is None:
                raise because("queue_full", self._full(size, now))
            self._refuse(victim, because(reason, self._full(size, now)))

    def _full(self, size: int, now: float) -> ResourceExhausted:
        excess = self.queued_bytes + size - self._limits.max_queue_bytes
        part = excess / max(self.queued_bytes, 1)
        wait_s = max(self._forecast.room_in_s(part, self._free_in_s(now)), _TINY_S)
        return ResourceExhausted(
            f"the queue is full: {self.queued} requests ({self.queued_bytes} bytes) wait, at most "
            f"{self._limits.max_queue} ({self._limits.max_queue_bytes} bytes) may; retry in about {wait_s:.3g} s",
            retry_after_s=wait_s,
        )

    def _watch(self, request: InferRequest, deadline_s: float) -> None:
        if len(self._deadlines) > 2 * self.queued + SLACK:
            self._deadlines = [entry for entry in self._deadlines if entry[2].state == QUEUED]
            heapq.heapify(self._deadlines)
        self._sequence += 1
        heapq.heappush(self._deadlines, (deadline_s, self._sequence, request))

    def _expire(self, now: float) -> None:
        while self._deadlines and (self._deadlines[0][0] < now or self._deadlines[0][2].state != QUEUED):
            request = heapq.heappop(self._deadlines)[2]
            if request.state == QUEUED:
                self._refuse(request, self._missed(request, now))

    def _take(self, lane: int, now: float) -> Batch | None:
        """The next batch; None when all that waited would be late."""
        queues = self._queues
        picked: list[InferRequest] = []
        late: list[InferRequest] = []
        batch = None
        while batch is None and (priority := queues.turn()) is not None:
            level = queues.levels[priority]
            turns = level.turns
            while turns and batch is None:
                group = level.groups[turns[0]]
                why = self._pick_in_time(group, picked, late, now) if self._deadlines else self._pick(group, picked)
                if picked:
                    batch = self._start(picked, lane, now)
                    queues.taken(level, picked, batch.rows)
                    batch.reason = why or ("key" if queues.count else "idle_lane")
                queues.tidy(level)
            if not level.groups:
                queues.forget(priority)
        for request in late:
            self._reject(request, self._missed(request, now))
        return batch

    def _start(self, picked: list[InferRequest], lane: int, now: float) -> Batch:
        rows = size = 0
        for request in picked:
            request.state = RUNNING
            rows += request.rows
            size += request.size_bytes
        self.queued_bytes -= size
        batch = self._running[lane] = Batch(picked, rows, lane, now)
        sizes = self._limits.batch_sizes
        if sizes and self._max_rows and rows <= sizes[-1]:
            batch.run_rows = sizes[bisect_left(sizes, rows)]
            self.padded_rows += batch.run_rows - rows
        return batch

    def _pick(self, group: Group, picked: list[InferRequest]) -> str:
        """Requests of one group that share a batch, and why no more do; empty where no more wait in the group."""
        room, turns, queues = self._max_rows, group.turns, self._queues
        if turns is None and len(group) == queues.count and queues.rows <= room and not self._dead:
            picked += group  # all that waits fits, as it mostly does: no need to look at each
            group.clear()
            return "full" if queues.rows == room else ""
        queue: deque[InferRequest] = group if turns is None else turns.current()
        while queue:
            request = queue[0]
            rows = request.rows
            if request.state != QUEUED:
                rows = 0
                self._dead -= 1
            elif picked and rows > room:
                return "full"
            else:
                picked.append(request)
                room -= rows
            queue.popleft()
            if turns is not None:
                queue = turns.charge(rows)
            if room <= 0 and picked:
                return "full" if self._max_rows else "alone"
        return ""

    def _pick_in_time(self, group: Group, picked: list[InferRequest], late: list[InferRequest], now: float) -> str:
        """As `_pick`, of those that can be answered in time; the others go to ``late``."""
        most, taken, tightest_s = self._forecast.best_rows, 0, math.inf
        turns = group.turns
        queue: deque[InferRequest] = group if turns is None else turns.current()
        while queue:
            request = queue[0]
            rows, deadline_s = request.rows, request.deadline_s
            if request.state != QUEUED:
                rows = 0
                self._dead -= 1
            elif deadline_s is not None and deadline_s < tightest_s and not (allowed := self._allowed(request, now)):
                rows = 0
                self._leave(request)
                late.append(request)
            else:
                if deadline_s is not None and deadline_s < tightest_s:
                    tightest_s = deadline_s
                    most = min(most, allowed) if picked else allowed
                if picked and taken + rows > most:
                    return self._closed_by(most)
                picked.append(request)
                taken += rows
            queue.popleft()
            if turns is not None:
                queue = turns.charge(rows)
            if picked and taken >= most:
                return self._closed_by(most)
        return ""

    def _closed_by(self, most: int) -> str:
        if not self._max_rows:
            return "alone"
        return "slo" if most < self._max_rows else "full"

    def _allowed(self, request: InferRequest, now: float) -> int:
        """Rows of the largest batch in which a request that has a deadline is in time; 0 when it is better refused."""
        cost, best, rows = self.cost, self._forecast.best_rows, request.rows
        slack_s = (request.deadline_s or 0.0) - now - self._forecast.overhead_s
        fitting = cost.most_rows(slack_s, best) if best else 0
        if fitting == best and rows <= best:
            return best
        fitting = max(fitting, rows)
        if cost.mean_s(rows) > slack_s:
            if not self._may_probe(self.queued - 1, now):
                return 0
            self._probe_at_s = now + _PROBE_PAUSE * cost.mean_s(rows)
        elif self._slo_s and self._forecast.is_crowded:
            return fitting if self._forecast.is_efficient(fitting) else 0
        return fitting

    def _missed(self, request: InferRequest, now: float) -> SalverError:
        """The error for a request that had to wait too long."""
        waited_s, retry_after_s = now - request.arrived_s, max(self.wait_s(now), _TINY_S)
        if self._has_own_deadline(request):
            left_s = (request.deadline_s or 0.0) - now
            told = f"after {waited_s:.3g} s in the queue the deadline is in {left_s:.3g} s, too soon for a run"
            if left_s < 0.0:
                told = f"the deadline passed after {waited_s + left_s:.3g} s in the queue"
            return because("deadline", DeadlineExceeded(told, retry_after_s=retry_after_s))
        told = (
            f"after {waited_s:.3g} s in the queue an answer would be later than the {self._slo_s:.3g} s that the "
            f"server aims at; retry in about {retry_after_s:.3g} s"
        )
        return because("slo", ResourceExhausted(told, retry_after_s=retry_after_s))

    def _take_retry(self, lane: int, now: float) -> Batch | None:
        while self._retries:
            half = self._retries.popleft()
            alive = [request for request in half if request.state == QUEUED]
            self._dead -= len(half) - len(alive)
            if alive:
                for request in alive:
                    self._queues.leave(request)
                batch = self._start(alive, lane, now)
                batch.reason = "retry"
                return batch
        return None

    def _requeue(self, request: InferRequest) -> None:
        request.state = QUEUED
        self._queues.hold(request)
        self.queued_bytes += request.size_bytes
        if request.deadline_s is not None:
            self._watch(request, request.deadline_s)

    def _leave(self, request: InferRequest) -> None:
        self._queues.leave(request)
        self.queued_bytes -= request.size_bytes

    def _refuse(self, request: InferRequest, error: SalverError) -> None:
        """Take a waiting request out and answer it with an error; its entry in the queue is dead from now on."""
        self._leave(request)
        self._reject(request, error)
        self._bury()

    def _reject(self, request: InferRequest, error: SalverError) -> None:
        """Answer a request that does not wait any more with an error."""
        request.state = DONE
        self._refused.append((request, error))

    def _bury(self) -> None:
        self._dead += 1
        if self._dead > self.queued + SLACK:
            self._sweep()

    def _sweep(self) -> None:
        """Drop dead entries, so that cancelled requests never take more memory than waiting ones."""
        self._retries = deque(
            alive for half in self._retries if (alive := [request for request in half if request.state == QUEUED])
        )
        self._queues.sweep()
        self._dead = 0


def because(reason: str, error: SalverError) -> SalverError:
    """The error of a request that is refused for a reason that is counted."""
    error.reason = reason
    return error


def measure(inputs: Tensors) -> int:
    """Bytes of input, the characters of strings included."""
    size = 0
    for tensor in inputs.values():
        size += tensor.nbytes
        if not isinstance(tensor, Packed) and tensor.dtype.hasobject:
            size += sum(map(len, tensor.ravel()))
    return size
