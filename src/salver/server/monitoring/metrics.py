"""Counters and histograms of the request path: numbers in memory, added to on the event loop, shown at a scrape."""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from time import time
from typing import Any, Final

from salver.core.errors import SalverError
from salver.server.engine.base import ServedModel, Timing
from salver.server.monitoring.history import INTERVAL_S, History
from salver.server.monitoring.memory import KEPT, Cells, Memory, Names
from salver.server.monitoring.observed import Observed, ProcessView
from salver.server.monitoring.record import (
    COMPUTE,
    ENCODE,
    FAILED,
    FAILED_S,
    INLINE_BATCHES,
    INLINE_S,
    QUEUE,
    REFUSED,
    SECONDS,
    SPLIT_BATCHES,
    SUM,
    ModelRecord,
)

_SHORTEST_S: Final = SECONDS[0]
_ENCODE_SUM: Final = ENCODE + SUM

LIMIT: Final = "limit"
"""Kind of block: hits of a limit, by its name."""

Shown = Callable[["Observed | SalverError"], None]
"""Called once on the event loop: the server as it is, or why that cannot be told."""


class Metrics:
    """All metrics of a process. Everything but `render` and `statistics` is called on the event loop only, and costs
    less than a microsecond.

    Args:
        models: all models there are now, asked at a scrape.
        memory: where numbers are kept; None for memory of this process alone.
    """

    def __init__(self, models: Callable[[], Sequence[ServedModel]] = tuple, memory: Memory | None = None) -> None:
        self.models = models
        self.memory = memory or Memory()
        self.connections = 0
        self.lanes_s = 0.0
        """CPU time of the lanes' threads in batches, in this process."""
        self.started_s = time()
        self.collect: Callable[[Shown], None] = self._collect_own
        """Gives the whole server's numbers, not this process's alone; another one where it is one of several."""
        self.records: dict[ServedModel, ModelRecord] = {}
        """Of models that were asked and are not gone."""
        self._gone: dict[Names, None] = {}
        self._cells: dict[ServedModel, Cells] = {}
        self._history = History(self.started_s)
        self._mark_at_ms = (self.started_s + INTERVAL_S) * 1000.0

    def record(
        self, model: ServedModel, code: str, timing: Timing | None, total_s: float, encode_s: float = 0.0
    ) -> None:
        """Count one answered request.

        Args:
            code: ``OK``, or the error's canonical code.
            timing: from `InferRequest.done`; None where no batch ran.
            total_s: from the last byte of the request to the answer written.
            encode_s: the part of that spent encoding the answer.
        """
        try:
            cells = self._cells[model]
        except KeyError:
            cells = self.of(model).cells
        # `OK` is what is left of the total when failures are taken off: one store less in every request.
        cells[bisect_left(SECONDS, total_s)] += 1.0
        cells[SUM] += total_s
        if code != "OK":
            self.of(model).count(FAILED, code)
            cells[FAILED_S] += total_s
        if timing is not None:
            # Nearly all are encoded within the first bound, which is sooner seen than looked up.
            cells[ENCODE if encode_s <= _SHORTEST_S else ENCODE + bisect_left(SECONDS, encode_s)] += 1.0
            cells[_ENCODE_SUM] += encode_s

    def record_batch(
        self, model: ServedModel, rows: int, inline: bool, run_s: float, waits_s: Sequence[float], reason: str
    ) -> None:
        """Count a batch that ran well.

        Args:
            inline: whether it ran on the event loop.
            run_s: how long.
            waits_s: how long each of its requests had waited.
            reason: why it took no more of them.
        """
        try:
            record = self.records[model]
            size, closed = record.by_rows[rows], record.by_reason[reason]
        except KeyError:
            record = self.of(model)
            size, closed = record.places(rows, reason)
        cells = record.cells
        # Requests that come together fall into few buckets: these are cut out of what is sorted, mostly, already.
        ordered = sorted(waits_s)
        start, count = 0, len(ordered)
        while start < count:
            place = bisect_left(SECONDS, ordered[start])
            stop = bisect_right(ordered, SECONDS[place], start) if place < len(SECONDS) else count
            cells[QUEUE + place] += stop - start
            start = stop
        cells[QUEUE + SUM] += sum(ordered)
        cells[COMPUTE + bisect_left(SECONDS, run_s)] += count
        cells[COMPUTE + SUM] += run_s * count
        size[0] += 1.0
        size[1] += run_s
        closed[0] += 1.0
        if inline:
            cells[INLINE_BATCHES] += 1.0
            cells[INLINE_S] += run_s
        record.last[0] = now_ms = time() * 1000.0
        if now_ms >= self._mark_at_ms:
            self._mark(now_ms / 1000.0)

    def record_split(self, model: ServedModel) -> None:
        """Count a batch that failed and is run again in halves."""
        self.of(model).cells[SPLIT_BATCHES] += 1.0

    def record_refused(self, model: ServedModel, code: str, reason: str) -> None:
        """Count a request that was refused without a run, and why: queue full, deadline passed, draining."""
        self.of(model).count(REFUSED, code, reason)

    def limit_hit(self, name: str) -> None:
        """Count something that a limit stopped (``max_connections``, ``max_body_bytes``, ...)."""
        self.memory.block(LIMIT, (), (name,))[0] += 1.0

    @property
    def limits(self) -> dict[str, int]:
        """What limits stopped, by their names."""
        return {detail[0]: int(cells[0]) for detail, cells in self.memory.details(LIMIT).items()}

    def of(self, model: ServedModel) -> ModelRecord:
        """What was counted of a model. One that takes the place of another, under its name and version, counts on."""
        record = self.records.get(model)
        if record is None:
            record = self.records[model] = ModelRecord(self.memory, model.name, model.version)
            self._cells[model] = record.cells
            self._gone.pop(record.owner, None)
        return record

    def forget(self, model: ServedModel) -> None:
        """A model is gone. What was counted of its version is shown again when that is served again, if it was one of
        the last to go."""
        record = self.records.pop(model, None)
        self._cells.pop(model, None)
        if record is None or any(other.owner == record.owner for other in self.records.values()):
            return
        self._gone.pop(record.owner, None)
        self._gone[record.owner] = None
        if len(self._gone) > KEPT:
            owner = next(iter(self._gone))
            del self._gone[owner]
            self.memory.drop(owner)

    def view(self) -> ProcessView:
        """How this process does now."""
        return ProcessView.of(self.connections, self.models())

    def observe(self) -> Observed:
        """This process, whether or not it is one of several."""
        now_s = time()
        self._mark(now_s)
        recent, recent_s = self._history.recent(self.memory, now_s)
        return Observed(self.memory, recent, recent_s, [self.view()], self.started_s, [os.getpid()])

    def follow(self, collect: Callable[[Shown], None]) -> None:
        """This process is one of several from now on, and somebody else keeps their history."""
        self.collect = collect
        self._mark_at_ms = math.inf

    def render(self) -> bytes:
        """This process in the Prometheus text format."""
        return self.observe().render()

    def statistics(self, model: ServedModel) -> dict[str, Any]:
        """As `Observed.statistics`, of this process."""
        return self.observe().statistics(model)

    def _collect_own(self, shown: Shown) -> None:
        shown(self.observe())

    def _mark(self, now_s: float) -> None:
        self._history.mark(self.memory, now_s)
        self._mark_at_ms = (now_s + INTERVAL_S) * 1000.0
