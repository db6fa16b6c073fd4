"""XGBoost models: the trees of its JSON, or the model as it is."""

from __future__ import annotations

import json
import math
from typing import Any, Final

import numpy as np

from salver.backends import _xgboost as runtime
from salver.backends.boosted import Boosted
from salver.builder.importers.boosted import BoostedImporter
from salver.builder.importers.forest import Forest, Leaf, Link, Split, Tree, below, ranges_of
from salver.core.errors import InvalidArgument, Unimplemented

_LINKS: Final[dict[str, Link]] = {
    "binary:logistic": "two-classes",
    "binary:logitraw": "identity",
    "multi:softprob": "softmax",
    "multi:softmax": "softmax",
    "reg:logistic": "sigmoid",
    "reg:squarederror": "identity",
    "reg:squaredlogerror": "identity",
    "reg:absoluteerror": "identity",
    "reg:pseudohubererror": "identity",
    "reg:quantileerror": "identity",
    "rank:pairwise": "identity",
    "rank:ndcg": "identity",
    "rank:map": "identity",
    "count:poisson": "exp",
    "reg:gamma": "exp",
    "reg:tweedie": "exp",
    "survival:cox": "exp",
    "survival:aft": "exp",
}


class XgboostImporter(BoostedImporter):
    """Reads ``.ubj`` and ``.json`` files, a ``Booster`` and the estimators of XGBoost
    (https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html)."""

    name = "xgboost"
    module = "xgboost"
    suffix = ".ubj"

    def read(self, data: bytes, name: str) -> Any:
        return runtime.read_booster(data.lstrip(), name)

    def unwrap(self, source: Any) -> Any:
        if not hasattr(source, "get_booster"):
            return source
        if not source.__sklearn_is_fitted__():
            raise InvalidArgument(f"{type(source).__name__} is not fitted; call fit before importing it")
        missing = getattr(source, "missing", math.nan)
        if missing is not None and not math.isnan(missing):
            raise Unimplemented(
                f"this {type(source).__name__} takes {missing:g} for a missing value, which XGBoost keeps in no file; "
                "fit it with NaN for missing values"
            )
        return source.get_booster()

    def open(self, model: Any) -> Boosted:
        return runtime.open_booster(model, 1)

    def dump(self, model: Any) -> bytes:
        return bytes(model.save_raw("ubj"))

    def names(self, model: Any) -> list[str]:
        return list(model.feature_names or ())

    def forest(self, model: Any) -> Forest:
        learner = json.loads(bytes(model.save_raw("json")))["learner"]
        objective, booster = learner["objective"]["name"], learner["gradient_booster"]
        if objective not in _LINKS:
            raise Unimplemented(f"objective '{objective}' has no ONNX graph here")
        if booster["name"] not in ("gbtree", "dart"):
            raise Unimplemented(f"booster '{booster['name']}' has no trees")
        weights = booster.get("weight_drop")
        trees = booster.get("gbtree", booster)["model"]
        count = len(trees["trees"])
        until = runtime.rounds_of(model)
        if until:
            count = trees["iteration_indptr"][until]
        parameters = learner["learner_model_param"]
        width = max(int(parameters["num_class"]), int(parameters.get("num_target", "1")), 1)
        return Forest(
            trees=[
                _tree(trees["trees"][i], trees["tree_info"][i], 1.0 if weights is None else weights[i])
                for i in range(count)
            ],
            features=int(parameters["num_feature"]),
            base=_base(parameters["base_score"], objective, width),
            link=_LINKS[objective],
        )


def _base(text: str, objective: str, width: int) -> list[float]:
    """What each output begins with: the base score, before the link."""
    given = [float(part) for part in text.strip("[]").split(",")]
    if objective in ("binary:logistic", "binary:logitraw", "reg:logistic"):
        given = [-math.log(1 / value - 1) for value in given]
    elif _LINKS[objective] == "exp":
        given = [math.log(value) for value in given]
    return given if len(given) == width else given * width


def _tree(tree: dict[str, Any], output: int, weight: float) -> Tree:
    if int(tree["tree_param"].get("size_leaf_vector", "1")) > 1:
        raise Unimplemented("trees with several outputs in a leaf have no ONNX graph here")
    categories = _categories(tree)
    made: Tree = {}
    for i, left in enumerate(tree["left_children"]):
        if left == -1:
            value = float(np.float32(tree["split_conditions"][i]))
            made[i] = Leaf(((output, value * weight),))
            continue
        feature, right, default_left = (
            tree["split_indices"][i],
            tree["right_children"][i],
            bool(tree["default_left"][i]),
        )
        if i in categories:  # those in the set go right
            made[i] = Split(feature, right, left, missing=not default_left, ranges=categories[i])
        else:
            # The text has the fewest digits that name a number of FP32; the border is that number.
            most = below(float(np.float32(tree["split_conditions"][i])), "FP32")
            made[i] = Split(feature, left, right, most=most, missing=default_left)
    return made


def _categories(tree: dict[str, Any]) -> dict[int, tuple[tuple[float, float], ...]]:
    """Node -> the categories that are asked for there."""
    found = {}
    for node, start, size in zip(
        tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True
    ):
        found[node] = ranges_of(tree["categories"][start : start + size], truncates=False)
    return found
