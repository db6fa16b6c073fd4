"""The latency meter: candidate and baseline in turns, in one process, so that both see the same machine."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import numpy as np

from salver.backends import Session
from salver.core.arrays import Array
from salver.evaluation.runner import fit_run, fixed_batch
from salver.evaluation.types import Interval, Latency

_SHORT_NS: Final = 50_000  # below this the clock itself shows, so runs are timed several at a time
_MAX_INNER: Final = 200
_ENOUGH: Final = 0.03  # half-width of the interval, relative to the ratio
_MIN_BLOCKS: Final = 6  # fewer give no 95 % interval of a median
_WARM_UP_RUNS: Final = 5
_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)


def measure(
    candidate: Session,
    baseline: Session,
    inputs: Mapping[str, Array],
    *,
    threads: int,
    min_runs: int = 100,
    max_runs: int = 2000,
    budget_s: float = 5.0,
) -> Latency:
    """Time a candidate against the baseline on one batch of inputs.

    Runs go in blocks of baseline, candidate, candidate, baseline, so that a slow drift of the machine cancels in a
    block's ratio. The speed-up is the median over the blocks, with the distribution-free interval of the sign test.
    Blocks are added until the interval is within 3 % either way and ``min_runs`` are done, or ``max_runs`` are done, or
    ``budget_s`` is spent; six blocks are the least, for an interval. Runs under 50 us are timed several at a time,
    and a quantile is then one of their means. The garbage collector is off while timing.

    Args:
        inputs: one batch that both models take; one row of a model without a batch dimension.
        threads: at which both sessions were opened; recorded.
        min_runs, max_runs: timings of each model.
        budget_s: seconds for all of it.
    """
    batch = (
        candidate.signature.check(inputs) if candidate.signature.batch_dim else fixed_batch(candidate.signature) or 1
    )
    inputs = fit_run(candidate.signature, inputs)
    end_ns = time.perf_counter_ns() + int(budget_s * 1e9)
    with _collector_off():
        rough_ns = min(_warm_up(baseline, inputs), _warm_up(candidate, inputs))
        inner = max(1, min(_MAX_INNER, math.ceil(_SHORT_NS / rough_ns)))
        blocks: list[tuple[_Lap, _Lap, _Lap, _Lap]] = []
        while True:
            first, second = _time(baseline, inputs, inner), _time(candidate, inputs, inner)
            blocks.append((first, second, _time(candidate, inputs, inner), _time(baseline, inputs, inner)))
            laps, late = 2 * len(blocks), time.perf_counter_ns() >= end_ns
            settled = laps >= min_runs and len(blocks) % 10 == 0 and _is_narrow(_ratios(blocks))
            if len(blocks) >= _MIN_BLOCKS and (late or laps >= max_runs or settled):
                break
    own = np.array([lap for block in blocks for lap in block[1:3]], np.float64) / inner / 1e6
    theirs = np.array([lap for block in blocks for lap in (block[0], block[3])], np.float64) / inner / 1e6
    ratios = _ratios(blocks)
    p50, p95, p99 = np.percentile(own[:, 0], (50, 95, 99))
    return Latency(
        threads=threads,
        batch=batch,
        runs=len(own) * inner,
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        cpu_ms=float(own[:, 1].mean()),
        baseline_p50_ms=float(np.median(theirs[:, 0])),
        baseline_cpu_ms=float(theirs[:, 1].mean()),
        speedup=float(np.median(ratios)),
        speedup_ci=median_interval(ratios),
    )


def measure_throughput(
    candidate: Session, baseline: Session, inputs: Mapping[str, Array], *, threads: int, budget_s: float = 5.0
) -> Latency:
    """Time at the batch size, up to 64, at which the candidate does most rows per second.

    Args:
        inputs: real rows, any number; repeated to fill a batch.
        budget_s: seconds for all of it; half at most goes into finding the size.
    """
    end_s = time.perf_counter() + budget_s / 2
    fixed = fixed_batch(candidate.signature) or fixed_batch(baseline.signature)
    best, best_rate = fixed or 1, 0.0
    if fixed is None:
        for size in _BATCHES:
            batch = take_rows(inputs, size)
            run_ns = _quick_ns(candidate, batch)
            # The next size has to leave time for the blocks of an interval: four runs each, the original's among them.
            if size > 1 and 4 * _MIN_BLOCKS * run_ns > budget_s / 2 * 1e9:
                break
            rate = size / run_ns
            if rate > best_rate:
                best, best_rate = size, rate
            if rate < 0.8 * best_rate or time.perf_counter() > end_s:
                break
    return measure(candidate, baseline, take_rows(inputs, best), threads=threads, budget_s=budget_s / 2)


def take_rows(inputs: Mapping[str, Array], count: int) -> dict[str, Array]:
    """The first rows of a batch, from the start again when there are too few."""
    return {name: array[np.arange(count) % len(array)] for name, array in inputs.items()}


def median_interval(values: Array, level: float = 0.95) -> Interval:
    """Distribution-free interval of a median: the order statistics between which the sign test does not reject. With
    fewer than six values no such interval reaches 95 %; the range is given."""
    ordered = np.sort(values)
    n, below, rank = len(ordered), 0.0, 0
    while rank < n // 2:
        below += math.exp(math.lgamma(n + 1) - math.lgamma(rank + 1) - math.lgamma(n - rank + 1) - n * math.log(2.0))
        if below > (1.0 - level) / 2.0:
            break
        rank += 1
    rank = max(rank, 1)
    return Interval(low=float(ordered[rank - 1]), high=float(ordered[n - rank]), level=level)


_Lap = tuple[int, int]
"""Wall and CPU nanoseconds."""


def _time(session: Session, inputs: Mapping[str, Array], inner: int) -> _Lap:
    run = session.run
    cpu, wall = time.process_time_ns() + session.elsewhere_ns, time.perf_counter_ns()
    for _ in range(inner):
        run(inputs)
    return time.perf_counter_ns() - wall, time.process_time_ns() + session.elsewhere_ns - cpu


def _warm_up(session: Session, inputs: Mapping[str, Array]) -> int:
    return min(_time(session, inputs, 1)[0] for _ in range(_WARM_UP_RUNS))


def _quick_ns(session: Session, inputs: Mapping[str, Array]) -> float:
    session.run(inputs)
    laps: list[int] = []
    spent = 0
    while len(laps) < 3 or (spent < 20_000_000 and len(laps) < 50):
        laps.append(_time(session, inputs, 1)[0])
        spent += laps[-1]
    return float(np.median(laps))


def _ratios(blocks: list[tuple[_Lap, _Lap, _Lap, _Lap]]) -> Array:
    wall = np.array(blocks, np.float64)[:, :, 0]
    return np.asarray((wall[:, 0] + wall[:, 3]) / (wall[:, 1] + wall[:, 2]))


def _is_narrow(ratios: Array) -> bool:
    interval = median_interval(ratios)
    return interval.high - interval.low < 2.0 * _ENOUGH * float(np.median(ratios))


@contextmanager
def _collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
