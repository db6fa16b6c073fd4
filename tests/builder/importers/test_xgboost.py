"""XGBoost models on real tables: as ONNX with the library's own borders, else run by the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.backends import open_session
from salver.builder.importers import ImportOptions, load_model
from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import CorruptArtifact, InvalidArgument, Unimplemented
from salver.datasets import open_dataset
from salver.testing.importers import ImporterConformance

xgboost = pytest.importorskip("xgboost", reason="needs pip install 'salver[boosting]'")

from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine  # noqa: E402  # after the check

WINE, CANCER, PATIENTS = (load(return_X_y=True) for load in (load_wine, load_breast_cancer, load_diabetes))


class TestXgboost(ImporterConformance):
    importer_name = "xgboost"
    suffix = ".ubj"
    options = ImportOptions()

    @pytest.fixture(params=["estimator", ".ubj", ".json", ".model"])
    def source(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        estimator = xgboost.XGBClassifier(n_jobs=1, n_estimators=5).fit(*WINE)
        if request.param == "estimator":
            return estimator
        raw = estimator.get_booster().save_raw("json" if request.param == ".json" else "ubj")
        path = tmp_path / f"model{request.param}"
        path.write_bytes(raw)
        return path

    @pytest.fixture
    def data(self) -> Dataset:
        return open_dataset((WINE[0][:100], WINE[1][:100]))


def holes(x: Array) -> Array:
    """A table in which values are missing."""
    return np.where(np.random.default_rng(0).random(x.shape) < 0.1, np.nan, x)


def categories() -> tuple[Array, Array]:
    random = np.random.default_rng(1)
    x = np.c_[random.integers(0, 12, 500), random.integers(0, 40, 500), random.normal(size=(500, 2))].astype(float)
    x[::17, 0] = np.nan
    return x, ((np.nan_to_num(x[:, 0]) % 3 == 1) ^ (x[:, 1] % 5 < 2) ^ (x[:, 2] > 0)).astype(int)


CONVERTED = {
    "two classes": (xgboost.XGBClassifier(n_jobs=1, n_estimators=20), CANCER),
    "missing": (xgboost.XGBClassifier(n_jobs=1, n_estimators=20), (holes(WINE[0]), WINE[1])),
    "categories": (
        xgboost.XGBClassifier(
            n_jobs=1, n_estimators=20, feature_types=["c", "c", "q", "q"], enable_categorical=True, max_cat_to_onehot=2
        ),
        categories(),
    ),
    "regression": (xgboost.XGBRegressor(n_jobs=1, n_estimators=20), PATIENTS),
    "counts": (xgboost.XGBRegressor(n_jobs=1, objective="count:poisson", n_estimators=5), PATIENTS),
    "dart": (xgboost.XGBRegressor(n_jobs=1, booster="dart", n_estimators=10, rate_drop=0.5), PATIENTS),
    "forest": (xgboost.XGBRFClassifier(n_jobs=1, n_estimators=10), CANCER),
    "two targets": (xgboost.XGBRegressor(n_jobs=1, n_estimators=5), (PATIENTS[0], np.c_[PATIENTS[1], -PATIENTS[1]])),
    "ranking": (xgboost.XGBRanker(n_jobs=1, n_estimators=5), WINE),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_trees_become_onnx(tmp_path: Path, name: str) -> None:
    estimator, (x, y) = CONVERTED[name]
    extra = {"qid": np.arange(len(y)) // 20} if name == "ranking" else {}
    estimator.fit(x, y, **extra)
    imported = load_model(estimator, data={"x": x}, workdir=tmp_path)
    assert (imported.model.format, imported.model.signature.inputs[0].datatype) == ("onnx", "FP32"), (
        imported.model.notes
    )
    assert all(o.label_agreement == 1.0 for o in imported.parity.outputs)


def test_rows_on_a_border_and_just_beside_it_take_the_librarys_path(tmp_path: Path) -> None:
    estimator = xgboost.XGBClassifier(n_jobs=1, n_estimators=20).fit(*CANCER)
    table = estimator.get_booster().trees_to_dataframe()
    splits = table[table.Feature != "Leaf"].iloc[:60]
    rows = []
    for feature, border in zip(splits.Feature.str[1:].astype(int), splits.Split.astype(np.float32), strict=True):
        for value in (
            border,
            np.nextafter(border, np.float32(-np.inf)),
            np.nextafter(border, np.float32(np.inf)),
            np.nan,
        ):
            row = CANCER[0][len(rows) % 500].astype(np.float32)
            row[feature] = value
            rows.append(row)
    x = np.stack(rows)
    imported = load_model(estimator, workdir=tmp_path)
    assert (imported.model.format, imported.model.signature.inputs[0].datatype) == ("onnx", "FP32")
    with open_session(imported.model) as session:
        given = session.run({"x": x})["probabilities"]
    np.testing.assert_allclose(given, estimator.predict_proba(x), atol=2e-6)


@pytest.mark.parametrize(
    ("estimator", "y", "why"),
    [
        (xgboost.XGBRegressor(n_jobs=1, booster="gblinear"), PATIENTS[1], "booster 'gblinear' has no trees"),
        (
            xgboost.XGBRegressor(n_jobs=1, n_estimators=3, multi_strategy="multi_output_tree"),
            np.c_[PATIENTS[1], -PATIENTS[1]],
            "several outputs in a leaf",
        ),
        (
            xgboost.XGBClassifier(n_jobs=1, n_estimators=3, objective="binary:hinge"),
            PATIENTS[1] > 100,
            "objective 'binary:hinge'",
        ),
    ],
    ids=["linear", "vectors", "hinge"],
)
def test_what_has_no_graph_is_run_by_xgboost(tmp_path: Path, estimator: Any, y: Array, why: str) -> None:
    estimator.fit(PATIENTS[0], y)
    imported = load_model(estimator.get_booster(), data={"x": PATIENTS[0]}, workdir=tmp_path)
    assert imported.model.format == "xgboost"
    assert why in imported.model.notes[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["model.ubj"]
    assert all(o.max_abs == 0.0 for o in imported.parity.outputs)


def test_training_that_was_stopped_early_ends_with_its_best_round(tmp_path: Path) -> None:
    x, y = CANCER
    estimator = xgboost.XGBClassifier(n_jobs=1, n_estimators=200, early_stopping_rounds=2, learning_rate=1.0)
    estimator.fit(x[::2], y[::2], eval_set=[(x[1::2], y[1::2])], verbose=False)
    path = tmp_path / "m.ubj"
    estimator.save_model(path)
    for source in (estimator, path):
        imported = load_model(source, data={"x": x}, workdir=tmp_path / "out")
        with open_session(imported.model) as session:
            given = session.run({"x": x.astype(np.float32)})["probabilities"]
        np.testing.assert_allclose(given, estimator.predict_proba(x), atol=2e-6)


def test_a_number_that_stands_for_missing_values_is_refused(tmp_path: Path) -> None:
    """Its file would not say so."""
    estimator = xgboost.XGBClassifier(n_jobs=1, n_estimators=3, missing=-999.0).fit(*WINE)
    with pytest.raises(Unimplemented, match=r"takes -999 for a missing value, .* fit it with NaN"):
        load_model(estimator, workdir=tmp_path)


@pytest.mark.parametrize("name", ["m.ubj", "m.json", "m.bin"])
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    whole = bytes(xgboost.XGBClassifier(n_jobs=1, n_estimators=5).fit(*WINE).get_booster().save_raw("json"))
    path = tmp_path / name
    for content in (whole[: len(whole) // 2], whole[:-1], whole[:600]):
        path.write_bytes(content)
        with pytest.raises(CorruptArtifact, match=name):
            load_model(path, workdir=tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", "notes.txt", "data.bin", "old.model"])
def test_files_of_the_same_suffix_that_are_no_models_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"layers": 3}' if name.endswith("json") else b"\x00\x01 nothing")
    with pytest.raises(InvalidArgument, match=f"no importer reads '{name}'"):
        load_model(path, workdir=tmp_path / "out")


def test_columns_in_another_order_are_refused(tmp_path: Path) -> None:
    x, y = WINE
    booster = xgboost.train({}, xgboost.DMatrix(x[:, :2], y, feature_names=["alcohol", "acid"]), 3)
    with pytest.raises(InvalidArgument, match="column 1 is 'acid', the model was fitted with 'alcohol' there"):
        load_model(booster, data={"acid": x[:, 1], "alcohol": x[:, 0]}, workdir=tmp_path)


def test_one_that_is_not_fitted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="XGBClassifier is not fitted"):
        load_model(xgboost.XGBClassifier(n_jobs=1), workdir=tmp_path)
