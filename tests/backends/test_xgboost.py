"""The XGBoost backend passes the suite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salver.core.model import Blob, Model
from salver.testing.backends import BackendConformance, Case

xgboost = pytest.importorskip("xgboost", reason="needs pip install 'salver[boosting]'")

from sklearn.datasets import load_diabetes, load_wine  # noqa: E402  # after the check

from salver.backends._xgboost import XgboostBackend  # noqa: E402


class TestXgboost(BackendConformance):
    backend = XgboostBackend

    @pytest.fixture
    def cases(self, tmp_path: Path) -> list[Case]:
        wine, y = load_wine(return_X_y=True)
        rows = wine[::50].astype(np.float32)
        rows[1, 3] = np.nan
        classifier = xgboost.XGBClassifier(n_jobs=1, n_estimators=5).fit(wine, y)
        classifier.save_model(tmp_path / "c.ubj")
        table, target = load_diabetes(return_X_y=True)
        patients = table[:4].astype(np.float32)
        linear = xgboost.XGBRegressor(n_jobs=1, booster="gblinear", n_estimators=5).fit(table, target)
        linear.save_model(tmp_path / "l.json")
        return [
            Case(
                model=_model(tmp_path / "c.ubj"),
                inputs={"x": rows},
                expected={"label": classifier.predict(rows), "probabilities": classifier.predict_proba(rows)},
            ),
            Case(
                model=_model(tmp_path / "l.json"),
                inputs={"x": patients},
                expected={"prediction": linear.predict(patients)[:, None]},
            ),
        ]


def _model(path: Path) -> Model:
    blob = Blob.of(path)
    return Model(format="xgboost", signature=XgboostBackend().describe(blob), blobs=(blob,))
