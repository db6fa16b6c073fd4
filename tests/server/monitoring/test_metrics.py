"""What is counted is what is shown."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from salver.server.engine.base import Timing
from salver.server.engine.served import LoadedModel
from salver.server.monitoring.logs import LineFormatter
from salver.server.monitoring.memory import KEPT
from salver.server.monitoring.metrics import Metrics
from salver.server.monitoring.record import SECONDS


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


@pytest.fixture
def counted() -> tuple[Metrics, LoadedModel]:
    metrics = Metrics()
    model = LoadedModel("digits", "2", metrics)
    metrics.models = lambda: [model]
    metrics.record(model, "OK", Timing(queue_s=0.001, compute_s=0.002, batch_rows=4), 0.004, 0.0005)
    metrics.record(model, "OK", Timing(queue_s=0.003, compute_s=0.002, batch_rows=4), 0.006, 0.0005)
    metrics.record(model, "RESOURCE_EXHAUSTED", None, 0.0001)
    metrics.record_batch(model, 4, inline=True, run_s=0.002, waits_s=(0.001, 0.003), reason="full")
    metrics.record_split(model)
    metrics.record_refused(model, "RESOURCE_EXHAUSTED", "queue_full")
    metrics.limit_hit("max_body_bytes")
    metrics.connections = 3
    return metrics, model


def test_prometheus_text(counted: tuple[Metrics, LoadedModel]) -> None:
    found = samples(counted[0])
    at = (("model", "digits"), ("version", "2"))
    assert found["salver_request_total", (("code", "OK"), *at)] == 2
    assert found["salver_request_total", (("code", "RESOURCE_EXHAUSTED"), *at)] == 1
    assert found["salver_refused_total", (("code", "RESOURCE_EXHAUSTED"), at[0], ("reason", "queue_full"), at[1])] == 1
    assert found["salver_request_seconds_count", at] == 3
    assert found["salver_queue_seconds_sum", at] == pytest.approx(0.004)
    assert found["salver_compute_seconds_count", at] == 2
    assert found["salver_encode_seconds_sum", at] == pytest.approx(0.001)
    assert found["salver_compute_seconds_bucket", (("le", "0.001"), *at)] == 0
    assert found["salver_compute_seconds_bucket", (("le", "0.0025"), *at)] == 2
    assert found["salver_batch_rows_bucket", (("le", "4"), *at)] == 1
    assert found["salver_batch_rows_sum", at] == 4
    assert found["salver_batch_seconds_total", at] == pytest.approx(0.002)
    assert found["salver_closed_batches_total", (at[0], ("reason", "full"), at[1])] == 1
    assert found["salver_inline_batches_total", at] == 1
    assert found["salver_split_batches_total", at] == 1
    assert found["salver_model_state", (at[0], ("state", "LOADING"), at[1])] == 1
    assert found["salver_model_state", (at[0], ("state", "READY"), at[1])] == 0
    assert found["salver_model_tested", at] == 0
    assert found["salver_limit_hits_total", (("limit", "max_body_bytes"),)] == 1
    assert found["salver_connections", ()] == 3
    assert found["process_resident_memory_bytes", ()] > 1e6


def test_statistics_are_triton_s(counted: tuple[Metrics, LoadedModel]) -> None:
    metrics, model = counted
    stats: dict[str, Any] = metrics.statistics(model)
    assert (stats["name"], stats["version"], stats["inference_count"], stats["execution_count"]) == (
        "digits",
        "2",
        4,
        1,
    )
    assert stats["last_inference"] > 1_700_000_000_000
    assert stats["batch_stats"] == [
        {
            "batch_size": 4,
            "compute_input": {"count": 0, "ns": 0},
            "compute_infer": {"count": 1, "ns": 2_000_000},
            "compute_output": {"count": 0, "ns": 0},
        }
    ]
    inference = stats["inference_stats"]
    assert inference["success"]["count"] == 2
    assert inference["success"]["ns"] == pytest.approx(10_000_000, abs=2)
    assert inference["fail"] == {"count": 1, "ns": 100_000}
    assert inference["queue"]["ns"] == pytest.approx(4_000_000, abs=2)
    assert inference["compute_infer"]["count"] == 2


def test_a_model_that_was_never_asked_has_statistics() -> None:
    metrics = Metrics()
    assert metrics.statistics(LoadedModel("m", "1", metrics))["inference_stats"]["success"] == {"count": 0, "ns": 0}


def test_a_version_that_comes_back_counts_on_unless_many_went_after_it() -> None:
    metrics = Metrics()

    def serve(version: int) -> int:
        model = LoadedModel("m", str(version), metrics)
        metrics.record(model, "OK", None, 0.001)
        count = metrics.of(model).total.count
        metrics.forget(model)
        return count

    assert [serve(1), serve(1), serve(2), serve(1)] == [1, 2, 1, 3]
    for version in range(3, 3 + KEPT):
        assert serve(version) == 1
    assert serve(1) == 1
    assert len(list(metrics.memory.owners())) == KEPT
    assert metrics.records == {}


def test_a_successor_counts_on_while_its_predecessor_drains() -> None:
    metrics = Metrics()
    old, new = LoadedModel("m", "1", metrics), LoadedModel("m", "1", metrics)
    metrics.record(old, "OK", None, 0.001)
    metrics.record(new, "OK", None, 0.001)
    metrics.record(old, "OK", None, 0.001)
    metrics.forget(old)
    assert metrics.of(new).codes == {"OK": 3}


@given(st.lists(st.floats(0, 1e4), max_size=50))
def test_a_histogram_counts_each_value_once_at_its_place(values: list[float]) -> None:
    metrics = Metrics()
    model = LoadedModel("m", "1", metrics)
    for value in values:
        metrics.record(model, "OK", None, value)
    histogram = metrics.of(model).total
    assert histogram.count == len(values)
    assert histogram.total == pytest.approx(sum(values))
    for i, bound in enumerate(SECONDS):
        assert sum(histogram.counts[: i + 1]) == sum(value <= bound for value in values)


def test_a_log_line_is_one_line() -> None:
    record = logging.LogRecord("salver.x", logging.WARNING, "f", 1, 'a "%s"\nb', ("c",), None)
    line = LineFormatter().format(record)
    assert re.fullmatch(
        r'time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=warning logger=salver\.x msg="a \\"c\\"\\nb"', line
    )
