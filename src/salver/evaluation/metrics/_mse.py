"""Mean squared error."""

from __future__ import annotations

import numpy as np

from salver.core.arrays import Array
from salver.evaluation.metrics.base import MetricConfig, Paired, Stats, finite_losses
from salver.evaluation.metrics.regression import RegressionMetric, compare_losses


class MseConfig(MetricConfig, frozen=True, kw_only=True):
    """Mean squared error has no settings of its own."""


class MseMetric(RegressionMetric):
    """Mean squared error; with several targets, the mean over them. Lower is better."""

    Config = MseConfig
    name = "mse"
    is_share = False
    higher_is_better = False

    def reduce(self, outputs: dict[str, Array], labels: Array | None) -> Stats:
        predicted, truth = self.read(outputs, labels)
        return {"loss": finite_losses(np.square(predicted - truth)).mean(axis=1)}

    def compare(self, baseline: Stats, candidate: Stats) -> Paired:
        return compare_losses(baseline["loss"], candidate["loss"])
