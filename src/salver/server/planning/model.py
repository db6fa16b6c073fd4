"""A version of a model in a simulated worker: what drives its scheduler, as `served.LoadedModel` does in real time."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Final

from salver.core.arrays import Array
from salver.core.errors import Internal, Unavailable
from salver.server.engine.base import InferRequest
from salver.server.engine.cost import CostModel
from salver.server.engine.scheduler import CANCELLED, DONE, Batch, Limits, Scheduler, WaitUntil
from salver.server.planning.ledger import ANSWERED
from salver.server.planning.scenario import Latency, SimulatedModel

if TYPE_CHECKING:
    from salver.server.planning.worker import SimulatedWorker

NO_INPUTS: Final[dict[str, Array]] = {}
_DRAWS: Final = 1 << 14
_TIMER_S: Final = 0.001
_WARM_RUNS: Final = 5  # as a model that is loaded is run to see what it costs
_BROKEN: Final = Internal("the simulated model failed")
KILLED: Final = Unavailable("the worker was killed")


class SimulatedRequest(InferRequest, eq=False, kw_only=True):
    """A request that knows its number, where it is, and whether the model fails on it.

    Args:
        loop: the stream, where that is a closed loop: told when the request ends.
    """

    number: int
    model: str
    sent_s: float
    timeout_s: float = 0.0
    bad: bool = False
    loop: int = -1
    served: SimulatedServed | None = None


def unused(_outputs: object, _timing: object) -> None:
    """The ledger hears of answers, not the request."""


class Draws:
    """How long runs take, drawn at random."""

    def __init__(self, latency: Latency, max_rows: int, random: Random) -> None:
        self._usual = [latency.usual_s(max(rows, 1)) for rows in range(max_rows + 1)]
        self._latency = latency
        self._random = random
        self._noise = self._make_noise()

    def run_s(self, rows: int) -> float:
        """Of one run."""
        usual = self._usual[rows] if rows < len(self._usual) else self._latency.usual_s(rows)
        return usual * self._noise[int(self._random.random() * len(self._noise))]

    def _make_noise(self) -> list[float]:
        latency, random = self._latency, self._random
        if latency.ratios:
            return list(latency.ratios)
        if not latency.sigma and not latency.tail_share:
            return [1.0]
        noise = [random.lognormvariate(0.0, latency.sigma) for _ in range(_DRAWS)]
        return [n * latency.tail_factor if random.random() < latency.tail_share else n for n in noise]


class Run:
    """A batch on a lane."""

    __slots__ = ("batch", "began_s", "compute_s", "cpu_s", "failed", "numbers", "served")

    def __init__(self, served: SimulatedServed, batch: Batch, numbers: list[int], cpu_s: float, failed: bool) -> None:
        self.served = served
        self.batch = batch
        self.numbers = numbers
        self.cpu_s = cpu_s
        self.failed = failed
        self.began_s = 0.0
        self.compute_s = 0.0


class SimulatedServed:
    """One version of a model in one worker: scheduler, lanes, and the invariants of batches."""

    def __init__(self, name: str, model: SimulatedModel, draws: Draws, worker: SimulatedWorker, random: Random) -> None:
        self.name = name
        self.model = model
        self.worker = worker
        self.limits = Limits(
            max_batch=model.max_batch,
            max_queue=model.max_queue,
            max_queue_bytes=model.max_queue_bytes,
            lanes=model.lanes,
            slo_s=model.slo_s,
        )
        cost = CostModel()
        for _ in range(_WARM_RUNS):
            for rows in {1, model.max_batch if model.merge else 1}:
                run_s = draws.run_s(rows)
                cost.learn(rows, run_s, run_s * model.latency.cpu_share)
        self.scheduler = Scheduler(self.limits, merge=model.merge, row_bytes=model.row_bytes, cost=cost)
        self.free = list(range(model.lanes))
        self.running: dict[int, Run] = {}
        self.kicked = False
        self.timer_s = 0.0
        self.hang_s = 0.0
        self._kicked_s = 0.0
        self._gather_until_s = 0.0
        self._gathered_rows = 0
        self._lag_s = 0.0  # between a request's taking and the look for a free lane
        self._random = random
        self._draws = draws
        self._bound = model.max_queue + model.max_batch * model.lanes

    def submit(self, request: SimulatedRequest, now: float) -> None:
        """As the engine does."""
        if request.timeout_s:
            request.deadline_s = now + request.timeout_s
        self.scheduler.submit(request, now)
        request.served = self
        if self.free:
            if not self.kicked:
                self._kicked_s = now
                self.kick_soon()
        elif request.deadline_s is not None:
            self._wake_at(request.deadline_s, now)

    def kick(self, now: float) -> float:
        """What came in this turn has been read: a batch that is to run on the event loop may wait for another turn;
        when the event loop is done with it."""
        scheduler, overheads = self.scheduler, self.worker.overheads
        if self._kicked_s:
            self._lag_s = now - self._kicked_s
            self._gather_until_s = self._kicked_s + overheads.gather_s
            self._kicked_s = 0.0
        rows = scheduler.queued_rows
        if (
            self._gathered_rows < rows < scheduler.full_rows
            and scheduler.queued > 1
            and now < self._gather_until_s
            and self.free
            and self.model.inline
            and scheduler.cost.is_short(rows, overheads.inline_s)
        ):
            self._gathered_rows = rows
            self.kicked = True
            self.worker.kicks.append(self)
            return now
        self._gathered_rows = 0
        self.kicked = False
        return self._dispatch(now)

    def _dispatch(self, now: float) -> float:
        """Give every free lane what waits; when the event loop is done with it."""
        scheduler, worker = self.scheduler, self.worker
        lane = self.free[-1] if self.free else 0
        found = scheduler.next_batch(lane, now)
        while type(found) is Batch:
            run = self._check(found)
            if self.model.inline and scheduler.cost.is_short(found.run_rows, worker.overheads.inline_s):
                now += self._run_s(found) * worker.pace
                self.settle(run, now, inline=True)
                now = self.answer(run, now, now)
                if scheduler.queued:
                    self.kick_soon()
                break
            now += worker.overheads.handoff_s * worker.pace
            lane = self.free.pop()
            self.running[lane] = run
            work_s = self._run_s(found) * worker.factor
            worker.ledger.work_s += work_s * self.model.threads
            run.began_s = now
            worker.tell(now)  # the run has nothing to do with what came before it
            worker.cores.start(now, work_s, self.model.threads, run)
            lane = self.free[-1] if self.free else lane
            found = scheduler.next_batch(lane, now)
        refused_s = self.answer_refused(now)
        if type(found) is WaitUntil:
            self._wake_at(found.at_s, now)
        return refused_s

    def kick_soon(self) -> None:
        """In the next turn."""
        if not self.kicked:
            self.kicked = True
            self.worker.kicks.append(self)

    def after_lane(self, run: Run, now: float) -> float:
        """A lane has run a batch; when the event loop is done with it."""
        ended_s = now
        self.settle(run, now, inline=False)
        lane = run.batch.lane
        self.running.pop(lane, None)
        self.free.append(lane)
        now = self._dispatch(now)
        return self.answer(run, now, ended_s)

    def settle(self, run: Run, now: float, *, inline: bool) -> None:
        """Tell the scheduler how a batch ended."""
        batch, ledger = run.batch, self.worker.ledger
        ledger.batches += 1
        ledger.rows += batch.rows
        if not inline:
            ledger.busy_s += now - batch.started_s
        if run.failed:
            self.scheduler.fail(batch, _BROKEN)
        else:
            self.scheduler.complete(batch, now, run.cpu_s)

    def answer(self, run: Run, now: float, ended_s: float) -> float:
        """Answer a batch's requests, each with what was computed for it; when that is done."""
        if run.failed:
            return self.answer_refused(now)
        worker = self.worker
        ledger, encode_s, ended = worker.ledger, worker.overheads.encode_s * worker.pace, worker.ended
        end, took_s, waited_s = ledger.end, ledger.took_s, ledger.waited_s
        started_s = run.batch.started_s
        requests: list[Any] = run.batch.requests
        if [request.number for request in requests] != run.numbers:
            ledger.violate(f"{self.name}: a batch's requests were changed while it ran")
        for request in requests:
            if request.state == DONE:
                now += encode_s
                number = request.number
                if end[number] or request.bad:
                    ledger.violate(f"request {number} was answered and must not be")
                end[number] = ANSWERED
                took_s[number] = now - request.sent_s
                waited_s[number] = started_s - request.arrived_s
                if request.loop >= 0:
                    ended(request, now)
        if self.model.slo_s:
            self.scheduler.answered(run.batch, now - ended_s + self._lag_s)
        return now

    def answer_refused(self, now: float) -> float:
        """Answer those that the scheduler gave up; when that is done."""
        worker = self.worker
        for request, error in self.scheduler.take_refused():
            if request.state == DONE:
                now += worker.overheads.encode_s * worker.pace
                worker.refuse(request, error, now)  # type: ignore[arg-type]  # all requests here are simulated
        return now

    def die(self, now: float) -> None:
        """The process is gone, and with it all that waits and runs."""
        self.scheduler.refuse_all(KILLED)
        self.answer_refused(now)
        for run in self.running.values():
            for request in run.batch.requests:
                if request.state != CANCELLED:
                    self.worker.refuse(request, KILLED, now)  # type: ignore[arg-type]  # all are simulated

    def _run_s(self, batch: Batch) -> float:
        worker = self.worker
        overheads = worker.overheads
        seconds = self._draws.run_s(batch.run_rows) + overheads.merge_s + overheads.merge_row_s * batch.rows
        hang_s, self.hang_s = self.hang_s, 0.0
        cold_s, worker.cold_s = worker.cold_s, 0.0
        return seconds + hang_s + cold_s

    def _check(self, batch: Batch) -> Run:
        """What holds for every batch when it starts."""
        requests: list[Any] = batch.requests
        started_s, first, ledger = batch.started_s, requests[0], self.worker.ledger
        failed, rows, key, priority = False, 0, first.key, first.priority
        for request in requests:
            deadline_s = request.deadline_s
            if deadline_s is not None and started_s > deadline_s:
                ledger.violate(f"request {request.number} was started {started_s - deadline_s:.3g} s late")
            if request.bad:
                failed = True
            if request.key != key or request.priority != priority:
                ledger.violate(f"request {request.number} shares a batch with requests of another key or priority")
            rows += request.rows
        if rows != batch.rows or (rows > self.model.max_batch and len(requests) > 1):
            ledger.violate(f"{self.name}: a batch of {rows} rows, told as {batch.rows}, at most {self.model.max_batch}")
        if len(requests) > 1 and not self.model.merge:
            ledger.violate(f"{self.name}: requests were merged and must not be")
        queued = self.scheduler.queued
        if queued > ledger.most_queued:
            ledger.most_queued = queued
            if queued > self._bound:
                ledger.violate(f"{self.name}: {queued} requests wait, at most {self._bound} may")
        latency = self.model.latency
        if self.model.fail_share and self._random.random() < self.model.fail_share:
            failed = True
        cpu_s = latency.cpu_share * latency.usual_s(rows)
        return Run(self, batch, [request.number for request in requests], cpu_s, failed)

    def _wake_at(self, at_s: float, now: float) -> None:
        if self.timer_s > now and self.timer_s <= at_s + _TIMER_S:
            return
        self.timer_s = max(at_s, now) + _TIMER_S
        self.worker.clock.at(self.timer_s, self._on_timer)

    def _on_timer(self, now: float) -> None:
        if not self.worker.dead and now >= self.timer_s:
            self.worker.post(self, now)
