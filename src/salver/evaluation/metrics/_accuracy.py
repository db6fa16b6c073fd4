"""Share of examples whose predicted class is the label."""

from __future__ import annotations

from salver.core.arrays import Array
from salver.evaluation.metrics.answers import AnswerMetric
from salver.evaluation.metrics.base import MetricConfig, Paired, Stats


class AccuracyConfig(MetricConfig, frozen=True, kw_only=True):
    """Accuracy has no settings of its own."""


class AccuracyMetric(AnswerMetric):
    """Accuracy of the predicted class: of an output of classes, else the arg-max of scores."""

    Config = AccuracyConfig
    name = "accuracy"

    def reduce(self, outputs: dict[str, Array], labels: Array | None) -> Stats:
        return self.read(outputs, self.require_labels(labels))

    def compare(self, baseline: Stats, candidate: Stats) -> Paired:
        label = baseline["label"]
        right = (self.answers(baseline, baseline) == label, self.answers(candidate, baseline) == label)
        return Paired(baseline=float(right[0].mean()), candidate=float(right[1].mean()), right=right, classes=label)
