"""The CatBoost backend passes the suite, also with features that are texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salver.core.model import Blob, Model
from salver.testing.backends import BackendConformance, Case

catboost = pytest.importorskip("catboost", reason="needs pip install 'salver[boosting]'")

from sklearn.datasets import load_wine  # noqa: E402  # after the check

from salver.backends._catboost import CatboostBackend  # noqa: E402

QUICK = {"iterations": 5, "verbose": False, "allow_writing_files": False, "thread_count": 1}


class TestCatboost(BackendConformance):
    backend = CatboostBackend

    @pytest.fixture
    def cases(self, tmp_path: Path) -> list[Case]:
        wine, y = load_wine(return_X_y=True)
        rows = wine[::50].astype(np.float32)
        classifier = catboost.CatBoostClassifier(**QUICK).fit(wine, y)
        classifier.save_model(str(tmp_path / "c.cbm"))
        colors = np.array(["red", "green", "blue"], dtype=object)[np.arange(len(y)) % 3]
        table = [[str(c), float(v)] for c, v in zip(colors, wine[:, 0], strict=True)]
        mixed = catboost.CatBoostRegressor(cat_features=[0], **QUICK).fit(table, wine[:, 12] + (colors == "red") * 500)
        mixed.set_feature_names(["color", "alcohol"])
        mixed.save_model(str(tmp_path / "m.cbm"))
        return [
            Case(
                model=_model(tmp_path / "c.cbm"),
                inputs={"x": rows},
                expected={"label": classifier.predict(rows)[:, 0], "probabilities": classifier.predict_proba(rows)},
            ),
            Case(
                model=_model(tmp_path / "m.cbm"),
                inputs={
                    "color": colors[:4, None],
                    "alcohol": wine[:4, :1].astype(np.float32),
                },
                expected={"prediction": mixed.predict([row[:] for row in table[:4]])[:, None]},
                atol=1e-9,
            ),
        ]


def _model(path: Path) -> Model:
    blob = Blob.of(path)
    return Model(format="catboost", signature=CatboostBackend().describe(blob), blobs=(blob,))
