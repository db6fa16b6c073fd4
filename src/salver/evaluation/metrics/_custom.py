"""A metric the user wrote: ``module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, NotFound
from salver.core.tensors import TensorSpec
from salver.evaluation.metrics.base import Metric, MetricConfig, Paired, Stats, finite_losses, mean_influence

_GROUPS: Final = 200


class CustomConfig(MetricConfig, frozen=True, kw_only=True):
    """
    Args:
        target: ``module:function``.
    """

    target: str = ""


class CustomMetric(Metric):
    """A function of ``(outputs, labels)``, each over some examples, that gives

    - one number per example, shape ``[n]``: the metric is their mean; or
    - one number for all the examples given: the outputs are then kept, all of them, and its error is found by leaving
    out
      one of at most 200 groups of examples at a time (grouped jackknife; Efron and Stein 1981, Annals of Statistics 9).

    ``labels`` is None when the data has none. An attribute ``higher_is_better = False`` on the function turns the
    direction.
    """

    Config = CustomConfig

    def __init__(self, config: Any, outputs: tuple[TensorSpec, ...]) -> None:
        super().__init__(config, outputs)
        self._function = _load(config.target)
        self.higher_is_better = bool(getattr(self._function, "higher_is_better", True))

    @property
    def name(self) -> str:
        return str(self.config.target)

    def reduce(self, outputs: dict[str, Array], labels: Array | None) -> Stats:
        rows = len(next(iter(outputs.values())))
        result = np.asarray(self._function(outputs, labels))
        if result.dtype.kind not in "fiub" or result.shape not in ((), (rows,)):
            raise InvalidArgument(
                f"metric '{self.name}' returned {result.dtype} of shape {list(result.shape)} for {rows} "
                "examples; expected "
                f"one number, or one for each example: [{rows}]"
            )
        if result.ndim:
            return {"value": finite_losses(result)}
        kept = {f"output/{name}": _storable(array) for name, array in outputs.items()}
        return kept if labels is None else {**kept, "label": _storable(labels)}

    def compare(self, baseline: Stats, candidate: Stats) -> Paired:
        if "value" in baseline:
            own, theirs = baseline["value"], candidate["value"]
            worst = float(max(np.abs(own).max(), np.abs(theirs).max(), np.ptp(own), np.ptp(theirs)))
            return Paired(
                baseline=float(own.mean()),
                candidate=float(theirs.mean()),
                influence=(mean_influence(own), mean_influence(theirs)),
                worst=worst,
            )
        (first, own), (second, theirs) = self._jackknife(baseline), self._jackknife(candidate)
        return Paired(baseline=first, candidate=second, influence=(own, theirs), worst=max(1.0, abs(first)))

    def _jackknife(self, stats: Stats) -> tuple[float, Array]:
        rows = len(next(iter(stats.values())))
        groups = np.arange(rows) % min(rows, _GROUPS)
        whole = self._scalar(stats, np.ones(rows, bool))
        count = int(groups.max()) + 1
        if count < 2:
            return whole, np.zeros(1)
        left_out = np.array([self._scalar(stats, groups != g) for g in range(count)])
        return whole, (count - 1) * (left_out.mean() - left_out)

    def _scalar(self, stats: Stats, rows: Array) -> float:
        outputs = {name.removeprefix("output/"): a[rows] for name, a in stats.items() if name.startswith("output/")}
        return float(self._function(outputs, stats["label"][rows] if "label" in stats else None))


def _storable(array: Array) -> Array:
    return array.astype(np.str_) if array.dtype.kind == "O" else array


def _load(target: str) -> Callable[[dict[str, Array], Array | None], Any]:
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise InvalidArgument(f"metric '{target}': expected 'module:function'")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise NotFound(f"metric '{target}' cannot be loaded: {error}; is its folder on PYTHONPATH?") from error
    if not callable(function):
        raise InvalidArgument(f"metric '{target}' is no function")
    return function  # type: ignore[no-any-return]  # callable() does not narrow to a signature
