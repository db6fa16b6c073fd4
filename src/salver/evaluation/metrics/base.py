"""The port of the `metrics` family: how right a model's answers are, example by example."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.errors import FailedPrecondition
from salver.core.tensors import TensorSpec

Stats = dict[str, Array]
"""Per-example statistics: name -> array whose first dimension is the examples. Small, numeric or text, never objects,
so that they can be kept with `numpy.savez` and read back without pickle."""


class MetricConfig(Config, frozen=True, kw_only=True):
    """Settings that every metric has.

    Args:
        output: the model output to judge; empty when there is only one that fits.
    """

    output: str = ""


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """Baseline and candidate on the same examples.

    Exactly one of ``right`` and ``influence`` is given: the first for metrics that are a share of right answers, the
    second for all others.

    Args:
        baseline, candidate: the metric of each.
        right: boolean arrays ``[n]``, baseline's and candidate's.
        influence: float arrays ``[n]``, baseline's and candidate's: how much each example moves the metric (the
        empirical
            influence function; it sums to zero, and its variance over n is the metric's variance).
        worst: how much the worst example that was not seen could move the metric, on the scale of ``influence``.
        classes: the class of each example as text, None when there are no classes.
        hits: where ``right`` is not given but the examples have classes: right answers of both, for recall by class.
    """

    baseline: float
    candidate: float
    right: tuple[Array, Array] | None = None
    influence: tuple[Array, Array] | None = None
    worst: float = 0.0
    classes: Array | None = None
    hits: tuple[Array, Array] | None = None


class Metric(abc.ABC):
    """Reduces batches to per-example statistics, then compares two models by them.

    Statistics of different batches are concatenated; a metric keeps no state between calls. Baseline and candidate are
    reduced on their own, so the baseline's statistics can be kept and used in another process.

    Args:
        config: the member's settings.
        outputs: the model's outputs, for class names and datatypes.
    """

    Config: ClassVar[type[Any]] = MetricConfig
    higher_is_better: bool = True
    needs_labels: ClassVar[bool] = True
    is_share: bool | None = None
    """Whether it is a share between 0 and 1, read in percent; None where that is not known."""

    def __init__(self, config: Any, outputs: tuple[TensorSpec, ...]) -> None:
        self.config = config
        self.outputs = outputs

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """As the user writes it: ``top-5``."""

    @abc.abstractmethod
    def reduce(self, outputs: dict[str, Array], labels: Array | None) -> Stats:
        """Reduce one batch.

        Args:
            outputs: name -> array ``[rows, ...]``; floats are FP16, FP32 or FP64 (BF16 already widened).
            labels: array ``[rows, ...]``, None when there are none.

        Raises:
            FailedPrecondition: labels are needed and there are none.
            InvalidArgument: labels do not fit the outputs, or no output fits the metric, or several do.
        """

    @abc.abstractmethod
    def compare(self, baseline: Stats, candidate: Stats) -> Paired:
        """Compare two models by the statistics of all examples, in the same order."""

    def value(self, stats: Stats) -> float:
        """The metric of one model, judged on its own."""
        return self.compare(stats, stats).candidate

    def require_labels(self, labels: Array | None) -> Array:
        """The labels.

        Raises:
            FailedPrecondition: there are none.
        """
        if labels is None:
            raise FailedPrecondition(
                f"metric '{self.name}' needs labels and the data has none: add a label column, or compare with the "
                "original's own answers by --metric agreement"
            )
        return labels


def join(parts: list[Stats]) -> Stats:
    """Concatenate the statistics of batches."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def finite_losses(losses: Array) -> Array:
    """Losses with NaN and infinity as a very large number, so that means and intervals stay numbers."""
    return np.nan_to_num(losses.astype(np.float64), nan=1e30, posinf=1e30, neginf=-1e30)


def mean_influence(values: Array) -> Array:
    """Influence of each example on a mean."""
    return np.asarray(values - values.mean(), np.float64)
