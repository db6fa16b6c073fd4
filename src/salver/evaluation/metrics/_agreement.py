"""Share of examples on which the candidate answers as the original does; needs no labels."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from salver.core.arrays import Array
from salver.evaluation.metrics.answers import arg_max, threshold
from salver.evaluation.metrics.base import Metric, MetricConfig, Paired, Stats
from salver.evaluation.metrics.reading import choose_output, class_names, kind_of, name_indices, to_text


class AgreementConfig(MetricConfig, frozen=True, kw_only=True):
    """
    Args:
        tolerance: for an output that holds no classes: two rows agree when no value differs by more than
            ``tolerance * (1 + |original's|)``.
    """

    tolerance: float = 0.01


class AgreementMetric(Metric):
    """Agreement with the original's own answers: the same class, or for other outputs values within a tolerance.

    Float outputs ``[n, C]`` are taken for scores of classes; a single float by row is a class when all the original's
    lie in [0, 1], a value otherwise. The original agrees with itself, so the baseline is always 1.
    """

    Config = AgreementConfig
    name = "agreement"
    needs_labels: ClassVar[bool] = False
    is_share = True

    def reduce(self, outputs: dict[str, Array], labels: Array | None) -> Stats:
        name = choose_output(self.name, self.config.output, outputs, ("classes", "scores", "score", "values"))
        array = outputs[name]
        match kind_of(array):
            case "classes":
                return {"answer": to_text(array)}
            case "scores":
                return {"answer": name_indices(arg_max(array), class_names(name, self.outputs))}
            case _ if array.dtype.kind in "OUS":
                return {"answer": np.array([str(row.tolist()) for row in array], np.str_)}
            case _:
                return {"value": array.reshape(len(array), -1).astype(np.float64)}

    def compare(self, baseline: Stats, candidate: Stats) -> Paired:
        if "answer" in baseline:
            classes = baseline["answer"]
            same = candidate["answer"] == classes
        elif baseline["value"].shape[1] == 1 and threshold(baseline["value"]) == 0.5:
            classes = (baseline["value"][:, 0] > 0.5).astype(np.int64).astype(np.str_)
            same = (candidate["value"][:, 0] > 0.5).astype(np.int64).astype(np.str_) == classes
        else:
            classes = None
            own = baseline["value"]
            near = np.abs(candidate["value"] - own) <= self.config.tolerance * (1.0 + np.abs(own))
            same = np.all(near | (candidate["value"] == own) | (np.isnan(own) & np.isnan(candidate["value"])), axis=1)
        return Paired(
            baseline=1.0, candidate=float(same.mean()), right=(np.ones(len(same), bool), same), classes=classes
        )
