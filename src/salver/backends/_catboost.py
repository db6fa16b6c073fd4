"""CatBoost models, run by CatBoost; the only backend file that imports it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from salver.backends.boosted import Boosted, BoostedBackend, classify, matrix_of, regress
from salver.core.arrays import Array
from salver.core.errors import CorruptArtifact, MissingExtra
from salver.core.tensors import TensorSpec

try:
    import catboost
except ImportError as missing:
    raise MissingExtra("running a CatBoost model", str(missing.name), "boosting") from None

_MAGIC: Final = b"CBM1"
_HEAD_BYTES: Final = 8  # with the length of the trees
_EXPONENTS: Final = ("Poisson", "Tweedie")


class CatboostBackend(BoostedBackend):
    """Runs ``.cbm`` files (https://catboost.ai) with CatBoost itself. A model with features that are no numbers takes
    one column per feature, texts for those."""

    name = "catboost"
    formats = ("catboost",)

    def versions(self) -> dict[str, str]:
        return {"catboost": catboost.__version__}

    def open(self, data: bytes, name: str, threads: int) -> Boosted:
        return open_booster(read_booster(data, name), threads)


def read_booster(data: bytes, name: str) -> catboost.CatBoost:
    """Read a model file.

    Raises:
        CorruptArtifact: it is none, or damaged.
    """
    if not data.startswith(_MAGIC):
        raise CorruptArtifact(f"'{name}' is no CatBoost model (.cbm)")
    if len(data) < _HEAD_BYTES + int.from_bytes(data[len(_MAGIC) : _HEAD_BYTES], "little"):
        raise CorruptArtifact(f"'{name}' is cut off")
    model = catboost.CatBoost()
    try:
        return model.load_model(blob=data)
    except (catboost.CatBoostError, ValueError, TypeError) as error:
        raise CorruptArtifact(f"'{name}' is no CatBoost model, or it is damaged: {error}") from error


def loss_of(model: catboost.CatBoost) -> str:
    """What it was trained for."""
    return str(model.get_all_params().get("loss_function", "")).partition(":")[0]


def columns_of(model: catboost.CatBoost) -> tuple[TensorSpec, ...]:
    """Its inputs."""
    names = [str(name) for name in model.feature_names_]
    texts = {*model.get_cat_feature_indices(), *model.get_text_feature_indices()}
    if not texts:
        return matrix_of(len(names), "FP32")
    return tuple(
        TensorSpec(name=name, datatype="BYTES" if i in texts else "FP32", shape=("batch", 1))
        for i, name in enumerate(names)
    )


def to_rows(inputs: Mapping[str, Array]) -> Any:
    """What CatBoost predicts on: the matrix, or rows of texts and numbers."""
    arrays = list(inputs.values())
    if len(arrays) == 1 and arrays[0].dtype.kind == "f":
        return arrays[0]
    return [list(row) for row in zip(*(a.reshape(-1).tolist() for a in arrays), strict=True)]


def open_booster(model: catboost.CatBoost, threads: int) -> Boosted:
    """A model as the backend runs it."""
    inputs, loss = columns_of(model), loss_of(model)
    classes = tuple(str(c) for c in model.classes_)
    kind = "Probability" if classes else "Exponent" if loss in _EXPONENTS else "RawFormulaVal"

    def answer(given: Mapping[str, Array]) -> dict[str, Array]:
        rows = to_rows({spec.name: given[spec.name] for spec in inputs})
        found = np.asarray(model.predict(rows, prediction_type=kind, thread_count=threads))
        return classify(found) if classes else regress(found)

    return Boosted(inputs, answer, classes if any(c != str(i) for i, c in enumerate(classes)) else ())
