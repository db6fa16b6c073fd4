"""LightGBM models, run by LightGBM; the only backend file that imports it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from salver.backends.boosted import Boosted, BoostedBackend, classify, matrix_of, regress
from salver.core.arrays import Array
from salver.core.errors import CorruptArtifact, MissingExtra

try:
    import lightgbm
except ImportError as missing:
    raise MissingExtra("running a LightGBM model", str(missing.name), "boosting") from None

_CLASSES: Final = ("binary", "multiclass", "multiclassova", "softmax")


class LightgbmBackend(BoostedBackend):
    """Runs ``.txt`` model files (https://lightgbm.readthedocs.io) with LightGBM itself, on numbers as FP64, as its
    thresholds are. NaN stands for a missing value, whole numbers for categories."""

    name = "lightgbm"
    formats = ("lightgbm",)

    def versions(self) -> dict[str, str]:
        return {"lightgbm": lightgbm.__version__}

    def open(self, data: bytes, name: str, threads: int) -> Boosted:
        return open_booster(read_booster(data, name), threads)


def read_booster(data: bytes, name: str) -> lightgbm.Booster:
    """Read a model file.

    Raises:
        CorruptArtifact: it is none, or damaged.
    """
    # LightGBM itself takes a file that ends between two trees for a smaller model.
    if not data.startswith(b"tree\n") or b"\nend of trees" not in data:
        raise CorruptArtifact(f"'{name}' is no LightGBM model, or it is cut off")
    try:
        return lightgbm.Booster(model_str=data.decode("utf-8"))
    except (lightgbm.basic.LightGBMError, ValueError) as error:
        raise CorruptArtifact(f"'{name}' is no LightGBM model, or it is damaged: {error}") from error


def objective_of(booster: lightgbm.Booster) -> list[str]:
    """What it was trained for, and its parameters."""
    text = booster.model_to_string(num_iteration=1)
    line = next((each for each in text.splitlines() if each.startswith("objective=")), "objective=")
    return line.partition("=")[2].split()


def open_booster(booster: lightgbm.Booster, threads: int) -> Boosted:
    """A booster as the backend runs it."""
    objective = (objective_of(booster) or [""])[0]
    features = booster.num_feature()

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        (x,) = inputs.values()
        found: Any = np.asarray(booster.predict(x, num_threads=threads))
        return classify(found) if objective in _CLASSES else regress(found)

    return Boosted(matrix_of(features, "FP64"), answer)
