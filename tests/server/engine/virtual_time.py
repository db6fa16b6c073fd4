"""A server in virtual time: Poisson arrivals, noisy service times, and the scheduler that is used in real time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from salver.core.errors import SalverError
from salver.server.engine.base import InferRequest
from salver.server.engine.scheduler import DONE, Batch, Limits, Scheduler, WaitUntil

_X = {"x": np.zeros((1, 4), np.float32)}


class Model(msgspec.Struct, frozen=True):
    """A batch of n rows takes a + b·n, times noise: log-normal, and one run in 300 takes twice as long.

    Args:
        fixed_s, row_s: a and b.
        noise: standard deviation of the logarithm.
        overhead_s: of an answer, outside the run.
    """

    fixed_s: float
    row_s: float
    noise: float = 0.03
    overhead_s: float = 0.0

    def run_s(self, rows: int) -> float:
        return self.fixed_s + self.row_s * rows

    @property
    def slo_s(self) -> float:
        """Eight times the latency of a single request."""
        return 8 * (self.run_s(1) + self.overhead_s)

    @property
    def capacity(self) -> float:
        """Requests a second with batches whose run takes half of the objective."""
        rows = max(n for n in range(1, 257) if n == 1 or self.run_s(n) <= self.slo_s / 2)
        return rows / self.run_s(rows)


class Outcome(msgspec.Struct):
    """What became of the requests that came after the first tenth of the time.

    Args:
        asked: of them.
        good: answered within the objective.
        late: answered after it.
        refused: by reason.
        rate: good ones a second.
        rows_rate: their rows a second.
        goods: when good ones were answered.
        of: the same of each client, where requests have one.
    """

    asked: int = 0
    good: int = 0
    late: int = 0
    refused: dict[str, int] = {}
    rate: float = 0.0
    rows_rate: float = 0.0
    goods: list[float] = []
    of: dict[Any, Outcome] = {}

    @property
    def share(self) -> float:
        """Of all that was asked, answered within the objective."""
        return self.good / self.asked


def _ignore(_result: Any, _timing: Any) -> None:
    """Schedulers never call `done`."""


def serve(
    model: Model,
    load: float,
    *,
    seed: int = 1,
    count: int = 20_000,
    slo: bool = True,
    slowdown: Callable[[float], float] = lambda _now: 1.0,
    jump: Callable[[float], float] = lambda now: now,
    request: Callable[[random.Random], dict[str, Any]] = lambda _pick: {},
    **limits: Any,
) -> Outcome:
    """Serve a model at a load, as a share of its capacity.

    Args:
        slo: whether the scheduler knows the objective.
        slowdown: factor of all run times at a time.
        jump: what the server's clock shows at a time.
        request: further arguments of each request.
    """
    pick = random.Random(seed)
    told = Limits(**{"max_batch": 64, "slo_s": model.slo_s if slo else 0.0} | limits)
    scheduler = Scheduler(told, merge=True, row_bytes=16)
    for rows in (1, told.max_batch):  # as at load
        for _ in range(5):
            scheduler.cost.learn(rows, model.run_s(rows) * pick.lognormvariate(0, model.noise), 1.0)
    rate = load * model.capacity
    out = Outcome()
    arrived: dict[InferRequest, float] = {}
    events: list[tuple[float, int, Batch | None]] = [(0.0, 0, None)]
    now, number, from_s = 0.0, 0, 0.1 * count / rate
    running: dict[int, Batch] = {}

    def count_in(asked: InferRequest) -> Iterator[Outcome]:
        yield out
        if asked.client is not None:
            yield out.of.setdefault(asked.client, Outcome())

    def refuse(asked: InferRequest, error: SalverError) -> None:
        if arrived.pop(asked) < from_s:
            return
        for counts in count_in(asked):
            counts.refused[error.reason] = counts.refused.get(error.reason, 0) + 1

    def answer(asked: InferRequest) -> None:
        came_s, answered_s = arrived.pop(asked), now + model.overhead_s
        if came_s < from_s:
            return
        for counts in count_in(asked):
            if answered_s <= came_s + model.slo_s:
                counts.good += 1
                counts.rows_rate += asked.rows
                counts.goods.append(answered_s)
            else:
                counts.late += 1

    while events:
        now, _, batch = heapq.heappop(events)
        clock = jump(now)
        if batch is None and number < count:
            number += 1
            asked = InferRequest(_X, **{"rows": 1, "done": _ignore} | request(pick))
            arrived[asked] = now
            for counts in count_in(asked):
                counts.asked += now >= from_s
            try:
                scheduler.submit(asked, clock)
            except SalverError as error:
                refuse(asked, error)
            heapq.heappush(events, (now + pick.expovariate(rate), number, None))
        elif batch is not None:
            del running[batch.lane]
            scheduler.complete(batch, clock, 1.0)
            if model.overhead_s:
                scheduler.answered(batch, model.overhead_s)
            for asked in batch.requests:
                assert asked.state == DONE
                answer(asked)
        for lane in range(told.lanes):
            found = None if lane in running else scheduler.next_batch(lane, clock)
            if isinstance(found, Batch):
                for asked in found.requests:
                    assert asked.deadline_s is None or clock <= asked.deadline_s
                running[lane] = found
                noise = pick.lognormvariate(0, model.noise) * (2 if pick.random() < 1 / 300 else 1)
                ends_s = now + model.run_s(found.run_rows) * noise * slowdown(now)
                heapq.heappush(events, (ends_s, -found.lane - 1, found))
            elif isinstance(found, WaitUntil):
                break
        for asked, error in scheduler.take_refused():
            refuse(asked, error)
    assert not arrived
    assert scheduler.idle
    out.rate, out.rows_rate = out.good / (now - from_s), out.rows_rate / (now - from_s)
    return out
