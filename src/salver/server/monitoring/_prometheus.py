"""The metrics as Prometheus reads them; the only file that imports prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from salver.server.monitoring.memory import Memory, Names
from salver.server.monitoring.observed import Observed, ProcessView, records
from salver.server.monitoring.record import Histogram, ModelRecord

_STATES: Final = ("LOADING", "READY", "UNLOADING", "UNAVAILABLE")
_LABELS: Final = ("model", "version")
_TIMES: Final = (
    ("total", "salver_request_seconds", "Time of a request, from its last byte to its answer."),
    ("queue", "salver_queue_seconds", "Part of it spent waiting for a batch to start."),
    ("compute", "salver_compute_seconds", "Part of it in which its batch ran."),
    ("encode", "salver_encode_seconds", "Part of it spent encoding the answer."),
    ("batch_rows", "salver_batch_rows", "Rows of the batches that ran."),
)
_COUNTS: Final = (
    ("run_s", "salver_batch_seconds", "Time of the batches that ran."),
    ("inline_batches", "salver_inline_batches", "Batches run on the event loop."),
    ("split_batches", "salver_split_batches", "Batches that failed and were split."),
)
_GAUGES: Final = (
    ("queued", "salver_queue_requests", "Requests that wait."),
    ("queued_rows", "salver_queue_rows", "Rows that wait."),
    ("running", "salver_running_batches", "Batches that run."),
    ("sequences", "salver_sequences", "Sequences that are alive."),
    ("state_bytes", "salver_sequence_bytes", "Memory of their states."),
    ("cache_bytes", "salver_cache_bytes", "Memory of the response cache."),
    ("memory_bytes", "salver_model_memory_bytes", "Part of the memory budget that a model takes; 0 on disk."),
)
_SERVER: Final = (
    ("limit", "salver_limit_hits", "Requests or connections that a limit stopped.", ("limit",)),
    ("load", "salver_model_loads", "Loads of models that take part in the memory budget.", _LABELS),
    ("eviction", "salver_model_evictions", "Times that a model made room for another.", _LABELS),
    ("worker", "salver_workers_started", "Worker processes that were started.", ()),
    ("shift", "salver_connection_shifts", "Times that clients of a busy worker were asked to connect again.", ()),
    ("replaced", "salver_workers_replaced", "Worker processes that ended or had to be replaced.", ("reason",)),
)


def render(observed: Observed) -> bytes:
    """All families, as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(observed))
    return generate_latest(registry)


class _Families:
    """All families, as prometheus_client calls for them."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed

    def collect(self) -> Iterator[Metric]:
        observed = self._observed
        found = records(observed)
        yield from _requests(found)
        yield from _batches(found)
        yield from _models(observed.processes)
        yield from _server(observed.totals)
        connections = sum(view.connections for view in observed.processes)
        yield GaugeMetricFamily("salver_connections", "Open connections.", value=connections)
        yield GaugeMetricFamily("salver_start_time_seconds", "When the server started.", value=observed.started_s)
        yield from _processes(observed)


def _requests(found: Sequence[ModelRecord]) -> Iterator[Metric]:
    codes = CounterMetricFamily("salver_request", "Answered requests by code.", labels=(*_LABELS, "code"))
    refused = CounterMetricFamily(
        "salver_refused", "Requests refused without a run.", labels=(*_LABELS, "code", "reason")
    )
    for record in found:
        for code, count in record.codes.items():
            codes.add_metric((*record.owner, code), count)
        for detail, count in record.refusals.items():
            refused.add_metric((*record.owner, *detail), count)
    yield codes
    yield refused
    for field, name, text in _TIMES:
        family = HistogramMetricFamily(name, text, labels=_LABELS)
        for record in found:
            histogram: Histogram = getattr(record, field)
            family.add_metric(record.owner, _cumulative(histogram), histogram.total)
        yield family


def _batches(found: Sequence[ModelRecord]) -> Iterator[Metric]:
    closed = CounterMetricFamily(
        "salver_closed_batches", "Batches by why they took no more requests.", labels=(*_LABELS, "reason")
    )
    hits = CounterMetricFamily("salver_cache_hits", "Requests answered from the response cache.", labels=_LABELS)
    misses = CounterMetricFamily("salver_cache_misses", "Requests that the response cache had not.", labels=_LABELS)
    for record in found:
        for reason, count in record.closed.items():
            closed.add_metric((*record.owner, reason), count)
        hits.add_metric(record.owner, record.cache_hit.count)
        misses.add_metric(record.owner, record.cache_miss.count)
    yield closed
    yield hits
    yield misses
    for field, name, text in _COUNTS:
        family = CounterMetricFamily(name, text, labels=_LABELS)
        for record in found:
            family.add_metric(record.owner, getattr(record, field))
        yield family


def _models(processes: Sequence[ProcessView]) -> Iterator[Metric]:
    states: dict[Names, int] = {}
    tested: dict[Names, int] = {}
    values: dict[str, dict[Names, int]] = {field: {} for field, _, _ in _GAUGES}
    for model in (model for view in processes for model in view.models):
        owner: Names = (model.name, model.version)
        tested[owner] = min(tested.get(owner, 1), model.tested)
        for state in _STATES:
            states[*owner, state] = states.get((*owner, state), 0) + (model.state == state)
        for field, value in model.gauges.items():
            values[field][owner] = values[field].get(owner, 0) + value
    yield _gauge("salver_model_state", "Processes in which a model is in a state.", (*_LABELS, "state"), states)
    yield _gauge("salver_model_tested", "0 for a model that was never sealed.", _LABELS, tested)
    for field, name, text in _GAUGES:
        yield _gauge(name, text, _LABELS, values[field])


def _gauge(name: str, text: str, labels: Sequence[str], values: Mapping[Names, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for at, value in values.items():
        family.add_metric(at, value)
    return family


def _server(totals: Memory) -> Iterator[Metric]:
    for kind, name, text, labels in _SERVER:
        family = CounterMetricFamily(name, text, labels=labels)
        for detail, cells in totals.details(kind).items():
            family.add_metric(detail, cells[0])
        yield family


def _processes(observed: Observed) -> Iterator[Metric]:
    """prometheus_client's ``process_*``, of all processes together; start and limit of files are those of one."""
    totals: dict[str, Metric] = {}
    values: dict[str, float] = {"process_cpu_seconds": observed.gone_cpu_s}
    for metric in (metric for pid in observed.pids for metric in _process(pid)):
        totals.setdefault(metric.name, metric)
        values[metric.name] = values.get(metric.name, 0.0) + metric.samples[0].value
    values["process_start_time_seconds"] = observed.started_s
    if "process_max_fds" in totals:
        values["process_max_fds"] = totals["process_max_fds"].samples[0].value
    for name, metric in totals.items():
        kind = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
        yield kind(name, metric.documentation, value=values[name])


def _process(pid: int) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: pid, registry=None).collect()


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [f"{bound:g}" for bound in histogram.bounds] + ["+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))
