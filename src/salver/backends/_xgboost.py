"""XGBoost models, run by XGBoost; the only backend file that imports it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from salver.backends.boosted import Boosted, BoostedBackend, classify, matrix_of, regress
from salver.core.arrays import Array
from salver.core.errors import CorruptArtifact, MissingExtra

try:
    import xgboost
except ImportError as missing:
    raise MissingExtra("running an XGBoost model", str(missing.name), "boosting") from None

_CLASSES: Final = ("binary:logistic", "multi:softprob", "multi:softmax")


class XgboostBackend(BoostedBackend):
    """Runs ``.ubj`` and ``.json`` files (https://xgboost.readthedocs.io) with XGBoost itself; NaN stands for a missing
    value. A model that was stopped early uses the trees up to its best round."""

    name = "xgboost"
    formats = ("xgboost",)

    def versions(self) -> dict[str, str]:
        return {"xgboost": xgboost.__version__}

    def open(self, data: bytes, name: str, threads: int) -> Boosted:
        return open_booster(read_booster(data, name), threads)


def read_booster(data: bytes, name: str) -> xgboost.Booster:
    """Read a model file.

    Raises:
        CorruptArtifact: it is none, or damaged.
    """
    if not data.startswith(b"{") or b"learner" not in data:
        raise CorruptArtifact(f"'{name}' is no XGBoost model (JSON or UBJSON)")
    booster = xgboost.Booster()
    try:
        booster.load_model(bytearray(data))
    except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
        raise CorruptArtifact(f"'{name}' is no XGBoost model, or it is damaged: {_line(error)}") from error
    return booster


def objective_of(booster: xgboost.Booster) -> str:
    """Name of what it was trained for."""
    return str(describe_booster(booster)["learner"]["objective"]["name"])


def describe_booster(booster: xgboost.Booster) -> Any:
    """Its settings as plain data."""

    return json.loads(booster.save_config())


def rounds_of(booster: xgboost.Booster) -> int:
    """Rounds that are used: up to the best where training was stopped early; 0 for all."""
    best = booster.attr("best_iteration")
    return 0 if best is None else int(best) + 1


def open_booster(booster: xgboost.Booster, threads: int) -> Boosted:
    """A booster as the backend runs it."""
    booster.set_param({"nthread": threads, "device": "cpu"})
    config = describe_booster(booster)["learner"]
    objective = config["objective"]["name"]
    linear = config["gradient_booster"]["name"] == "gblinear"
    until = (0, 0 if linear else rounds_of(booster))
    classes = int(config["learner_model_param"]["num_class"])

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        (x,) = inputs.values()
        if linear:
            found = booster.predict(xgboost.DMatrix(x), validate_features=False)
        else:
            found = booster.inplace_predict(x, iteration_range=until, validate_features=False)
        found = np.asarray(found)
        if objective == "multi:softmax":
            margins = booster.inplace_predict(x, iteration_range=until, validate_features=False, predict_type="margin")
            found = _softmax(np.asarray(margins).reshape(len(x), classes))
        return classify(found) if objective in _CLASSES else regress(found)

    return Boosted(matrix_of(booster.num_features(), "FP32"), answer)


def _softmax(margins: Array) -> Array:
    raised = np.exp(margins - margins.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
