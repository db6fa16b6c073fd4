"""CatBoost models: the trees of its JSON, or the model as it is."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Final

from salver.backends import _catboost as runtime
from salver.backends.boosted import Boosted
from salver.builder.importers.boosted import BoostedImporter
from salver.builder.importers.forest import Forest, Leaf, Link, Split, Tree
from salver.core.errors import InvalidArgument, Unimplemented

_LINKS: Final[dict[str, Link]] = {
    "Logloss": "two-classes",
    "CrossEntropy": "two-classes",
    "MultiClass": "softmax",
    "MultiClassOneVsAll": "one-vs-all",
    "Poisson": "exp",
    "Tweedie": "exp",
}
_PLAIN: Final = (
    "RMSE",
    "MAE",
    "MAPE",
    "Quantile",
    "Expectile",
    "Huber",
    "LogLinQuantile",
    "Lq",
    "MultiRMSE",
    "MultiQuantile",
    "PairLogit",
    "PairLogitPairwise",
    "QueryRMSE",
    "QuerySoftMax",
    "YetiRank",
    "YetiRankPairwise",
)


class CatboostImporter(BoostedImporter):
    """Reads ``.cbm`` files and the estimators of CatBoost (https://catboost.ai). Models with features that are no
    numbers are kept as they are: what CatBoost makes of them cannot be said in ONNX."""

    name = "catboost"
    module = "catboost"
    suffix = ".cbm"

    def read(self, data: bytes, name: str) -> Any:
        return runtime.read_booster(data, name)

    def unwrap(self, source: Any) -> Any:
        if not source.is_fitted():
            raise InvalidArgument(f"{type(source).__name__} is not fitted; call fit before importing it")
        return source

    def open(self, model: Any) -> Boosted:
        return runtime.open_booster(model, 1)

    def dump(self, model: Any) -> bytes:
        return _save(model, "cbm")

    def names(self, model: Any) -> list[str]:
        names = [str(name) for name in model.feature_names_]
        return [] if names == [str(i) for i in range(len(names))] else names

    def forest(self, model: Any) -> Forest:
        if len(runtime.columns_of(model)) > 1:
            raise Unimplemented("features that are categories or texts have no ONNX graph here")
        loss = runtime.loss_of(model)
        if loss not in _LINKS and loss not in _PLAIN:
            raise Unimplemented(f"loss function '{loss}' has no ONNX graph here")
        told = json.loads(_save(model, "json"))
        features = {f["feature_index"]: f for f in told["features_info"]["float_features"]}
        scale, base = told["scale_and_bias"]
        read = _Reader(features, float(scale), len(base))
        trees = [read.oblivious(tree) for tree in told.get("oblivious_trees", ())]
        trees += [read.binary(tree) for tree in told.get("trees", ())]
        return Forest(
            trees=trees,
            features=len(model.feature_names_),
            base=[float(b) for b in base],
            link=_LINKS.get(loss, "identity"),
        )


def _save(model: Any, format: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="salver-catboost-") as folder:
        path = Path(folder) / "model"
        model.save_model(str(path), format=format)
        return path.read_bytes()


class _Reader:
    """Reads trees. CatBoost asks ``x > border``: no is our yes."""

    def __init__(self, features: dict[int, dict[str, Any]], scale: float, outputs: int) -> None:
        self._features, self._scale, self._outputs = features, scale, outputs

    def oblivious(self, tree: dict[str, Any]) -> Tree:
        """One question for each level; the first is the lowest bit of the leaf's number."""
        splits, values, width = tree.get("splits") or [], tree["leaf_values"], self._outputs
        made: Tree = {}
        inner = (1 << len(splits)) - 1
        for number in range(inner):
            level = (number + 1).bit_length() - 1
            made[number] = self._split(splits[len(splits) - 1 - level], 2 * number + 1, 2 * number + 2)
        for leaf in range(1 << len(splits)):
            made[inner + leaf] = self._leaf(values[leaf * width : (leaf + 1) * width])
        return made

    def binary(self, root: dict[str, Any]) -> Tree:
        made: Tree = {}
        waiting, count = [(0, root)], 1
        while waiting:
            number, node = waiting.pop()
            if "split" not in node:
                value = node["value"]
                made[number] = self._leaf(value if isinstance(value, list) else [value])
                continue
            made[number] = self._split(node["split"], count, count + 1)
            waiting += [(count, node["left"]), (count + 1, node["right"])]
            count += 2
        return made

    def _split(self, split: dict[str, Any], yes: int, no: int) -> Split:
        if split["split_type"] != "FloatFeature":
            raise Unimplemented(f"questions of type '{split['split_type']}' have no ONNX graph here")
        feature = self._features[split["float_feature_index"]]
        missing = feature["nan_value_treatment"] != "AsTrue"
        return Split(feature["flat_feature_index"], yes, no, most=float(split["border"]), missing=missing)

    def _leaf(self, values: list[float]) -> Leaf:
        return Leaf(tuple((i, value * self._scale) for i, value in enumerate(values)))
