"""Coefficient of determination: the share of the labels' variance that is explained."""

from __future__ import annotations

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.evaluation.metrics.base import MetricConfig, Paired, Stats, finite_losses
from salver.evaluation.metrics.regression import RegressionMetric


class R2Config(MetricConfig, frozen=True, kw_only=True):
    """R2 has no settings of its own."""


class R2Metric(RegressionMetric):
    """R2 = 1 - SSE / SST; with several targets, the mean over them. SST is taken around the mean of the labels."""

    Config = R2Config
    name = "r2"

    def reduce(self, outputs: dict[str, Array], labels: Array | None) -> Stats:
        predicted, truth = self.read(outputs, labels)
        return {"loss": finite_losses(np.square(predicted - truth)), "label": truth}

    def compare(self, baseline: Stats, candidate: Stats) -> Paired:
        spread = np.square(baseline["label"] - baseline["label"].mean(axis=0))
        variance = spread.mean(axis=0)
        if not np.all(variance > 0.0):
            raise InvalidArgument(
                "metric 'r2': all labels of a target are equal, so there is no variance to explain; use mse"
            )
        values, influences, worst = [], [], 0.0
        for loss in (baseline["loss"], candidate["loss"]):
            unexplained = loss.mean(axis=0) / variance
            values.append(float(1.0 - unexplained.mean()))
            influences.append(-((loss - unexplained * spread) / variance).mean(axis=1))
            worst = max(worst, float((loss / variance).mean(axis=1).max()))
        return Paired(baseline=values[0], candidate=values[1], influence=(influences[0], influences[1]), worst=worst)
