"""CatBoost models on real tables: as ONNX with the library's own borders, else run by the library."""

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

catboost = pytest.importorskip("catboost", reason="needs pip install 'salver[boosting]'")

from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine  # noqa: E402  # after the check

WINE, CANCER, PATIENTS = (load(return_X_y=True) for load in (load_wine, load_breast_cancer, load_diabetes))
HOLES = np.where(np.random.default_rng(0).random(PATIENTS[0].shape) < 0.1, np.nan, PATIENTS[0])
QUICK: dict[str, Any] = {"iterations": 10, "verbose": False, "allow_writing_files": False, "thread_count": 1}


class TestCatboost(ImporterConformance):
    importer_name = "catboost"
    suffix = ".cbm"

    @pytest.fixture(params=["estimator", "model.cbm", "model.bin"])
    def source(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        estimator = catboost.CatBoostClassifier(**QUICK).fit(*WINE)
        if request.param == "estimator":
            return estimator
        estimator.save_model(str(tmp_path / request.param))
        return tmp_path / request.param

    @pytest.fixture
    def data(self) -> Dataset:
        return open_dataset((WINE[0][:100], WINE[1][:100]))


CONVERTED = {
    "two classes": (catboost.CatBoostClassifier(**QUICK), CANCER),
    "names": (catboost.CatBoostClassifier(**QUICK), (WINE[0], np.array(["a", "b", "c"])[WINE[1]])),
    "missing": (catboost.CatBoostRegressor(**QUICK), (HOLES, PATIENTS[1])),
    "missing above": (catboost.CatBoostRegressor(nan_mode="Max", **QUICK), (HOLES, PATIENTS[1])),
    "lossguide": (catboost.CatBoostClassifier(grow_policy="Lossguide", **QUICK), WINE),
    "depthwise": (catboost.CatBoostRegressor(grow_policy="Depthwise", **QUICK), PATIENTS),
    "counts": (catboost.CatBoostRegressor(loss_function="Poisson", **QUICK), PATIENTS),
    "one against all": (catboost.CatBoostClassifier(loss_function="MultiClassOneVsAll", **QUICK), WINE),
    "two targets": (
        catboost.CatBoostRegressor(loss_function="MultiRMSE", **QUICK),
        (PATIENTS[0], np.c_[PATIENTS[1], -PATIENTS[1]]),
    ),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_trees_become_onnx(tmp_path: Path, name: str) -> None:
    estimator, (x, y) = CONVERTED[name]
    estimator.fit(x, y)
    for data in ({"x": x}, None):
        imported = load_model(estimator, data=data, workdir=tmp_path)
        model = imported.model
        assert (model.format, model.signature.inputs[0].datatype) == ("onnx", "FP32"), model.notes
    if name == "names":
        with open_session(model) as session:
            label = session.run({"x": x.astype(np.float32)})["label"]
        assert (label == estimator.predict(x)[:, 0]).all()


def test_rows_on_a_border_and_just_beside_it_take_the_librarys_path(tmp_path: Path) -> None:
    estimator = catboost.CatBoostClassifier(**QUICK).fit(*CANCER)
    rows = []
    for feature, borders in estimator.get_borders().items():
        for border in np.array(borders[:3], np.float32):
            for value in (border, np.nextafter(border, np.float32(-np.inf)), np.nextafter(border, np.float32(np.inf))):
                row = CANCER[0][len(rows) % 500].astype(np.float32)
                row[int(feature)] = value
                rows.append(row)
    x = np.stack(rows)
    imported = load_model(estimator, workdir=tmp_path)
    with open_session(imported.model) as session:
        given = session.run({"x": x})["probabilities"]
    np.testing.assert_allclose(given, estimator.predict_proba(x), atol=2e-6)


def mixed() -> tuple[Any, Array]:
    colors = np.array(["red", "green", "blue"])[np.arange(178) % 3]
    table = [[str(c), float(v)] for c, v in zip(colors, WINE[0][:, 0], strict=True)]
    return table, WINE[0][:, 12] + (colors == "red") * 500


def test_texts_are_kept_for_catboost_itself(tmp_path: Path) -> None:
    table, y = mixed()
    estimator = catboost.CatBoostRegressor(cat_features=[0], **QUICK).fit(table, y)
    estimator.set_feature_names(["color", "alcohol"])
    data = {"color": np.array([row[0] for row in table], dtype=object), "alcohol": WINE[0][:, 0]}
    imported = load_model(estimator, data=data, workdir=tmp_path)
    assert imported.model.format == "catboost"
    assert [(s.name, s.datatype) for s in imported.model.signature.inputs] == [("color", "BYTES"), ("alcohol", "FP32")]
    assert "features that are categories or texts" in imported.model.notes[-1]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    catboost.CatBoostClassifier(**QUICK).fit(*WINE).save_model(str(tmp_path / "m.cbm"))
    whole = (tmp_path / "m.cbm").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], whole[:4], b"CBM2" + whole[4:]):
        (tmp_path / "m.cbm").write_bytes(content)
        with pytest.raises(CorruptArtifact, match=r"m\.cbm"):
            load_model(tmp_path / "m.cbm", workdir=tmp_path / "out")


def test_one_that_is_not_fitted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="CatBoostClassifier is not fitted"):
        load_model(catboost.CatBoostClassifier(), workdir=tmp_path)
