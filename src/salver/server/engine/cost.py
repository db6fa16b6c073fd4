"""What a batch costs, learned on line: per batch size, robust against a stall of the machine."""

from __future__ import annotations

import math
from typing import Final

_BUCKETS: Final = 32
_WEIGHT: Final = 1 / 16  # of a new observation; about the last 30 count
_CLIP: Final = 4.0  # one observation counts as at most this many times the mean
_STEP: Final = 1.05
_TINY_S: Final = 1e-9


class CostModel:
    """Mean time and median CPU time of a batch, by size.

    Sizes share a bucket between powers of two. The mean is exponentially weighted and clipped; the median is followed
    by stochastic approximation (Robbins & Monro, 1951) in steps of 5 %. Both change little under one stall, and follow
    a lasting change within some tens of batches. The median and not a higher quantile, because on a shared machine
    those measure the neighbors and not the model.
    """

    __slots__ = ("_cpu", "_mean")

    def __init__(self) -> None:
        self._mean = [0.0] * _BUCKETS
        self._cpu = [0.0] * _BUCKETS

    def learn(self, rows: int, seconds: float, cpu_s: float) -> None:
        """Note that a batch of ``rows`` took ``seconds``, and ``cpu_s`` of CPU time on the thread that ran it."""
        bucket = _bucket(rows)
        mean = self._mean[bucket]
        if mean == 0.0:
            self._mean[bucket] = max(seconds, _TINY_S)
            self._cpu[bucket] = max(cpu_s, _TINY_S)
            return
        self._mean[bucket] = mean + (min(seconds, _CLIP * mean) - mean) * _WEIGHT
        if cpu_s > self._cpu[bucket]:
            self._cpu[bucket] *= _STEP
        else:
            self._cpu[bucket] /= _STEP

    def mean_s(self, rows: int) -> float:
        """Expected time of a batch in seconds; 0 before anything was learned."""
        bucket = _bucket(rows)
        return self._mean[bucket] or _nearest(self._mean, bucket, 0.0)

    def cpu_s(self, rows: int) -> float:
        """Median CPU time of a batch in seconds; infinite before anything was learned."""
        bucket = _bucket(rows)
        return self._cpu[bucket] or _nearest(self._cpu, bucket, math.inf)


def _bucket(rows: int) -> int:
    return min((rows - 1).bit_length(), _BUCKETS - 1)


def _nearest(known: list[float], bucket: int, unknown: float) -> float:
    """The next smaller size scaled by rows, else the next larger one as it is: never too optimistic."""
    for smaller in range(bucket - 1, -1, -1):
        if known[smaller]:
            return known[smaller] * float(1 << (bucket - smaller))
    for larger in range(bucket + 1, _BUCKETS):
        if known[larger]:
            return known[larger]
    return unknown
