"""How right a model is: one table of metrics, and their names as users write them."""

from __future__ import annotations

import re
from typing import Final

from salver.core.errors import UnknownName
from salver.core.registry import Family
from salver.core.tensors import Signature
from salver.evaluation.metrics.base import Metric, MetricConfig, Paired, Stats, join

BUILTIN: Final = {
    "accuracy": "salver.evaluation.metrics._accuracy:AccuracyMetric",
    "top-k": "salver.evaluation.metrics._top_k:TopKMetric",
    "macro-f1": "salver.evaluation.metrics._macro_f1:MacroF1Metric",
    "auc": "salver.evaluation.metrics._auc:AucMetric",
    "mse": "salver.evaluation.metrics._mse:MseMetric",
    "mae": "salver.evaluation.metrics._mae:MaeMetric",
    "r2": "salver.evaluation.metrics._r2:R2Metric",
    "agreement": "salver.evaluation.metrics._agreement:AgreementMetric",
    "custom": "salver.evaluation.metrics._custom:CustomMetric",
}

METRICS: Final[Family[type[Metric]]] = Family("metrics", BUILTIN)

__all__ = ["BUILTIN", "METRICS", "Metric", "MetricConfig", "Paired", "Stats", "join", "make_metric"]


def make_metric(text: str, signature: Signature) -> Metric:
    """Read a metric as users write it: ``accuracy``, ``top-5``, ``module:function``, each with an output where the
    model has several: ``accuracy@logits``.

    Raises:
        UnknownName: no such metric, or no such output.
        InvalidArgument: ``module:function`` is no function.
        NotFound: ``module:function`` cannot be imported.
    """
    name, _, output = text.partition("@")
    if output:
        signature.output(output)
    top = re.fullmatch(r"top-([1-9]\d*)", name)
    if top:
        member = METRICS.get("top-k")
        return member(member.Config(k=int(top[1]), output=output), signature.outputs)
    if ":" in name:
        member = METRICS.get("custom")
        return member(member.Config(target=name, output=output), signature.outputs)
    if name in ("top-k", "custom") or name not in METRICS.names():
        written = {"top-k": "top-5", "custom": "module:function"}
        raise UnknownName("metric", name, [written.get(n, n) for n in METRICS.names()])
    member = METRICS.get(name)
    return member(member.Config(output=output), signature.outputs)
