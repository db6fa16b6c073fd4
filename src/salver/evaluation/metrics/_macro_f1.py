"""Mean over the classes of F1, the harmonic mean of precision and recall."""

from __future__ import annotations

import numpy as np

from salver.core.arrays import Array
from salver.evaluation.metrics.answers import AnswerMetric
from salver.evaluation.metrics.base import MetricConfig, Paired, Stats


class MacroF1Config(MetricConfig, frozen=True, kw_only=True):
    """Macro-F1 has no settings of its own."""


class MacroF1Metric(AnswerMetric):
    """Macro-averaged F1 over the classes that occur among the labels or the baseline's answers.

    F1 of a class is a ratio of two sums over the examples, ``sum(2 TP) / sum(true + predicted)``; its influence
    function is that of a ratio of means.
    """

    Config = MacroF1Config
    name = "macro-f1"

    def reduce(self, outputs: dict[str, Array], labels: Array | None) -> Stats:
        return self.read(outputs, self.require_labels(labels))

    def compare(self, baseline: Stats, candidate: Stats) -> Paired:
        label = baseline["label"]
        answers = self.answers(baseline, baseline), self.answers(candidate, baseline)
        classes = np.unique(np.concatenate([label, answers[0]]))
        (first, own, worst), (second, theirs, _) = (_macro_f1(label, answer, classes) for answer in answers)
        return Paired(
            baseline=first,
            candidate=second,
            influence=(own, theirs),
            worst=worst,
            classes=label,
            hits=(answers[0] == label, answers[1] == label),
        )


def _macro_f1(label: Array, answer: Array, classes: Array) -> tuple[float, Array, float]:
    total = 0.0
    influence = np.zeros(len(label))
    heaviest = 0.0
    for name in classes:
        true, said = label == name, answer == name
        weight = float(true.sum() + said.sum())
        f1 = 2.0 * float((true & said).sum()) / weight
        total += f1
        influence += (2.0 * (true & said) - f1 * (true.astype(np.float64) + said)) * (len(label) / weight)
        heaviest = max(heaviest, 2.0 * len(label) / weight)
    return total / len(classes), influence / len(classes), 2.0 * heaviest / len(classes)
