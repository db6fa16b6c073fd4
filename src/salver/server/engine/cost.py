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
_OVER: Final = 1 / 2  # of the last runs may take longer than the limit without leaving the event loop
_FAR: Final = 3.0
_FAR_OVER: Final = 1 / 16  # and so many longer than so many times the limit
_RETURN: Final = 1 / 2  # of these when it comes back
_IN_A_ROW: Final = 3  # runs that are far over the limit: the model is another now


class _Cpu:
    """CPU time of the last batches of one power of two of rows, and whether they may run inline."""

    __slots__ = ("far", "in_a_row", "is_short", "limit_s", "over", "place", "recent")

    def __init__(self) -> None:
        self.recent: list[float] = []
        self.place = 0
        self.limit_s = math.inf
        self.over = 0  # of them, longer than the limit
        self.far = 0  # and far longer
        self.in_a_row = 0
        self.is_short = True

    def learn(self, cpu_s: float) -> None:
        """Note the CPU time of a run."""
        recent, limit_s = self.recent, self.limit_s
        if len(recent) < _WINDOW:
            recent.append(cpu_s)
        else:
            place = self.place
            if (old_s := recent[place]) > limit_s:
                self.over -= 1
                self.far -= old_s > _FAR * limit_s
            recent[place] = cpu_s
            self.place = (place + 1) % _WINDOW
        self.in_a_row = self.in_a_row + 1 if cpu_s > _FAR * limit_s else 0
        if cpu_s > limit_s:
            self.over += 1
            self.far += self.in_a_row > 0

    def may_run_inline(self, limit_s: float) -> bool:
        """Whether runs stay below a limit, but for what the host does."""
        if limit_s != self.limit_s:
            self.limit_s = limit_s
            self.over = sum(seconds > limit_s for seconds in self.recent)
            self.far = sum(seconds > _FAR * limit_s for seconds in self.recent)
        if self.over or not self.is_short:
            part = len(self.recent) * (1.0 if self.is_short else _RETURN)
            few = self.over <= part * _OVER and self.far <= max(part * _FAR_OVER, 1.0)
            self.is_short = few and self.in_a_row < _IN_A_ROW
        return self.is_short

    @property
    def median_s(self) -> float:
        """Of the last runs."""
        return sorted(self.recent)[len(self.recent) // 2]


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

    CPU time decides what may run on the event loop. It is thread CPU time, which the threads beside it do not lengthen;
    but a hypervisor that takes the CPU away does, and caches that others use. So the median of the last 64
    runs counts; one in 16 that takes three times the limit, or three of those in a row, are the model's own.
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
        if 0.0 < cpu_s < _LONGEST_S:
            cpu = self._cpu[bucket]
            if cpu is None:
                cpu = self._cpu[bucket] = _Cpu()
            cpu.learn(cpu_s)
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
        """Median CPU time of a batch in seconds; infinite before anything was learned."""
        bucket = min((rows - 1).bit_length(), _BUCKETS - 1)
        cpu = self._cpu[bucket]
        return self._nearest_cpu_s(bucket) if cpu is None else cpu.median_s

    def is_short(self, rows: int, limit_s: float) -> bool:
        """Whether the CPU time of a batch stays below a limit. What did not once must get well below it."""
        cpu = self._cpu[min((rows - 1).bit_length(), _BUCKETS - 1)]
        return self.cpu_s(rows) < limit_s if cpu is None else cpu.may_run_inline(limit_s)

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
                return cpu.median_s * float(1 << (bucket - smaller))
        for larger in range(bucket + 1, _BUCKETS):
            if (cpu := self._cpu[larger]) is not None:
                return cpu.median_s
        return math.inf


def _coarse(rows: int) -> int:
    """The next size up that has four significant bits."""
    step = 1 << (rows.bit_length() - 4)
    return -(-rows // step) * step
