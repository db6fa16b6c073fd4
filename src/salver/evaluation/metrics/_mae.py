"""Mean absolute error."""

from __future__ import annotations

import numpy as np

from salver.core.arrays import Array
from salver.evaluation.metrics.base import MetricConfig, Paired, Stats, finite_losses
from salver.evaluation.metrics.regression import RegressionMetric, compare_losses


class MaeConfig(MetricConfig, frozen=True, kw_only=True):
    """Mean absolute error has no settings of its own."""


class MaeMetric(RegressionMetric):
    """Mean absolute error; with several targets, the mean over them. Lower is better."""

    Config = MaeConfig
    name = "mae"
    is_share = False
    higher_is_better = False

    def reduce(self, outputs: dict[str, Array], labels: Array | None) -> Stats:
        predicted, truth = self.read(outputs, labels)
        return {"loss": finite_losses(np.abs(predicted - truth)).mean(axis=1)}

    def compare(self, baseline: Stats, candidate: Stats) -> Paired:
        return compare_losses(baseline["loss"], candidate["loss"])
