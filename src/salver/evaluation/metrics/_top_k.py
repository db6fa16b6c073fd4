"""Share of examples whose label is among the k highest scores."""

from __future__ import annotations

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.evaluation.metrics.base import Metric, MetricConfig, Paired, Stats
from salver.evaluation.metrics.reading import choose_output, class_names, label_column, label_indices, name_indices


class TopKConfig(MetricConfig, frozen=True, kw_only=True):
    """
    Args:
        k: how many of the highest scores may hold the label.
    """

    k: int = 5


class TopKMetric(Metric):
    """Top-k accuracy. Of equal scores, the lower index counts as the higher score."""

    is_share = True

    Config = TopKConfig

    @property
    def name(self) -> str:
        return f"top-{self.config.k}"

    def reduce(self, outputs: dict[str, Array], labels: Array | None) -> Stats:
        labels = self.require_labels(labels)
        output = choose_output(self.name, self.config.output, outputs, ("scores",))
        scores = outputs[output]
        if not 1 <= self.config.k < scores.shape[1]:
            raise InvalidArgument(f"metric '{self.name}': k must be from 1 to {scores.shape[1] - 1}, below the classes")
        names = class_names(output, self.outputs)
        truth = label_indices(self.name, label_column(self.name, labels, len(scores)), names, scores.shape[1])
        scores = np.where(np.isnan(scores), -np.inf, scores)
        own = np.take_along_axis(scores, truth[:, None], axis=1)
        before = (scores == own) & (np.arange(scores.shape[1]) < truth[:, None])
        rank = np.sum((scores > own) | before, axis=1)
        return {"right": rank < self.config.k, "label": name_indices(truth, names)}

    def compare(self, baseline: Stats, candidate: Stats) -> Paired:
        right = (baseline["right"], candidate["right"])
        return Paired(
            baseline=float(right[0].mean()), candidate=float(right[1].mean()), right=right, classes=baseline["label"]
        )
