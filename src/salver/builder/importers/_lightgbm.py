"""LightGBM models: the trees it tells of, or the model as it is."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from salver.backends import _lightgbm as runtime
from salver.backends.boosted import Boosted
from salver.builder.importers.boosted import BoostedImporter
from salver.builder.importers.forest import Forest, Leaf, Link, Split, Tree, below, ranges_of
from salver.core.errors import InvalidArgument, Unimplemented

_LINKS: Final[dict[str, Link]] = {
    "binary": "two-classes",
    "multiclass": "softmax",
    "softmax": "softmax",
    "multiclassova": "one-vs-all",
    "cross_entropy": "sigmoid",
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
    **dict.fromkeys(
        ("regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg"), "identity"
    ),
}


_ZERO: Final = float(np.float32(1e-35))


class LightgbmImporter(BoostedImporter):
    """Reads ``.txt`` model files, a ``Booster`` and the estimators of LightGBM (https://lightgbm.readthedocs.io)."""

    name = "lightgbm"
    module = "lightgbm"
    suffix = ".txt"

    def read(self, data: bytes, name: str) -> Any:
        return runtime.read_booster(data, name)

    def unwrap(self, source: Any) -> Any:
        if not hasattr(source, "booster_") and not hasattr(type(source), "booster_"):
            return source
        if not source.__sklearn_is_fitted__():
            raise InvalidArgument(f"{type(source).__name__} is not fitted; call fit before importing it")
        return source.booster_

    def open(self, model: Any) -> Boosted:
        return runtime.open_booster(model, 1)

    def dump(self, model: Any) -> bytes:
        text: str = model.model_to_string()
        return text.encode()

    def names(self, model: Any) -> list[str]:
        names = list(model.feature_name())
        return [] if names == [f"Column_{i}" for i in range(len(names))] else names

    def forest(self, model: Any) -> Forest:
        told = model.dump_model()
        objective, *parameters = runtime.objective_of(model) or [""]
        if objective not in _LINKS:
            raise Unimplemented(f"objective '{objective}' has no ONNX graph here")
        if "sqrt" in parameters:
            raise Unimplemented("an objective of square roots (reg_sqrt) has no ONNX graph here")
        slope = next((float(p.partition(":")[2]) for p in parameters if p.startswith("sigmoid:")), 1.0)
        outputs = told["num_tree_per_iteration"]
        trees = told["tree_info"]
        share = outputs / len(trees) if told["average_output"] and trees else 1.0
        return Forest(
            trees=[_tree(tree["tree_structure"], i % outputs, share) for i, tree in enumerate(trees)],
            features=told["max_feature_idx"] + 1,
            base=[0.0] * outputs,
            link=_LINKS[objective],
            slope=slope,
        )


def _tree(root: dict[str, Any], output: int, share: float) -> Tree:
    made: Tree = {}
    waiting = [(0, root)]
    count = 1
    while waiting:
        number, node = waiting.pop()
        if "leaf_coeff" in node:
            raise Unimplemented("linear trees (linear_tree) have no ONNX graph here")
        if "leaf_value" in node:
            made[number] = Leaf(((output, node["leaf_value"] * share),))
            continue
        yes, no, count = count, count + 1, count + 2
        waiting += [(yes, node["left_child"]), (no, node["right_child"])]
        made[number] = _split(node, yes, no)
    return made


def _split(node: dict[str, Any], yes: int, no: int) -> Split:
    if node["decision_type"] == "==":  # a missing value is in no set
        categories = [int(part) for part in str(node["threshold"]).split("||")]
        return Split(node["split_feature"], yes, no, ranges=ranges_of(categories, truncates=True))
    most, default = _most(float(node["threshold"])), bool(node["default_left"])
    if node["missing_type"] == "Zero":
        return Split(node["split_feature"], yes, no, missing=default, ranges=_around_zero(most, default))
    # Where no value was missing in training, LightGBM takes NaN for 0.
    missing = default if node["missing_type"] == "NaN" else most >= 0
    return Split(node["split_feature"], yes, no, most=most, missing=missing)


def _most(threshold: float) -> float:
    """LightGBM takes what is so near to zero for zero."""
    if -_ZERO <= threshold < 0:
        return below(-_ZERO)
    return _ZERO if 0 <= threshold < _ZERO else threshold


def _around_zero(most: float, default: bool) -> tuple[tuple[float, float], ...]:
    """Values that are answered with yes where zero stands for a missing value."""
    until, zero = math.nextafter(most, math.inf), (-_ZERO, math.nextafter(_ZERO, math.inf))
    if most < -_ZERO:
        return ((-math.inf, until), zero) if default else ((-math.inf, until),)
    if default:
        return ((-math.inf, until),)
    return ((-math.inf, zero[0]), (zero[1], until)) if until > zero[1] else ((-math.inf, zero[0]),)
