"""When things will be done, by what batches cost and what waits: what admission and batch sizes are decided by."""

from __future__ import annotations

import math
from typing import Final

from salver.server.engine.base import InferRequest
from salver.server.engine.cost import CostModel
from salver.server.engine.queues import Queues

_RUN_PART: Final = 0.5  # of the objective that one run may take: who just missed a batch still fits the next
_OUTSIDE_PART: Final = 0.5  # of the objective that time outside the run counts for: refusing does not shorten it
_CROWDED_PART: Final = 0.6  # of the objective that what waits takes: more than bursts that will pass
_EFFICIENT: Final = 0.95  # of the best throughput: a batch below that is not run for the sake of the oldest request


class Forecast:
    """Expected times of one scheduler. All are 0 before any cost was learned.

    Args:
        cost: of batches.
        queues: what waits.
        max_rows: in a batch; 0 where requests are not merged.
        lanes: batches that run at the same time.
        slo_s: latency objective; 0 for none.

    Attributes:
        best_rows: rows of a batch when enough wait: as many as the objective allows; 0 where requests are not merged.
        sure_s: time in which the batch that runs and another have run, and been answered.
        overhead_s: time between arrival and answer that is no run.
    """

    __slots__ = ("_cost", "_lanes", "_max_rows", "_outside", "_queues", "_slo_s", "best_rows", "overhead_s", "sure_s")

    def __init__(self, cost: CostModel, queues: Queues, max_rows: int, lanes: int, slo_s: float) -> None:
        self._cost = cost
        self._queues = queues
        self._max_rows = max_rows
        self._lanes = lanes
        self._slo_s = slo_s
        self._outside = CostModel()  # time that is no run, by requests in a batch
        self.overhead_s = 0.0
        self.best_rows = max_rows
        self.sure_s = math.inf
        if slo_s:
            self.follow()

    def follow(self) -> None:
        """With an objective: what batches cost has changed."""
        if self._max_rows:
            self.best_rows = self._cost.most_rows(self._slo_s * _RUN_PART, self._max_rows) or 1
        self.sure_s = 2.0 * self._cost.high_s(max(self.best_rows, 1)) + self.overhead_s

    def note_outside(self, requests: int, seconds: float) -> None:
        """A batch of so many requests was answered; ``seconds`` went to what is no run."""
        self._outside.learn(requests, seconds, 0.0)
        self.overhead_s = min(self._outside.high_s(max(self.best_rows, 1)), self._slo_s * _OUTSIDE_PART)

    def batches(self, rows: int) -> tuple[int, int]:
        """How many batches are expected of so many rows, and the rows of each: keys do not mix."""
        queues = self._queues
        typical = max(self.best_rows, -(-queues.rows // max(queues.count, 1)), 1)
        batches = max(-(-rows // typical), min(len(queues.normal.turns), rows), 1)
        return batches, -(-rows // batches)

    def work_s(self, rows: int) -> float:
        """Time until so many rows that wait have been started, once a lane is free."""
        if not rows:
            return 0.0
        batches, each = self.batches(rows)
        return batches * self._cost.mean_s(each) / self._lanes

    def done_in_s(self, request: InferRequest, free_in_s: float) -> float:
        """Time until a request that comes now is answered, when a lane is free in ``free_in_s``."""
        rows, before = request.rows, self._rows_before(request)
        done_in_s = free_in_s + self.overhead_s
        if before and rows < self.best_rows:  # its own batch is the last of them
            batches, each = self.batches(before + rows)
            run_s = self._cost.mean_s(each)
            return done_in_s + (batches - 1) * run_s / self._lanes + run_s
        return done_in_s + self.work_s(before) + self._cost.mean_s(rows)

    def room_in_s(self, part: float, free_in_s: float) -> float:
        """Time until a part of what waits, from 0 to 1, has been started; at least one batch."""
        batches, each = self.batches(self._queues.rows)
        needed = max(1, min(batches, math.ceil(batches * part)))
        run_s = self._cost.mean_s(each)
        return (free_in_s or run_s) + (needed - 1) * run_s / self._lanes

    @property
    def is_crowded(self) -> bool:
        """With an objective: whether so much waits that some of it will be late if batches are small."""
        rows = self._queues.rows
        return rows > self.best_rows and self.work_s(rows) > _CROWDED_PART * self._slo_s

    def is_efficient(self, rows: int) -> bool:
        """Whether batches of so many rows have nearly the best throughput."""
        best, mean_s = self.best_rows, self._cost.mean_s
        return rows * mean_s(best) >= _EFFICIENT * best * mean_s(rows)

    def _rows_before(self, request: InferRequest) -> int:
        """Rows that are run before a request that comes now: clients take turns."""
        queues = self._queues
        if not queues.rows:
            return 0
        rows = queues.rows_before(request.priority)
        own, clients = queues.share_of(request.client)
        return min(rows, (own + request.rows) * clients - request.rows) if clients > 1 else rows
