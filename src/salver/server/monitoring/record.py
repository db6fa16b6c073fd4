"""What is counted of one version of a model: where its numbers lie, and what they add up to."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from salver.server.monitoring.memory import Cells, Memory, Names

SECONDS: Final = (*(base * 10.0**power for power in range(-5, 1) for base in (1, 2.5, 5)), 10.0, 30.0, 60.0)
"""Bucket bounds of the time histograms: 10 µs to 60 s."""

ROWS: Final = tuple(float(1 << i) for i in range(11))
"""Bucket bounds of the batch size histogram."""

MAX_SIZES: Final = 64
"""Batch sizes of a model that are told apart; further ones are counted together by powers of two."""

# Places in the block of a model.
TOTAL: Final = 0
SUM: Final = len(SECONDS) + 1  # after the buckets of a histogram
_HISTOGRAM: Final = SUM + 1
QUEUE: Final = TOTAL + _HISTOGRAM
COMPUTE: Final = QUEUE + _HISTOGRAM
ENCODE: Final = COMPUTE + _HISTOGRAM
FAILED_S: Final = ENCODE + _HISTOGRAM
INLINE_BATCHES: Final = FAILED_S + 1
INLINE_S: Final = INLINE_BATCHES + 1
SPLIT_BATCHES: Final = INLINE_S + 1
CACHE_HIT: Final = SPLIT_BATCHES + 1  # count, then seconds
CACHE_MISS: Final = CACHE_HIT + 2
_SIZE: Final = CACHE_MISS + 2

# Kinds of blocks, and their details.
MODEL: Final = "model"
FAILED: Final = "failed"  # code
REFUSED: Final = "refused"  # code, reason
CLOSED: Final = "closed"  # reason
SIZE: Final = "size"  # rows, or "<rows" for a group: batches, seconds, rows
LAST: Final = "last"  # ms


class Histogram:
    """Counts per bucket (not cumulative; the last is over all bounds), and the sum.

    Args:
        counts: one per bound, and one.
        total: the sum of the values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...], counts: Sequence[float], total: float) -> None:
        self.bounds = bounds
        self.counts = counts
        self.total = total

    @property
    def count(self) -> int:
        """Number of values."""
        return int(sum(self.counts))

    @property
    def mean(self) -> float:
        """Of the values; 0 where there are none."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """An estimate that supposes that values lie evenly in their bucket; 0 where there are none."""
        left = share * self.count
        for place, count in enumerate(self.counts):
            if count and left <= count:
                low = self.bounds[place - 1] if place else 0.0
                high = self.bounds[min(place, len(self.bounds) - 1)]
                return low + (high - low) * max(left, 0.0) / count
            left -= count
        return 0.0


class Meter:
    """How often something was done, and how long it took."""

    __slots__ = ("_at", "_cells")

    def __init__(self, cells: Cells, at: int) -> None:
        self._cells = cells
        self._at = at

    def add(self, seconds: float) -> None:
        """Count it once."""
        self._cells[self._at] += 1.0
        self._cells[self._at + 1] += seconds

    @property
    def count(self) -> int:
        """How often."""
        return int(self._cells[self._at])

    @property
    def total(self) -> float:
        """How long, in seconds."""
        return self._cells[self._at + 1]


class Size:
    """Batches of one size, or of a group of sizes."""

    __slots__ = ("batches", "is_group", "rows", "seconds", "upto")

    def __init__(self, detail: str, cells: Cells) -> None:
        self.is_group = detail.startswith("<")
        self.upto = int(detail.removeprefix("<"))
        """The size, or the largest of the group."""
        self.batches = int(cells[0])
        self.seconds = cells[1]
        self.rows = int(cells[2]) if self.is_group else self.upto * self.batches


class ModelRecord:
    """Counts of one version of a model, written where requests are served and read wherever its memory has been
    added up.

    Args:
        memory: where the numbers lie.
        name, version: of the model.
    """

    __slots__ = ("_memory", "by_reason", "by_rows", "cache_hit", "cache_miss", "cells", "last", "owner")

    def __init__(self, memory: Memory | None = None, name: str = "", version: str = "") -> None:
        self._memory = memory = memory or Memory()
        self.owner: Names = (name, version)
        self.cells = memory.block(MODEL, self.owner, (), _SIZE)
        self.last = memory.block(LAST, self.owner)
        self.cache_hit = Meter(self.cells, CACHE_HIT)
        self.cache_miss = Meter(self.cells, CACHE_MISS)
        self.by_rows: dict[int, Cells] = {}
        self.by_reason: dict[str, Cells] = {}

    # Counting

    def count(self, kind: str, *detail: str) -> None:
        """Count one of a kind."""
        self._memory.block(kind, self.owner, detail)[0] += 1.0

    def places(self, rows: int, reason: str) -> tuple[Cells, Cells]:
        """Where a batch is counted by its size and by why it was closed; remembered in ``by_rows`` and ``by_reason``.
        The rows of a size that is counted in a group are added here."""
        closed = self.by_reason[reason] = self._memory.block(CLOSED, self.owner, (reason,))
        if rows in self.by_rows or len(self.by_rows) < MAX_SIZES:
            cells = self.by_rows[rows] = self._memory.block(SIZE, self.owner, (str(rows),), 3)
        else:
            cells = self._memory.block(SIZE, self.owner, (f"<{1 << (rows - 1).bit_length()}",), 3)
            cells[2] += rows
        return cells, closed

    # What it adds up to

    @property
    def total(self) -> Histogram:
        """Time of requests, from the last byte to the answer."""
        return self._histogram(TOTAL)

    @property
    def queue(self) -> Histogram:
        """Time that requests waited for their batch to start."""
        return self._histogram(QUEUE)

    @property
    def compute(self) -> Histogram:
        """Time of the batch, counted for each of its requests."""
        return self._histogram(COMPUTE)

    @property
    def encode(self) -> Histogram:
        """Time of encoding the answers."""
        return self._histogram(ENCODE)

    @property
    def codes(self) -> dict[str, int]:
        """Requests that ended, by code."""
        failed = {detail[0]: int(cells[0]) for detail, cells in self._memory.details(FAILED, self.owner).items()}
        ok = self.total.count - sum(failed.values())
        return {"OK": ok, **failed} if ok else failed

    @property
    def refusals(self) -> dict[tuple[str, ...], int]:
        """Requests refused without a run, by code and reason."""
        return {detail: int(cells[0]) for detail, cells in self._memory.details(REFUSED, self.owner).items()}

    @property
    def refused(self) -> dict[str, int]:
        """Requests refused without a run, by code."""
        found: dict[str, int] = {}
        for (code, _), count in self.refusals.items():
            found[code] = found.get(code, 0) + count
        return found

    @property
    def closed(self) -> dict[str, int]:
        """Batches by why they took no more requests."""
        return {detail[0]: int(cells[0]) for detail, cells in self._memory.details(CLOSED, self.owner).items()}

    @property
    def sizes(self) -> list[Size]:
        """Batches by size, the smallest first."""
        found = [Size(detail[0], cells) for detail, cells in self._memory.details(SIZE, self.owner).items()]
        return sorted(found, key=lambda size: (size.upto, size.is_group))

    @property
    def batch_rows(self) -> Histogram:
        """Rows of the batches."""
        counts = [0.0] * (len(ROWS) + 1)
        for size in self.sizes:
            counts[bisect_left(ROWS, size.upto)] += size.batches
        return Histogram(ROWS, counts, self.inferences)

    @property
    def inferences(self) -> int:
        """Rows of all batches that ran well."""
        return sum(size.rows for size in self.sizes)

    @property
    def run_s(self) -> float:
        """Time of all batches that ran well."""
        return sum(size.seconds for size in self.sizes)

    @property
    def failed_s(self) -> float:
        """Time of the requests that failed."""
        return self.cells[FAILED_S]

    @property
    def inline_batches(self) -> int:
        """Batches that ran on the event loop."""
        return int(self.cells[INLINE_BATCHES])

    @property
    def inline_s(self) -> float:
        """Time of these."""
        return self.cells[INLINE_S]

    @property
    def split_batches(self) -> int:
        """Batches that failed and ran again in halves."""
        return int(self.cells[SPLIT_BATCHES])

    @property
    def last_ms(self) -> int:
        """When the last batch ran, in milliseconds since 1970; 0 for never."""
        return int(self.last[0])

    def _histogram(self, at: int) -> Histogram:
        return Histogram(SECONDS, self.cells[at : at + SUM], self.cells[at + SUM])
