"""Area under the ROC curve: the chance that a positive example is scored above a negative one."""

from __future__ import annotations

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.evaluation.metrics.base import Metric, MetricConfig, Paired, Stats
from salver.evaluation.metrics.reading import choose_output, class_names, label_column, label_indices


class AucConfig(MetricConfig, frozen=True, kw_only=True):
    """AUC has no settings of its own."""


class AucMetric(Metric):
    """AUC; with more than two classes the mean over the classes of one against the rest.

    The influence of an example is its placement value: DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44:837-845.
    """

    Config = AucConfig
    name = "auc"
    is_share = True

    def reduce(self, outputs: dict[str, Array], labels: Array | None) -> Stats:
        labels = self.require_labels(labels)
        output = choose_output(self.name, self.config.output, outputs, ("scores", "score"))
        scores = outputs[output].astype(np.float64)
        scores = scores.reshape(len(scores), -1)
        names = class_names(output, self.outputs)
        labels = label_column(self.name, labels, len(scores))
        if scores.shape[1] <= 2:
            return {
                "score": scores[:, -1:],
                "label": label_indices(self.name, labels, names if len(names) == 2 else (), 2),
            }
        return {"score": scores, "label": label_indices(self.name, labels, names, scores.shape[1])}

    def compare(self, baseline: Stats, candidate: Stats) -> Paired:
        label = baseline["label"]
        columns = baseline["score"].shape[1]
        positives = [label == k for k in (range(columns) if columns > 1 else (1,))]
        present = [(i, p) for i, p in enumerate(positives) if p.any() and not p.all()]
        if not present:
            raise InvalidArgument("metric 'auc' needs examples of at least two classes; the labels have one only")
        values, influences = [], []
        for stats in (baseline, candidate):
            value, influence = 0.0, np.zeros(len(label))
            for i, positive in present:
                area, moved = _auc(stats["score"][:, i], positive)
                value += area / len(present)
                influence += moved / len(present)
            values.append(value)
            influences.append(influence)
        smallest = min(min(int(p.sum()), int((~p).sum())) for _, p in present)
        return Paired(
            baseline=values[0],
            candidate=values[1],
            influence=(influences[0], influences[1]),
            worst=2.0 * len(label) / smallest / len(present),
        )


def _auc(scores: Array, positive: Array) -> tuple[float, Array]:
    scores = np.where(np.isnan(scores), -np.inf, scores)
    influence = np.empty(len(scores))
    first, second = scores[positive], scores[~positive]
    above = _placements(first, second)
    below = 1.0 - _placements(second, first)
    area = float(above.mean())
    influence[positive] = (above - area) * len(scores) / len(first)
    influence[~positive] = (below - area) * len(scores) / len(second)
    return area, influence


def _placements(scores: Array, others: Array) -> Array:
    """For each score, the share of the others below it; ties count half."""
    ordered = np.sort(others)
    low = np.searchsorted(ordered, scores, "left")
    high = np.searchsorted(ordered, scores, "right")
    return np.asarray((low + high) / (2.0 * len(ordered)), np.float64)
