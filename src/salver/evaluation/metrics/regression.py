"""Numeric predictions by example: what MSE, MAE and R2 have in common."""

from __future__ import annotations

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, format_shape
from salver.evaluation.metrics.base import Metric, Paired, mean_influence
from salver.evaluation.metrics.reading import choose_output


class RegressionMetric(Metric):
    """Metrics of the difference between a numeric output and labels of the same shape."""

    def read(self, outputs: dict[str, Array], labels: Array | None) -> tuple[Array, Array]:
        """Predictions and labels, float64 ``[n, targets]``."""
        labels = self.require_labels(labels)
        output = choose_output(self.name, self.config.output, outputs, ("score", "scores", "values", "classes"))
        predicted = outputs[output]
        if predicted.dtype.kind not in "fiu" or labels.dtype.kind not in "fiub":
            raise InvalidArgument(
                f"metric '{self.name}' needs numbers: output '{output}' is {predicted.dtype}, the labels are "
                f"{labels.dtype}"
            )
        if labels.dtype.kind == "f" and not np.all(np.isfinite(labels)):
            raise InvalidArgument(f"metric '{self.name}': some labels are NaN or infinite; leave those examples out")
        rows = len(predicted)
        flat = predicted.reshape(rows, -1).astype(np.float64)
        truth = labels.reshape(len(labels), -1).astype(np.float64)
        if flat.shape != truth.shape:
            raise InvalidArgument(
                f"metric '{self.name}': output '{output}' has shape {format_shape(predicted.shape)}, the labels "
                f"{format_shape(labels.shape)}; expected one label per value"
            )
        return flat, truth


def compare_losses(baseline: Array, candidate: Array) -> Paired:
    """Compare two means of losses ``[n]``."""
    return Paired(
        baseline=float(baseline.mean()),
        candidate=float(candidate.mean()),
        influence=(mean_influence(baseline), mean_influence(candidate)),
        worst=float(max(baseline.max(), candidate.max())),
    )
