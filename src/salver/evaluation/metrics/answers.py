"""Classification answers by example: what accuracy, macro-F1 and agreement have in common."""

from __future__ import annotations

import numpy as np

from salver.core.arrays import Array
from salver.evaluation.metrics.base import Metric, Stats
from salver.evaluation.metrics.reading import (
    choose_output,
    class_names,
    kind_of,
    label_column,
    label_indices,
    label_names,
    name_indices,
    to_text,
)


class AnswerMetric(Metric):
    """Metrics of predicted classes. Statistics: ``label`` and either ``answer`` (text) or ``score`` (float, binary).

    A binary score is kept as it is, since the threshold is known only at the end: 0.5 when all the baseline's scores
    lie in [0, 1], 0 (they are logits) otherwise.
    """

    is_share = True

    def read(self, outputs: dict[str, Array], labels: Array) -> Stats:
        name = choose_output(self.name, self.config.output, outputs, ("classes", "scores", "score"))
        array = outputs[name]
        names = class_names(name, self.outputs)
        labels = label_column(self.name, labels, len(array))
        match kind_of(array):
            case "classes":
                return {"answer": to_text(array), "label": label_names(self.name, labels, array, names)}
            case "scores":
                truth = label_indices(self.name, labels, names, array.shape[1])
                return {"answer": name_indices(arg_max(array), names), "label": name_indices(truth, names)}
            case _:
                truth = label_indices(self.name, labels, names if len(names) == 2 else (), 2)
                return {"score": array.reshape(-1).astype(np.float64), "label": name_indices(truth, _pair(names))}

    def answers(self, stats: Stats, baseline: Stats) -> Array:
        """Predicted classes as text."""
        if "answer" in stats:
            return stats["answer"]
        names = np.array(_pair(class_names(self.config.output, self.outputs)) or ("0", "1"), np.str_)
        return np.asarray(names[(stats["score"] > threshold(baseline["score"])).astype(np.int64)])


def _pair(names: tuple[str, ...]) -> tuple[str, ...]:
    return names if len(names) == 2 else ()


def threshold(scores: Array) -> float:
    """Where a binary score says yes: 0.5 for probabilities, 0 for logits."""
    finite = scores[np.isfinite(scores)]
    return 0.5 if not len(finite) or (finite.min() >= 0.0 and finite.max() <= 1.0) else 0.0


def arg_max(scores: Array) -> Array:
    """Index of the largest score by row; a NaN is never the largest."""
    return np.asarray(np.argmax(np.where(np.isnan(scores), -np.inf, scores), axis=1))
