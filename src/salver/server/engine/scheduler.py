"""Which requests run next, together, and where: a pure state machine for one version of a model.

No clock, thread, event loop or I/O inside: `now` is given, what happened is told, and whom to answer is handed out. The
engine drives it in real time, the tests through simulated requests. All work is O(1) amortized per request (O(log n)
for one with a deadline).
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Final

import msgspec

from salver.core.arrays import Array
from salver.core.errors import DeadlineExceeded, ResourceExhausted, SalverError, Unavailable
from salver.server.engine.base import InferRequest
from salver.server.engine.cost import CostModel

NEW: Final = 0
QUEUED: Final = 1
RUNNING: Final = 2
DONE: Final = 3
CANCELLED: Final = 4

SLACK: Final = 64  # dead entries that are not worth a sweep


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a scheduler takes.

    Args:
        max_batch: rows in one batch. A single request may have more; it then runs alone.
        max_queue: requests that wait.
        max_queue_bytes: bytes of input that wait; a request that finds the queue empty is taken whatever its size.
        lanes: batches that run at the same time.
    """

    max_batch: int = 32
    max_queue: int = 1024
    max_queue_bytes: int = 1 << 30
    lanes: int = 1


class Batch:
    """Requests that run together on one lane.

    ``slots`` is the row that each must have where the model keeps state by row; else None, and rows lie side by side.
    """

    __slots__ = ("lane", "requests", "rows", "slots", "started_s")

    def __init__(self, requests: list[InferRequest], rows: int, lane: int, started_s: float) -> None:
        self.requests = requests
        self.rows = rows
        self.lane = lane
        self.started_s = started_s
        self.slots: list[int] | None = None


class WaitUntil(msgspec.Struct, frozen=True):
    """Nothing for this lane now; ask again at ``at_s``, when the next deadline passes."""

    at_s: float


class _Level:
    """Requests of one priority. Keys take turns; within a key first come, first served."""

    __slots__ = ("groups", "turns")

    def __init__(self) -> None:
        self.groups: dict[Hashable, deque[InferRequest]] = {}
        self.turns: deque[Hashable] = deque()


class Scheduler:
    """Queue, batches and lanes of one version of a model.

    A request is NEW, then QUEUED, RUNNING (perhaps QUEUED again, when its batch failed and was split), and ends DONE or
    CANCELLED. The driver answers a request of a completed batch, or of `take_refused`, if it is DONE and not otherwise.

    Args:
        limits: see `Limits`.
        merge: whether requests may share a batch. Only for models whose answers do not depend on batch-mates.
        split: whether a failed batch may be run again in parts. Only for models without state.
        row_bytes: bytes of input per row where that is fixed; 0 to measure each request.
        cost: what batches cost, perhaps learned already at warm-up.
    """

    def __init__(
        self, limits: Limits, *, merge: bool, split: bool = True, row_bytes: int = 0, cost: CostModel | None = None
    ) -> None:
        self.cost = cost or CostModel()
        self.queued = 0
        self.queued_rows = 0
        self.queued_bytes = 0
        self.draining = False
        self._limits = limits
        self._max_rows = limits.max_batch if merge else 0
        self._split = split
        self._row_bytes = row_bytes
        self._normal = _Level()
        self._levels = {0: self._normal}
        self._order = [0]
        self._retries: deque[list[InferRequest]] = deque()
        self._deadlines: list[tuple[float, int, InferRequest]] = []
        self._sequence = 0
        self._running: list[Batch | None] = [None] * limits.lanes
        self._refused: list[tuple[InferRequest, SalverError]] = []
        self._dead = 0  # cancelled or expired entries that still lie in a queue

    @property
    def idle(self) -> bool:
        """Whether nothing waits, runs, or is refused and not yet handed out."""
        return not self.queued and not self._refused and all(batch is None for batch in self._running)

    @property
    def running(self) -> int:
        """Batches that run now."""
        return sum(batch is not None for batch in self._running)

    def gauges(self) -> dict[str, int]:
        """What waits and runs now."""
        return {"queued": self.queued, "queued_rows": self.queued_rows, "running": self.running}

    def submit(self, request: InferRequest, now: float) -> None:
        """Queue a request.

        Raises:
            ResourceExhausted: the queue is full; ``retry_after_s`` is about the time in which it empties.
            DeadlineExceeded: the deadline has passed, or will have before the requests ahead have run.
            Unavailable: draining.
        """
        if self.draining:
            raise Unavailable("the model is draining: it takes no new requests")
        rows = request.rows
        size = rows * self._row_bytes or measure(request.inputs)
        limits = self._limits
        if self.queued and (self.queued >= limits.max_queue or self.queued_bytes + size > limits.max_queue_bytes):
            raise self._full(now)
        priority = request.priority
        if request.deadline_s is not None:
            self._check_deadline(request.deadline_s, priority, now)
            self._watch(request, request.deadline_s)
        request.arrived_s = now
        request.size_bytes = size
        request.state = QUEUED
        level = self._normal if priority == 0 else self._level(priority)
        group = level.groups.get(request.key)
        if group is None:
            level.groups[request.key] = group = deque()
            level.turns.append(request.key)
        group.append(request)
        self.queued += 1
        self.queued_rows += rows
        self.queued_bytes += size

    def cancel(self, request: InferRequest) -> None:
        """Forget a request that is queued, running, or done and not yet answered. Its batch, if it runs, runs on."""
        if request.state == QUEUED:
            self._leave(request)
            self._bury()
        request.state = CANCELLED

    def next_batch(self, lane: int, now: float) -> Batch | WaitUntil | None:
        """The work of a lane: a batch at once when the lane is free and something waits. None: nothing until the next
        event. Requests whose deadline has passed are refused on the way, see `take_refused`."""
        if self._deadlines:
            self._expire(now)
        if self.queued and self._running[lane] is None:
            requests = (self._retries and self._take_retry()) or self._take()
            rows = 0
            for request in requests:
                request.state = RUNNING
                rows += request.rows
            batch = Batch(requests, rows, lane, now)
            self._running[lane] = batch
            return batch
        if self.queued and self._deadlines:
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
        self.cost.learn(batch.rows, elapsed_s, elapsed_s if cpu_s is None else cpu_s)
        for request in batch.requests:
            if request.state == RUNNING:
                request.state = DONE

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
        waiting = [r for level in self._levels.values() for group in level.groups.values() for r in group]
        waiting += [r for half in self._retries for r in half]
        for request in waiting:
            if request.state == QUEUED:
                self._refuse(request, error)

    def wait_s(self, now: float) -> float:
        """Expected time until a request that came now would start; 0 before any cost was learned."""
        free_in = min(self._remaining(batch, now) for batch in self._running)
        if not self.queued:
            return free_in
        typical = max(self._max_rows, -(-self.queued_rows // self.queued))
        batches = max(1.0, self.queued_rows / typical)
        return free_in + self.cost.mean_s(min(typical, self.queued_rows)) * batches / len(self._running)

    def _remaining(self, batch: Batch | None, now: float) -> float:
        return 0.0 if batch is None else max(0.0, self.cost.mean_s(batch.rows) - (now - batch.started_s))

    def _full(self, now: float) -> ResourceExhausted:
        wait_s = max(self.wait_s(now), 0.001)
        return ResourceExhausted(
            f"the queue is full: {self.queued} requests ({self.queued_bytes} bytes) wait, at most "
            f"{self._limits.max_queue} ({self._limits.max_queue_bytes} bytes) may; retry in about {wait_s:.3g} s",
            retry_after_s=wait_s,
        )

    def _check_deadline(self, deadline_s: float, priority: int, now: float) -> None:
        if deadline_s < now:
            raise DeadlineExceeded(f"the deadline passed {now - deadline_s:.3g} s before the request was queued")
        if not self.queued or self._order[-1] > priority:  # who overtakes others is not refused on their account
            return
        wait_s = self.wait_s(now)
        if now + wait_s > deadline_s:
            raise DeadlineExceeded(
                f"the deadline is in {deadline_s - now:.3g} s, but the requests ahead take about {wait_s:.3g} s; "
                "allow more time or send fewer requests at once",
                retry_after_s=wait_s,
            )

    def _level(self, priority: int) -> _Level:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _Level()
            insort(self._order, priority)
        return level

    def _watch(self, request: InferRequest, deadline_s: float) -> None:
        if len(self._deadlines) > 2 * self.queued + SLACK:
            self._deadlines = [entry for entry in self._deadlines if entry[2].state == QUEUED]
            heapq.heapify(self._deadlines)
        self._sequence += 1
        heapq.heappush(self._deadlines, (deadline_s, self._sequence, request))

    def _expire(self, now: float) -> None:
        while self._deadlines and (self._deadlines[0][0] < now or self._deadlines[0][2].state != QUEUED):
            deadline_s, _, request = heapq.heappop(self._deadlines)
            if request.state == QUEUED:
                late = DeadlineExceeded(
                    f"the deadline passed after {deadline_s - request.arrived_s:.3g} s in the queue"
                )
                self._refuse(request, late)

    def _take(self) -> list[InferRequest]:
        """The requests of the next batch; at least one waits in a level."""
        index = 0
        picked: list[InferRequest] = []
        while not picked:
            priority = self._order[index]
            level = self._levels[priority]
            while level.turns and not picked:
                key = level.turns.popleft()
                group = level.groups[key]
                self._pick(group, picked)
                if group:
                    level.turns.append(key)
                else:
                    del level.groups[key]
            if level.turns or priority == 0:
                index += 1
            else:
                del self._levels[priority], self._order[index]
        return picked

    def _pick(self, group: deque[InferRequest], picked: list[InferRequest]) -> None:
        room = self._max_rows
        size = 0
        while group:
            request = group[0]
            if request.state != QUEUED:
                group.popleft()
                self._dead -= 1
                continue
            if picked and request.rows > room:
                break
            group.popleft()
            picked.append(request)
            room -= request.rows
            size += request.size_bytes
            if room <= 0:
                break
        self.queued -= len(picked)
        self.queued_rows -= self._max_rows - room
        self.queued_bytes -= size

    def _take_retry(self) -> list[InferRequest]:
        while self._retries:
            half = self._retries.popleft()
            alive = [request for request in half if request.state == QUEUED]
            self._dead -= len(half) - len(alive)
            for request in alive:
                self._leave(request)
            if alive:
                return alive
        return []

    def _requeue(self, request: InferRequest) -> None:
        request.state = QUEUED
        self.queued += 1
        self.queued_rows += request.rows
        self.queued_bytes += request.size_bytes
        if request.deadline_s is not None:
            self._watch(request, request.deadline_s)

    def _leave(self, request: InferRequest) -> None:
        self.queued -= 1
        self.queued_rows -= request.rows
        self.queued_bytes -= request.size_bytes

    def _refuse(self, request: InferRequest, error: SalverError) -> None:
        """Take a waiting request out and answer it with an error; its entry in the queue is dead from now on."""
        self._leave(request)
        request.state = DONE
        self._refused.append((request, error))
        self._bury()

    def _bury(self) -> None:
        self._dead += 1
        if self._dead > self.queued + SLACK:
            self._sweep()

    def _sweep(self) -> None:
        """Drop dead entries, so that cancelled requests never take more memory than waiting ones."""
        self._retries = deque(
            alive for half in self._retries if (alive := [request for request in half if request.state == QUEUED])
        )
        for priority in list(self._order):
            level = self._levels[priority]
            groups = {
                key: deque(request for request in level.groups[key] if request.state == QUEUED) for key in level.turns
            }
            level.groups = {key: group for key, group in groups.items() if group}
            level.turns = deque(level.groups)
            if not level.groups and priority != 0:
                del self._levels[priority]
                self._order.remove(priority)
        self._dead = 0


def measure(inputs: dict[str, Array]) -> int:
    """Bytes of input, the characters of strings included."""
    size = 0
    for array in inputs.values():
        size += array.nbytes
        if array.dtype.hasobject:
            size += sum(map(len, array.ravel()))
    return size
