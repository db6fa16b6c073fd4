"""The scikit-learn backend passes the suite, and runs code only of those who are trusted."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from salver.backends import SessionOptions
from salver.core.errors import CorruptArtifact, InvalidArgument, PermissionDenied
from salver.core.model import Blob, Model
from salver.testing.backends import BackendConformance, Case

pytest.importorskip("sklearn", reason="needs pip install 'salver[sklearn]'")
skops_io = pytest.importorskip("skops.io", reason="needs pip install 'salver[sklearn]'")

from sklearn.datasets import load_iris  # noqa: E402  # after the check that it is installed
from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer  # noqa: E402

from salver.backends._sklearn import SklearnBackend, describe_estimator  # noqa: E402

TEXTS = ["good film", "bad film", "a good one", "a bad one"]


def save(estimator: Any, path: Path) -> Model:
    skops_io.dump(estimator, path)
    return Model(format="sklearn", signature=describe_estimator(estimator), blobs=(Blob.of(path),))


class TestSklearn(BackendConformance):
    backend = SklearnBackend

    @pytest.fixture
    def cases(self, tmp_path: Path) -> list[Case]:
        x, y = load_iris(return_X_y=True)
        knn = KNeighborsClassifier().fit(x, y)
        texts = make_pipeline(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3)), LogisticRegression())
        texts.fit(TEXTS, ["yes", "no", "yes", "no"])
        both = KNeighborsRegressor().fit(x, np.stack([y, -y], axis=1))
        rows = x[::40].copy()
        words = np.array(TEXTS, dtype=object)
        return [
            Case(
                model=save(knn, tmp_path / "knn.skops"),
                inputs={"x": rows},
                expected={"label": knn.predict(rows), "probabilities": knn.predict_proba(rows)},
            ),
            Case(
                model=save(texts, tmp_path / "texts.skops"),
                inputs={"text": words},
                expected={"label": texts.predict(words), "probabilities": texts.predict_proba(words)},
                atol=1e-12,
            ),
            Case(
                model=save(both, tmp_path / "both.skops"),
                inputs={"x": rows},
                expected={"prediction": both.predict(rows).astype(np.float64)},
            ),
        ]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    x, y = load_iris(return_X_y=True)
    return save(KNeighborsClassifier().fit(x, y), tmp_path / "m.skops")


def test_a_pickle_is_loaded_only_when_it_is_trusted(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "m.pkl"
    x, y = load_iris(return_X_y=True)
    path.write_bytes(pickle.dumps(KNeighborsClassifier().fit(x, y)))
    pickled = msgspec.structs.replace(model, blobs=(Blob.of(path),))
    with pytest.raises(PermissionDenied, match=r"'m\.pkl' holds a pickle: loading it runs code"):
        SklearnBackend().load(pickled, SessionOptions())
    trusted = msgspec.structs.replace(pickled, trusted=True)
    with SklearnBackend().load(trusted, SessionOptions()) as session:
        assert (session.run({"x": x})["label"] == y).mean() > 0.9


def test_functions_in_skops_are_called_only_when_they_are_trusted(tmp_path: Path) -> None:
    x, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(FunctionTransformer(_halve), LogisticRegression(max_iter=1000)).fit(x, y)
    path = tmp_path / "m.skops"
    skops_io.dump(pipeline, path)
    with pytest.raises(PermissionDenied, match="_halve"):
        SklearnBackend().describe(Blob.of(path))


def _halve(x: Any) -> Any:
    return x / 2


def test_what_the_model_refuses_is_the_callers_fault(tmp_path: Path) -> None:
    x, y = load_iris(return_X_y=True)
    model = save(LogisticRegression(max_iter=1000).fit(x, y), tmp_path / "m.skops")
    with (
        SklearnBackend().load(model, SessionOptions()) as session,
        pytest.raises(InvalidArgument, match="the model refused its inputs: Input X contains NaN"),
    ):
        session.run({"x": np.full((1, 4), np.nan)})


def test_another_object_than_an_estimator_is_refused(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "list.skops"
    skops_io.dump([1, 2], path)
    with pytest.raises(CorruptArtifact, match="holds a list, expected a scikit-learn estimator"):
        SklearnBackend().load(msgspec.structs.replace(model, blobs=(Blob.of(path),)), SessionOptions())
