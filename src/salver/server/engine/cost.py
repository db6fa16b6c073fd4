"""What a batch costs, learned on line: per batch size, robust against a stall, following a host that slows down."""

from __future__ import annotations

import math
from bisect import bisect, insort
from typing import Final

_EXACT: Final = 64  # rows up to which every size is learned for itself; larger ones in steps of an eighth or less
_LONGEST_S: Final = 3600.0  # a run that took longer is a clock that jumped
_CLIP: Final = 4.0  # one observation counts as at most this many times what was expected, or as a part as small
_FAST: Final = 1 / 16  # weight of an observation in the factor that all sizes share
_SLOW: Final = 1 / 64  # and, in the end, in its own size
_NEW: Final = 1 / 4  # a size whose next observation weighs more is not yet known
_WINDOW: Final = 64
_BEYOND: Final = 24  # one observation in so many is allowed to lie above the high quantile
_TINY_S: Final = 1e-9

_BUCKETS: Final = 32
_MEDIAN, _P96, _P99_9 = (
    (step, 1.0 - (step - 1.0) * above / (1.0 - above)) for step, above in ((1.05, 0.5), (1.1, 0.04), (1.25, 0.001))
)
"""Factors of a quantile when an observation is above it, and when it is not."""
_HOST: Final = 2.0  # what is rarer than p96 and more than so many medians is the host's doing
_MUCH: Final = 8.0
_IN_A_ROW: Final = 3  # runs of so many times the quantile: the model is another now
_RETURN: Final = 0.9


class _Cpu:
    """CPU time of the batches of one power of two of rows: three quantiles, and whether they may run inline."""

    __slots__ = ("above", "is_short", "median_s", "p96_s", "p99_9_s")

    def __init__(self, cpu_s: float) -> None:
        self.median_s = self.p96_s = self.p99_9_s = cpu_s
        self.above = 0  # runs in a row that took much longer
        self.is_short = True

    def learn(self, cpu_s: float) -> None:
        """Note the CPU time of a run."""
        if cpu_s <= self.median_s:
            self.median_s *= _MEDIAN[1]
            self.p96_s *= _P96[1]
            self.p99_9_s *= _P99_9[1]
            self.above = 0
            return
        self.median_s *= _MEDIAN[0]
        if cpu_s > _MUCH * self.high_s:
            self.above += 1
            if self.above == _IN_A_ROW:
                self.median_s = self.p96_s = self.p99_9_s = cpu_s
                self.above = 0
                return
        else:
            self.above = 0
        self.p96_s = min(self.p96_s * _P96[0], cpu_s) if cpu_s > self.p96_s else self.p96_s * _P96[1]
        self.p99_9_s = min(self.p99_9_s * _P99_9[0], cpu_s) if cpu_s > self.p99_9_s else self.p99_9_s * _P99_9[1]

    @property
    def high_s(self) -> float:
        """The 99.9th percentile, without what the host did."""
        return max(self.median_s, self.p96_s, min(self.p99_9_s, _HOST * self.median_s))


class _Size:
    """One batch size: its time before the shared factor, and the weight of the next observation."""

    __slots__ = ("base_s", "weight")

    def __init__(self, base_s: float) -> None:
        self.base_s = base_s
        self.weight = 0.8


class CostModel:
    """Mean and high quantile of the time of a batch, and a high quantile of its CPU time, by size.

    The time of a batch is a curve over sizes times a factor that all sizes share. Runs of any size move the factor,
    within some 30 batches, so that a host that gets slower or faster is followed at all sizes together; each size moves
    its own point of the curve, slowly. Sizes that were not seen lie on straight lines between those that were: time is
    close to a + b·rows (Crankshaw et al., Clipper, NSDI 2017, section 4.3; Shen et al., Nexus, SOSP 2019, section 4.1).
    The high quantile is taken of the last 64 runs, each divided by the curve (a rolling window, as Gujarati et al.,
    Clockwork, OSDI 2020, section 5.2): about p96. An observation is clipped to four times what was expected, so one
    stall changes little; one that no clock can mean (zero, negative, hours, NaN) is ignored.

    CPU time decides what may run on the event loop, so it is p99.9. It is thread CPU time, which the threads beside it
    do not lengthen; but a hypervisor that takes the CPU away does, and caches that others use, so of what is rarer than
    one in 25 no more than two medians count. The quantiles are followed by stochastic approximation (Robbins & Monro,
    1951); three runs in a row that are eight times as long replace them.
    """

    __slots__ = ("_cpu", "_curve", "_factor", "_high", "_next", "_recent", "_sizes")

    def __init__(self) -> None:
        self._curve: dict[int, _Size] = {}
        self._sizes: list[int] = []  # those of the curve, rising
        self._factor = 1.0
        self._recent: list[float] = []  # a ring of what was observed, divided by the curve
        self._next = 0
        self._high = 0.0  # of them; 0 when it must be found anew
        self._cpu: list[_Cpu | None] = [None] * _BUCKETS  # by power of two

    def learn(self, rows: int, seconds: float, cpu_s: float) -> None:
        """Note that a batch of ``rows`` took ``seconds``, and ``cpu_s`` of CPU time on the thread that ran it."""
        if not 0.0 < seconds < _LONGEST_S:
            return
        bucket = min((rows - 1).bit_length(), _BUCKETS - 1)
        cpu = self._cpu[bucket]
        if cpu is not None:
            cpu.learn(cpu_s)
        elif cpu_s < _LONGEST_S:
            self._cpu[bucket] = _Cpu(max(cpu_s, _TINY_S))
        size = self._curve.get(rows) or self._of(rows, seconds)
        factor = self._factor
        ratio = seconds / (size.base_s * factor)
        if ratio > _CLIP:
            ratio = _CLIP
        elif ratio < 1.0 / _CLIP:
            ratio = 1.0 / _CLIP
        weight = size.weight
        size.base_s *= 1.0 + (ratio - 1.0) * weight
        if weight > _SLOW:
            size.weight = weight / (1.0 + weight)
            if weight > _NEW:
                return
        self._factor = factor + (ratio - 1.0) * factor * _FAST
        self._high = 0.0
        recent = self._recent
        if len(recent) < _WINDOW:
            recent.append(ratio * factor)
            return
        place = self._next
        recent[place] = ratio * factor
        self._next = place + 1
        if place + 1 == _WINDOW:
            self._next = 0
            self._fold()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that were learned of, rising."""
        return tuple(self._sizes)

    def mean_s(self, rows: int) -> float:
        """Expected time of a batch in seconds; 0 before anything was learned."""
        size = self._curve.get(rows)
        return (self._between(rows) if size is None else size.base_s) * self._factor

    def high_s(self, rows: int) -> float:
        """Time in seconds that about 24 batches of 25 do not exceed; 0 before anything was learned."""
        size = self._curve.get(rows)
        return (self._between(rows) if size is None else size.base_s) * (self._high or self._find_high())

    def most_rows(self, limit_s: float, most: int) -> int:
        """The largest batch, of at most ``most`` rows, whose `high_s` is within a limit; 0 when not even one row is."""
        if self.high_s(most) <= limit_s:
            return most
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            if self.high_s(middle) <= limit_s:
                low = middle
            else:
                high = middle
        return low

    def cpu_s(self, rows: int) -> float:
        """The 99.9th percentile of a batch's CPU time in seconds; infinite before anything was learned."""
        bucket = min((rows - 1).bit_length(), _BUCKETS - 1)
        cpu = self._cpu[bucket]
        return self._nearest_cpu_s(bucket) if cpu is None else cpu.high_s

    def is_short(self, rows: int, limit_s: float) -> bool:
        """Whether the CPU time of a batch stays below a limit. What did not once must get well below it."""
        cpu = self._cpu[min((rows - 1).bit_length(), _BUCKETS - 1)]
        if cpu is None:
            return self.cpu_s(rows) < limit_s
        if cpu.is_short and cpu.p99_9_s < limit_s and cpu.p96_s < limit_s:
            return True
        short = cpu.is_short = cpu.high_s < (limit_s if cpu.is_short else limit_s * _RETURN)
        return short

    def _of(self, rows: int, seconds: float) -> _Size:
        """The size that ``rows`` belong to; a new one starts where the others say."""
        rows = _coarse(rows) if rows > _EXACT else max(rows, 1)
        size = self._curve.get(rows)
        if size is None:
            size = _Size(self._between(rows) or seconds)
            self._curve[rows] = size
            insort(self._sizes, rows)
        return size

    def _fold(self) -> None:
        """Let the curve take the factor over, so that neither drifts away from the other."""
        factor, self._factor = self._factor, 1.0
        for size in self._curve.values():
            size.base_s = max(size.base_s * factor, _TINY_S)
        self._recent = [observed / factor for observed in self._recent]

    def _find_high(self) -> float:
        recent = sorted(self._recent)
        self._high = max(self._factor, recent[-1 - len(recent) // _BEYOND]) if recent else self._factor
        return self._high

    def _between(self, rows: int) -> float:
        """The curve at a size that was not seen: on the line between its neighbors; beyond them on the line through
        the smallest and the largest, which is neither falling nor steeper than proportional."""
        sizes = self._sizes
        if not sizes:
            return 0.0
        if rows > _EXACT and (size := self._curve.get(_coarse(rows))) is not None:
            return size.base_s
        at = bisect(sizes, rows)
        first, last = (0, -1) if at in (0, len(sizes)) else (at - 1, at)
        low, high = sizes[first], sizes[last]
        low_s, high_s = self._curve[low].base_s, self._curve[high].base_s
        if low == high:
            return low_s * max(1.0, rows / low)
        if at == 0:
            return min(max(low_s - (high_s - low_s) / (high - low) * (low - rows), low_s * rows / low), low_s)
        slope_s = (high_s - low_s) / (high - low)
        if at == len(sizes):
            return high_s + min(max(slope_s, 0.0), high_s / high) * (rows - high)
        return low_s + slope_s * (rows - low)

    def _nearest_cpu_s(self, bucket: int) -> float:
        """The next smaller size scaled by rows, else the next larger one as it is: never too optimistic."""
        for smaller in range(bucket - 1, -1, -1):
            if (cpu := self._cpu[smaller]) is not None:
                return cpu.high_s * float(1 << (bucket - smaller))
        for larger in range(bucket + 1, _BUCKETS):
            if (cpu := self._cpu[larger]) is not None:
                return cpu.high_s
        return math.inf


def _coarse(rows: int) -> int:
    """The next size up that has four significant bits."""
    step = 1 << (rows.bit_length() - 4)
    return -(-rows // step) * step
