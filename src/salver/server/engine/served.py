"""One loaded version of a model, and the real-time driver of its scheduler on the event loop."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Final

import msgspec

from salver.backends.base import Session
from salver.core.errors import SalverError
from salver.core.tensors import Signature, TensorSpec
from salver.server.engine.base import BatchCost, InferRequest, ModelFacts, ModelState, Timing, batchable, is_ragged
from salver.server.engine.config import ModelConfig
from salver.server.engine.cost import CostModel
from salver.server.engine.lanes import Execute, Lane, Run, attempt, execute, execute_slots
from salver.server.engine.response_cache import ResponseCache
from salver.server.engine.scheduler import DONE, Batch, Limits, Scheduler, WaitUntil
from salver.server.engine.sequences import SequenceScheduler
from salver.server.engine.servable import Servable
from salver.server.engine.stateful import Stateful
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import RunSettings

INLINE_S: Final = 200e-6
"""A batch whose CPU time, at the 99.9th percentile, is below this runs on the event loop. A thread hop costs about
50 µs of CPU, and four times that is as long as other connections may be kept waiting for one batch."""

GATHER_S: Final = 0.001  # for so long, at most, a batch waits while requests come
_JOIN_S: Final = 0.2
_TICK_S: Final = 0.001  # the resolution of the event loop's timers

_LOG = logging.getLogger(__name__)
_UNANSWERED: Final = "a frontend failed to answer a request"
_PLAIN = ModelConfig()
_EMPTY = Signature(inputs=(), outputs=())


class LoadedModel(Servable):
    """A model from discovery to unloading. Made in state LOADING; `open` makes it READY, `refuse` UNAVAILABLE.

    All methods are called on the event loop.

    Args:
        name, version: under which it is served.
        metrics: where batches and refusals are counted.
        changed: called when its state has changed.
    """

    platform = ""

    def __init__(self, name: str, version: str, metrics: Metrics, changed: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self.version = version
        self.signature = _EMPTY
        self.state: ModelState = "LOADING"
        self.reason = "loading"
        self.tested = False
        self.metadata: dict[str, Any] = {}
        self._metrics = metrics
        self._changed = changed
        self._session: Session
        self._settings: RunSettings
        self._scheduler: Scheduler
        self._opened = False
        self._cache: ResponseCache | None = None
        self._free: list[int] = []
        self._lanes: list[Lane] = []
        self._kicked = False
        self._gathered_rows = 0  # that waited at the last turn of the loop, while more and more come
        self._gather_until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._kicked_at_s = 0.0
        self._lag_s = 0.0  # for which the event loop was last busy with something else

    def open(
        self,
        session: Session,
        settings: RunSettings,
        *,
        merge: bool,
        cost: CostModel,
        inline: bool = True,
        config: ModelConfig = _PLAIN,
    ) -> None:
        """Take requests from now on.

        Args:
            merge: whether requests may share a batch.
            cost: what warm-up learned.
            inline: whether a run keeps the calling thread busy from start to end, so that its CPU time is its time.
            config: what it is told besides its graph.

        Raises:
            InvalidArgument: the configuration of its state does not fit its tensors.
        """
        stateful = None if config.sequence is None else Stateful(session.signature, config.sequence)
        self._loop = asyncio.get_running_loop()
        self._session = session = session if stateful is None else stateful.view(session)
        self.config = config
        self.signature = session.signature if stateful is None else stateful.served
        self.ragged = is_ragged(self.signature)
        self._inline = inline
        self._slo_s = settings.slo_s
        self._timeout_s = settings.default_timeout_s
        if 0.0 < self._slo_s <= self._timeout_s:
            self._timeout_s = 0.0
        self._settings = settings
        self._merge = merge
        self._scheduler = _scheduler(session.signature, stateful, settings, config, merge, cost)
        self.stateful = stateful is not None
        self._execute: Execute = partial(execute, session, batchable(session.signature))
        lanes = settings.lanes
        if stateful is None:
            self._cache = ResponseCache.of(settings.response_cache_bytes)
        elif isinstance(self._scheduler, SequenceScheduler) and self._scheduler.has_slots:
            lanes = 1  # what the model keeps for a slot must not be read and written by two batches
            if stateful.batched:
                self._execute = partial(execute_slots, session, stateful.blanks)
        self._free = list(range(lanes))
        self._lanes = [Lane(f"{self.name}-{self.version}-{i}", self._execute, self._ran) for i in range(lanes)]
        self._opened = True
        self._enter("READY")

    def refuse(self, reason: str) -> None:
        """It cannot be served, and why."""
        self._enter("UNAVAILABLE", reason)

    def gauges(self) -> dict[str, int]:
        if not self._opened:
            return {}
        gauges = self._scheduler.gauges()
        if self._cache is not None:
            gauges["cache_bytes"] = self._cache.size_bytes
        return gauges

    def facts(self) -> ModelFacts:
        facts = super().facts()
        if not self._opened:
            return facts
        settings, cost = self._settings, self._scheduler.cost
        most = settings.max_batch if self._merge else 1
        once_s, twice_s, cpu_s = cost.mean_s(most), cost.mean_s(2 * most), cost.cpu_s(1)
        sizes = [1 << power for power in range(most.bit_length())] if once_s else []
        return msgspec.structs.replace(
            facts,
            lanes=len(self._lanes),
            threads=settings.threads,
            max_batch=most,
            merge=self._merge,
            merge_reason=str(self.metadata.get("merge_reason", "")),
            may_inline=self._inline,
            inline=self._inline and cpu_s < INLINE_S,
            cpu_s=cpu_s if math.isfinite(cpu_s) else 0.0,
            costs=tuple(BatchCost(rows, cost.mean_s(rows), cost.high_s(rows)) for rows in sizes),
            doubling=2 * once_s / twice_s if twice_s else 0.0,
            slo_s=settings.slo_s,
        )

    @property
    def scheduler(self) -> Scheduler | None:
        """Its queue and what is known of it; None before it was opened and after it was closed."""
        return self._scheduler if self._opened else None

    def oldest_run_s(self, now: float) -> float:
        """Age of the oldest batch that runs, at a `time.monotonic()`; 0 when none does."""
        return self._scheduler.oldest_run_s(now) if self._opened else 0.0

    def submit(self, request: InferRequest) -> None:
        if self.state != "READY":
            raise self.unavailable()
        if self._cache is not None and self._cache.answer(request, self._metrics.of(self)):
            return
        now = monotonic()
        if self._timeout_s and request.deadline_s is None:
            request.deadline_s = now + self._timeout_s
        try:
            self._scheduler.submit(request, now)
        except SalverError as error:
            self._metrics.record_refused(self, error.code, error.reason or "other")
            raise
        # Not at once: whatever else arrives in this turn of the loop can share the batch.
        if self._free:
            if not self._kicked:
                self._kicked_at_s = now
                self._kick_soon()
        elif request.deadline_s is not None:
            self._wake_at(request.deadline_s, now)

    def _kick_soon(self) -> None:
        if not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._kick)

    def cancel(self, request: InferRequest) -> None:
        if self._opened:
            self._scheduler.cancel(request)
            if self.stateful:  # another request of its sequence may have its turn now
                self._kick_soon()

    def drain(self) -> None:
        if self._opened:
            self._scheduler.drain()
            if self.stateful:
                self._kick_soon()

    @property
    def idle(self) -> bool:
        return not self._opened or self._scheduler.idle

    def close(self) -> bool:
        if not self._opened:
            return True
        if self.state != "UNLOADING":
            self._enter("UNLOADING", "the server is stopping")
        self._scheduler.drain()
        self._scheduler.refuse_all(self.unavailable())
        self._answer_refused()
        if self._timer is not None:
            self._timer.cancel()
        self._opened = False
        for lane in self._lanes:
            lane.close()
        self._session.close()
        self._cache = None
        self._enter("UNAVAILABLE", "unloaded")
        # Lanes know the model: let go of them, or only a rare collection of garbage would free the two.
        self._lanes = [lane for lane in self._lanes if not lane.join(_JOIN_S)]
        return not self._lanes

    def _enter(self, state: ModelState, reason: str = "") -> None:
        self.state = state
        self.reason = reason
        self._changed()

    def _kick(self) -> None:
        """What came in this turn of the loop has been read. Where several requests have come, others are mostly on
        their way, such as those of clients that were answered together: the next turn may find them, for a small part
        of what a batch of their own would cost. So a batch that is to run on the loop, where nothing comes in
        meanwhile, begins when a turn brings no more, when it is full, or after `GATHER_S`."""
        scheduler = self._scheduler
        now = monotonic()
        if self._kicked_at_s:
            self._lag_s = now - self._kicked_at_s
            self._gather_until_s = self._kicked_at_s + GATHER_S
            self._kicked_at_s = 0.0
        rows = scheduler.queued_rows
        if (
            self._gathered_rows < rows < scheduler.full_rows
            and scheduler.queued > 1
            and now < self._gather_until_s
            and self._free
            and self._inline
            and scheduler.cost.is_short(rows, INLINE_S)
        ):
            self._gathered_rows = rows
            self._loop.call_soon(self._kick)
            return
        self._gathered_rows = 0
        self._kicked = False
        self._dispatch()

    def _dispatch(self) -> None:
        """Give every free lane what waits."""
        scheduler = self._scheduler
        now = monotonic()
        lane = self._free[-1] if self._free else 0
        found = scheduler.next_batch(lane, now)
        while type(found) is Batch:
            if self._inline and scheduler.cost.is_short(found.run_rows, INLINE_S):
                self._run_inline(found)
                if scheduler.queued or self.stateful:
                    self._kick_soon()  # let the loop read sockets between two batches
                break
            self._lanes[self._free.pop()].run(found)
            lane = self._free[-1] if self._free else lane
            found = scheduler.next_batch(lane, now)
        self._answer_refused()
        if type(found) is WaitUntil:
            self._wake_at(found.at_s, now)

    def _run_inline(self, batch: Batch) -> None:
        ran = attempt(self._execute, batch)
        self._answer(batch, ran, self._settle(batch, ran, inline=True))

    def _ran(self, batch: Batch, ran: Run) -> None:
        """On a lane's thread."""
        try:
            self._loop.call_soon_threadsafe(self._after_lane, batch, ran)
        except RuntimeError:  # the loop closed before a run ended that the drain did not wait for
            _LOG.warning("%s: a batch of %d rows ended after the server", self.name, batch.rows)

    def _after_lane(self, batch: Batch, ran: Run) -> None:
        ended_s = self._settle(batch, ran, inline=False)
        self._metrics.lanes_s += ran.cpu_s
        self._free.append(batch.lane)
        self._dispatch()  # the lane first, then the answers: encoding must not keep it idle
        self._answer(batch, ran, ended_s)

    def _settle(self, batch: Batch, ran: Run, *, inline: bool) -> float:
        """Tell the scheduler how a batch ended; returns when."""
        now = monotonic()
        if ran.error is not None:
            self._scheduler.fail(batch, ran.error)
            if len(batch.requests) > 1 and not self.stateful:
                self._metrics.record_split(self)
        else:
            self._scheduler.complete(batch, now, ran.cpu_s, ran.answers)
            started_s = batch.started_s
            waits_s = [started_s - request.arrived_s for request in batch.requests]
            self._metrics.record_batch(self, batch.rows, inline, ran.compute_s, waits_s, batch.reason)
        return now

    def _answer(self, batch: Batch, ran: Run, ended_s: float) -> None:
        started_s, compute_s, rows = batch.started_s, ran.compute_s, batch.rows
        for request, outputs in zip(batch.requests, ran.answers, strict=False):
            if request.state == DONE:
                try:
                    request.done(outputs, Timing(started_s - request.arrived_s, compute_s, rows))
                except Exception:  # noqa: BLE001  # the request boundary: one's failure must not cost others theirs
                    _LOG.exception(_UNANSWERED)
        if self._slo_s and ran.answers:
            self._scheduler.answered(batch, monotonic() - ended_s + self._lag_s)

    def _answer_refused(self) -> None:
        for request, error in self._scheduler.take_refused():
            if request.state == DONE:
                if error.reason:  # else its run failed
                    self._metrics.record_refused(self, error.code, error.reason)
                try:
                    request.done(error, None)
                except Exception:  # noqa: BLE001  # as above
                    _LOG.exception(_UNANSWERED)

    def _wake_at(self, at_s: float, now: float) -> None:
        """Ask again when the next deadline passes, even if nothing else happens."""
        if self._timer is not None:
            if self._timer_at_s <= at_s:
                return
            self._timer.cancel()
        self._timer_at_s = at_s
        self._timer = self._loop.call_later(max(at_s - now, 0.0) + _TICK_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch()


def _scheduler(
    signature: Signature,
    stateful: Stateful | None,
    settings: RunSettings,
    config: ModelConfig,
    merge: bool,
    cost: CostModel,
) -> Scheduler:
    sizes = () if stateful is not None else config.batch_sizes
    limits = Limits(
        max_batch=min(settings.max_batch, *sizes[-1:]) if sizes else settings.max_batch,
        max_queue=settings.max_queue,
        max_queue_bytes=settings.max_queue_bytes,
        lanes=settings.lanes,
        slo_s=settings.slo_s,
        batch_sizes=sizes,
    )
    batched = batchable(signature)
    merge = merge and batched
    row_bytes = _row_bytes(signature) if batched else 0
    if stateful is None or config.sequence is None:
        return Scheduler(limits, merge=merge, row_bytes=row_bytes, cost=cost)
    return SequenceScheduler(limits, config.sequence, stateful, merge=merge, row_bytes=row_bytes, cost=cost)


def _row_bytes(signature: Signature) -> int:
    """Bytes of input per row where that is the same for all requests, else 0."""
    return sum(map(_spec_row_bytes, signature.inputs)) if all(map(_spec_row_bytes, signature.inputs)) else 0


def _spec_row_bytes(spec: TensorSpec) -> int:
    size = 0 if spec.datatype == "BYTES" else spec.dtype.itemsize
    for dim in spec.shape[1:]:
        size *= dim if isinstance(dim, int) else 0
    return size
