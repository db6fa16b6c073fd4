"""Counters and histograms of the request path: plain numbers, recorded on the event loop, rendered at a scrape."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from time import time
from typing import Any, Final

from salver.core.registry import load
from salver.server.engine.base import ServedModel, Timing

SECONDS: Final = (*(base * 10.0**power for power in range(-5, 1) for base in (1, 2.5, 5)), 10.0, 30.0, 60.0)
"""Bucket bounds of the time histograms: 10 µs to 60 s."""

ROWS: Final = tuple(float(1 << i) for i in range(11))
"""Bucket bounds of the batch size histogram."""

# Loaded at the first scrape: prometheus_client costs 60 ms of cold start.
_EXPORTER: Final = "salver.server.monitoring._prometheus:PrometheusExporter"


class Histogram:
    """Counts per bucket (not cumulative; the last is over all bounds), and the sum. Not safe between threads."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)


class ModelRecord:
    """What was counted of one version of a model."""

    __slots__ = (
        "batch_rows",
        "cache_hit",
        "cache_miss",
        "codes",
        "compute",
        "encode",
        "failed_s",
        "inferences",
        "inline_batches",
        "last_ms",
        "queue",
        "refused",
        "split_batches",
        "total",
    )

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.total = Histogram(SECONDS)
        self.queue = Histogram(SECONDS)
        self.compute = Histogram(SECONDS)
        self.encode = Histogram(SECONDS)
        self.batch_rows = Histogram(ROWS)
        self.cache_hit = Histogram(SECONDS)
        self.cache_miss = Histogram(SECONDS)
        self.refused: dict[str, int] = {}
        self.failed_s = 0.0
        self.inferences = 0
        self.inline_batches = 0
        self.split_batches = 0
        self.last_ms = 0


class Metrics:
    """All metrics of a server. Everything but `render` is called on the event loop only, and costs about a microsecond.

    Args:
        models: all models there are now, asked at a scrape.
    """

    def __init__(self, models: Callable[[], Sequence[ServedModel]] = tuple) -> None:
        self.models = models
        self.records: dict[ServedModel, ModelRecord] = {}
        self.limits: dict[str, int] = {}
        self.connections = 0
        self.started_s = time()

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
        record = self.records.get(model) or self.of(model)
        record.codes[code] = record.codes.get(code, 0) + 1
        place = bisect_left(SECONDS, total_s)
        record.total.counts[place] += 1
        record.total.total += total_s
        if timing is None:  # it failed, or its answer was there already
            if code != "OK":
                record.failed_s += total_s
            return
        # Histogram.add, without the calls: this runs for every request.
        queue_s, compute_s = timing.queue_s, timing.compute_s
        histogram = record.queue
        histogram.counts[bisect_left(SECONDS, queue_s)] += 1
        histogram.total += queue_s
        histogram = record.compute
        histogram.counts[bisect_left(SECONDS, compute_s)] += 1
        histogram.total += compute_s
        histogram = record.encode
        histogram.counts[bisect_left(SECONDS, encode_s)] += 1
        histogram.total += encode_s

    def record_batch(self, model: ServedModel, rows: int, inline: bool) -> None:
        """Count a batch that ran well."""
        record = self.records.get(model) or self.of(model)
        record.batch_rows.add(rows)
        record.inferences += rows
        record.inline_batches += inline
        record.last_ms = int(time() * 1000)

    def record_split(self, model: ServedModel) -> None:
        """Count a batch that failed and is run again in halves."""
        self.of(model).split_batches += 1

    def record_refused(self, model: ServedModel, code: str) -> None:
        """Count a request that was refused without a run: queue full, deadline passed, draining."""
        refused = self.of(model).refused
        refused[code] = refused.get(code, 0) + 1

    def limit_hit(self, name: str) -> None:
        """Count something that a limit stopped (``max_connections``, ``max_body_bytes``, ...)."""
        self.limits[name] = self.limits.get(name, 0) + 1

    def of(self, model: ServedModel) -> ModelRecord:
        """What was counted of a model; made on first use."""
        record = self.records.get(model)
        if record is None:
            record = self.records[model] = ModelRecord()
        return record

    def succeed(self, old: ServedModel, new: ServedModel) -> None:
        """Count on where another took the place of a model: same name, same version."""
        self.records[new] = self.of(old)

    def forget(self, model: ServedModel) -> None:
        """Drop what was counted of a model that is gone."""
        self.records.pop(model, None)

    def render(self) -> bytes:
        """Everything, in the Prometheus text format 0.0.4."""
        text: bytes = load(_EXPORTER)(self).render()
        return text

    def statistics(self, model: ServedModel) -> dict[str, Any]:
        """One entry of ``model_stats``, as Triton's statistics extension names things (times in nanoseconds)."""
        record = self.of(model)
        ok = record.codes.get("OK", 0)
        ran = record.queue.count
        total_ns, failed_ns = _ns(record.total.total - record.failed_s), _ns(record.failed_s)
        nothing = {"count": 0, "ns": 0}
        return {
            "name": model.name,
            "version": model.version,
            "last_inference": record.last_ms,
            "inference_count": record.inferences,
            "execution_count": record.batch_rows.count,
            "inference_stats": {
                "success": {"count": ok, "ns": total_ns},
                "fail": {"count": sum(record.codes.values()) - ok, "ns": failed_ns},
                "queue": {"count": ran, "ns": _ns(record.queue.total)},
                "compute_input": nothing,
                "compute_infer": {"count": ran, "ns": _ns(record.compute.total)},
                "compute_output": {"count": ran, "ns": _ns(record.encode.total)},
                "cache_hit": {"count": record.cache_hit.count, "ns": _ns(record.cache_hit.total)},
                "cache_miss": {"count": record.cache_miss.count, "ns": _ns(record.cache_miss.total)},
            },
            "batch_stats": [],
            "memory_usage": [],
        }


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
