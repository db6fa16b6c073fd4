"""LightGBM models on real tables: as ONNX with the library's own borders, else run by the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.backends import open_session
from salver.builder.importers import load_model
from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import CorruptArtifact, InvalidArgument
from salver.datasets import open_dataset
from salver.testing.importers import ImporterConformance

lightgbm = pytest.importorskip("lightgbm", reason="needs pip install 'salver[boosting]'")

from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine  # noqa: E402  # after the check

WINE, CANCER, PATIENTS = (load(return_X_y=True) for load in (load_wine, load_breast_cancer, load_diabetes))
HOLES = np.where(np.random.default_rng(0).random(PATIENTS[0].shape) < 0.1, np.nan, PATIENTS[0])
QUICK: dict[str, Any] = {"n_estimators": 10, "verbose": -1, "n_jobs": 1}


class TestLightgbm(ImporterConformance):
    importer_name = "lightgbm"
    suffix = ".txt"

    @pytest.fixture(params=["estimator", "model.txt", "model.bin"])
    def source(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        estimator = lightgbm.LGBMClassifier(**QUICK).fit(*WINE)
        if request.param == "estimator":
            return estimator
        estimator.booster_.save_model(tmp_path / request.param)
        return tmp_path / request.param

    @pytest.fixture
    def data(self) -> Dataset:
        return open_dataset((WINE[0][:100], WINE[1][:100]))


CONVERTED = {
    "two classes": (lightgbm.LGBMClassifier(**QUICK), CANCER),
    "names": (lightgbm.LGBMClassifier(**QUICK), (CANCER[0], np.array(["malign", "benign"])[CANCER[1]])),
    "numbers": (lightgbm.LGBMClassifier(**QUICK), (WINE[0], WINE[1] * 2 + 3)),
    "missing": (lightgbm.LGBMRegressor(**QUICK), (HOLES, PATIENTS[1])),
    "zero as missing": (
        lightgbm.LGBMClassifier(zero_as_missing=True, **QUICK),
        (np.where(np.isnan(HOLES), 0.0, HOLES), PATIENTS[1] > 140),
    ),
    "forest": (
        lightgbm.LGBMRegressor(boosting_type="rf", bagging_freq=1, bagging_fraction=0.5, **QUICK),
        PATIENTS,
    ),
    "tweedie": (lightgbm.LGBMRegressor(objective="tweedie", **QUICK), PATIENTS),
    "one against all": (lightgbm.LGBMClassifier(objective="multiclassova", **QUICK), WINE),
    "dart": (lightgbm.LGBMRegressor(boosting_type="dart", **QUICK), PATIENTS),
}


@pytest.mark.parametrize("name", CONVERTED)
@pytest.mark.parametrize("given", ["data", "nothing"])
def test_trees_become_onnx(tmp_path: Path, name: str, given: str) -> None:
    estimator, (x, y) = CONVERTED[name]
    estimator.fit(x, y)
    imported = load_model(estimator, data={"x": x} if given == "data" else None, workdir=tmp_path)
    assert imported.model.format == "onnx", imported.model.notes
    if name in ("names", "numbers"):
        assert imported.model.signature.output("probabilities").labels == tuple(str(c) for c in estimator.classes_)
        with open_session(imported.model) as session:
            label = session.run({"x": x.astype(imported.model.signature.inputs[0].dtype)})["label"]
        assert (label == estimator.predict(x)).all()


def test_thresholds_of_fp64_are_not_crossed_by_rounding(tmp_path: Path) -> None:
    estimator = lightgbm.LGBMClassifier(**QUICK).fit(*CANCER)
    x = on_borders(estimator.booster_.trees_to_dataframe(), CANCER[0])
    imported = load_model(estimator, data={"x": x}, workdir=tmp_path)
    assert imported.model.signature.inputs[0].datatype == "FP64"
    assert "numbers are taken as FP64: with FP32: output 'probabilities'" in imported.model.notes[0]
    with open_session(imported.model) as session:
        np.testing.assert_allclose(session.run({"x": x})["probabilities"], estimator.predict_proba(x), atol=2e-6)


def test_rows_of_fp32_take_the_librarys_path_at_every_border(tmp_path: Path) -> None:
    estimator = lightgbm.LGBMClassifier(**QUICK).fit(*CANCER)
    x = on_borders(estimator.booster_.trees_to_dataframe(), CANCER[0]).astype(np.float32)
    imported = load_model(estimator, data={"x": x}, workdir=tmp_path)
    assert imported.model.signature.inputs[0].datatype == "FP32"
    with open_session(imported.model) as session:
        np.testing.assert_allclose(session.run({"x": x})["probabilities"], estimator.predict_proba(x), atol=2e-6)


def on_borders(table: Any, base: Array) -> Array:
    """Rows with one value at a border, just below or above it, or missing."""
    splits = table[table.split_feature.notna()].iloc[:60]
    rows = []
    for feature, border in zip(splits.split_feature.str[7:].astype(int), splits.threshold.astype(float), strict=True):
        for value in (border, np.nextafter(border, -np.inf), np.nextafter(border, np.inf), np.nan):
            row = base[len(rows) % 500].copy()
            row[feature] = value
            rows.append(row)
    return np.stack(rows)


def test_categories_become_onnx(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    x = np.c_[random.integers(0, 12, 500), random.integers(0, 40, 500), random.normal(size=(500, 2))].astype(float)
    y = ((x[:, 0] % 3 == 1) ^ (x[:, 1] % 5 < 2) ^ (x[:, 2] > 0)).astype(int)
    settings = {"min_child_samples": 5, "min_data_per_group": 5, "cat_smooth": 1, **QUICK}
    estimator = lightgbm.LGBMClassifier(**settings).fit(x, y, categorical_feature=[0, 1])
    asked = np.concatenate([x, x + 0.5, x - 0.5, -x, np.where(random.random(x.shape) < 0.2, np.nan, x), x * 1000])
    asked = asked.astype(np.float32).astype(np.float64)
    imported = load_model(estimator, data={"x": asked}, workdir=tmp_path)
    assert (imported.model.format, imported.model.signature.inputs[0].datatype) == ("onnx", "FP32")
    with open_session(imported.model) as session:
        given = session.run({"x": asked.astype(imported.model.signature.inputs[0].dtype)})["probabilities"]
    np.testing.assert_allclose(given, estimator.predict_proba(asked), atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"linear_tree": True}, "linear trees"),
        ({"reg_sqrt": True, "objective": "regression"}, "objective of square roots"),
        ({"objective": "cross_entropy_lambda"}, "objective 'cross_entropy_lambda'"),
    ],
)
def test_what_has_no_graph_is_run_by_lightgbm(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    x, y = PATIENTS
    estimator = lightgbm.LGBMRegressor(**settings, **QUICK).fit(x, y / 400)
    imported = load_model(estimator, data={"x": x}, workdir=tmp_path)
    assert imported.model.format == "lightgbm"
    assert why in imported.model.notes[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["model.txt"]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_damaged_files_are_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "m.txt"
    whole = lightgbm.LGBMClassifier(**QUICK).fit(*WINE).booster_.model_to_string()
    path.write_text(whole[: int(len(whole[: whole.index("end of trees")]) * share)])
    with pytest.raises(CorruptArtifact, match=r"m\.txt"):
        load_model(path, workdir=tmp_path / "out")


def test_one_that_is_not_fitted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="LGBMClassifier is not fitted"):
        load_model(lightgbm.LGBMClassifier(), workdir=tmp_path)
