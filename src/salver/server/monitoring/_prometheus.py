"""The metrics as Prometheus reads them; the only file that imports prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from salver.server.engine.base import ServedModel

if TYPE_CHECKING:
    from salver.server.monitoring.metrics import Histogram, Metrics, ModelRecord

_STATES = ("LOADING", "READY", "UNLOADING", "UNAVAILABLE")
_LABELS = ("model", "version")


class PrometheusExporter:
    """Renders `Metrics` in the Prometheus text format."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """All families, as text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """All families, as prometheus_client calls for them."""
        metrics = self._metrics
        # Two models of one version share a record while one replaces the other.
        records = list({(m.name, m.version): record for m, record in reversed(metrics.records.items())}.items())[::-1]
        yield from _requests(records)
        yield from _batches(records)
        yield from _states(metrics.models())
        limits = CounterMetricFamily(
            "salver_limit_hits", "Requests or connections that a limit stopped.", labels=("limit",)
        )
        for name, count in metrics.limits.items():
            limits.add_metric((name,), count)
        yield limits
        yield GaugeMetricFamily("salver_connections", "Open connections.", value=metrics.connections)
        yield GaugeMetricFamily("salver_start_time_seconds", "When the server started.", value=metrics.started_s)


_Records = Iterable[tuple[tuple[str, str], "ModelRecord"]]


def _requests(records: _Records) -> Iterator[Metric]:
    codes = CounterMetricFamily("salver_request", "Answered requests by code.", labels=(*_LABELS, "code"))
    refused = CounterMetricFamily("salver_refused", "Requests refused without a run.", labels=(*_LABELS, "code"))
    for labels, record in records:
        for code, count in record.codes.items():
            codes.add_metric((*labels, code), count)
        for code, count in record.refused.items():
            refused.add_metric((*labels, code), count)
    yield codes
    yield refused
    for field, name, text in (
        ("total", "salver_request_seconds", "Time of a request, from its last byte to its answer."),
        ("queue", "salver_queue_seconds", "Part of it spent waiting for a batch to start."),
        ("compute", "salver_compute_seconds", "Part of it in which its batch ran."),
        ("encode", "salver_encode_seconds", "Part of it spent encoding the answer."),
        ("batch_rows", "salver_batch_rows", "Rows of the batches that ran."),
    ):
        family = HistogramMetricFamily(name, text, labels=_LABELS)
        for labels, record in records:
            histogram: Histogram = getattr(record, field)
            family.add_metric(labels, _cumulative(histogram), histogram.total)
        yield family


def _batches(records: _Records) -> Iterator[Metric]:
    inline = CounterMetricFamily("salver_inline_batches", "Batches run on the event loop.", labels=_LABELS)
    split = CounterMetricFamily("salver_split_batches", "Batches that failed and were split.", labels=_LABELS)
    hits = CounterMetricFamily("salver_cache_hits", "Requests answered from the response cache.", labels=_LABELS)
    misses = CounterMetricFamily("salver_cache_misses", "Requests that the response cache had not.", labels=_LABELS)
    for labels, record in records:
        inline.add_metric(labels, record.inline_batches)
        split.add_metric(labels, record.split_batches)
        hits.add_metric(labels, record.cache_hit.count)
        misses.add_metric(labels, record.cache_miss.count)
    yield inline
    yield split
    yield hits
    yield misses


def _states(models: Iterable[ServedModel]) -> Iterator[Metric]:
    state = GaugeMetricFamily("salver_model_state", "1 for the state a model is in.", labels=(*_LABELS, "state"))
    tested = GaugeMetricFamily("salver_model_tested", "0 for a model that was never sealed.", labels=_LABELS)
    gauges = {
        "queued": GaugeMetricFamily("salver_queue_requests", "Requests that wait.", labels=_LABELS),
        "queued_rows": GaugeMetricFamily("salver_queue_rows", "Rows that wait.", labels=_LABELS),
        "running": GaugeMetricFamily("salver_running_batches", "Batches that run.", labels=_LABELS),
        "sequences": GaugeMetricFamily("salver_sequences", "Sequences that are alive.", labels=_LABELS),
        "state_bytes": GaugeMetricFamily("salver_sequence_bytes", "Memory of their states.", labels=_LABELS),
        "cache_bytes": GaugeMetricFamily("salver_cache_bytes", "Memory of the response cache.", labels=_LABELS),
    }
    for model in models:
        labels = (model.name, model.version)
        for name in _STATES:
            state.add_metric((*labels, name), model.state == name)
        tested.add_metric(labels, model.tested)
        for name, value in model.gauges().items():
            gauges[name].add_metric(labels, value)
    yield state
    yield tested
    yield from gauges.values()


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [f"{bound:g}" for bound in histogram.bounds] + ["+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))
