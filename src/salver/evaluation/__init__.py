"""The judge: metrics, paired intervals and tests, the latency meter, batch invariance, and the verdicts."""

from __future__ import annotations

from salver.evaluation.host import describe_host
from salver.evaluation.invariance import check_invariance
from salver.evaluation.memory import PeakMemory
from salver.evaluation.meter import measure, measure_throughput
from salver.evaluation.metrics import METRICS, Metric, make_metric
from salver.evaluation.noninferiority import (
    ALPHA,
    MAX_FINALISTS,
    assess,
    certify,
    examples_needed,
    format_margin,
    holm,
    parse_margin,
)
from salver.evaluation.runner import RowRunner, Scores, count_new_nonfinite, fixed_batch, score

__all__ = [
    "ALPHA",
    "MAX_FINALISTS",
    "METRICS",
    "Metric",
    "PeakMemory",
    "RowRunner",
    "Scores",
    "assess",
    "certify",
    "check_invariance",
    "count_new_nonfinite",
    "describe_host",
    "examples_needed",
    "fixed_batch",
    "format_margin",
    "holm",
    "make_metric",
    "measure",
    "measure_throughput",
    "parse_margin",
    "score",
]
