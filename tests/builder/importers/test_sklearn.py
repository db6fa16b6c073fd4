"""scikit-learn models, on the data sets that come with it and a set of real texts."""

from __future__ import annotations

import functools
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.backends import open_session
from salver.builder.importers import ImportOptions, load_model
from salver.core.dataset import Dataset
from salver.core.errors import (
    CorruptArtifact,
    FailedPrecondition,
    InvalidArgument,
    ParityFailed,
    PermissionDenied,
    Unimplemented,
    UntrustedPickle,
)
from salver.datasets import bind, open_dataset
from salver.testing.importers import ImporterConformance

sklearn = pytest.importorskip("sklearn")
joblib = pytest.importorskip("joblib")
pd = pytest.importorskip("pandas")
threadpoolctl = pytest.importorskip("threadpoolctl")
skops_io = pytest.importorskip("skops.io")
pytest.importorskip("skl2onnx")
onnx = pytest.importorskip("onnx")

from sklearn.calibration import CalibratedClassifierCV  # noqa: E402  # after the check that it is installed
from sklearn.cluster import Birch, KMeans  # noqa: E402
from sklearn.compose import ColumnTransformer  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris  # noqa: E402
from sklearn.decomposition import NMF, PCA  # noqa: E402
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis  # noqa: E402
from sklearn.ensemble import (  # noqa: E402
    AdaBoostClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer  # noqa: E402
from sklearn.impute import SimpleImputer  # noqa: E402
from sklearn.linear_model import ElasticNet, LinearRegression, LogisticRegression, RidgeClassifier  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier  # noqa: E402
from sklearn.naive_bayes import GaussianNB, MultinomialNB  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestCentroid  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline, make_union  # noqa: E402
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler  # noqa: E402
from sklearn.svm import SVC, SVR, LinearSVC  # noqa: E402
from sklearn.tree import DecisionTreeClassifier  # noqa: E402

from salver.backends.sklearn_inputs import Column  # noqa: E402
from salver.builder.importers.sklearn_convert import convert  # noqa: E402

PAGE = Path(__file__).parents[3] / "docs" / "importers" / "sklearn.md"
SENTIMENT = Path(__file__).parents[2] / "data" / "sentiment.jsonl.gz"
WORDS = "text: TfidfVectorizer, LogisticRegression"
CHARACTERS = "text: TfidfVectorizer of characters, LogisticRegression"
MIXED = "mixed columns: ColumnTransformer of numbers and OneHotEncoder, LogisticRegression"
IRIS_NAMES = np.array(["setosa", "versicolor", "virginica"])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine make small fits slow."""
    with threadpoolctl.threadpool_limits(1):
        yield


@functools.cache
def texts() -> tuple[list[str], list[str]]:
    batch = next(iter(open_dataset(SENTIMENT).batches(600)))
    assert batch.labels is not None
    return batch.inputs["text"].tolist(), ["positive" if v else "negative" for v in batch.labels]


@pytest.fixture(scope="module")
def text_pipeline() -> Any:
    x, y = texts()
    return make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression()).fit(x, y)


@functools.cache
def scaled_classifier() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=50, tol=0.1)).fit(*load_digits(return_X_y=True))


class TestSklearn(ImporterConformance):
    importer_name = "sklearn"
    suffix = ".skops"
    options = ImportOptions(trust_pickle=True)

    @pytest.fixture(params=["estimator", ".skops", ".pkl", ".joblib"])
    def source(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        estimator = scaled_classifier()
        path = tmp_path / f"model{request.param}"
        if request.param == ".skops":
            skops_io.dump(estimator, path)
        elif request.param == ".pkl":
            path.write_bytes(pickle.dumps(estimator))
        elif request.param == ".joblib":
            joblib.dump(estimator, path)
        return estimator if request.param == "estimator" else path

    @pytest.fixture
    def data(self) -> Dataset:
        x, y = load_digits(return_X_y=True)
        return open_dataset((x[:100], y[:100]))


CLASSIFIERS = [
    make_pipeline(StandardScaler(), LogisticRegression()),
    make_pipeline(StandardScaler(), RandomForestClassifier(10, random_state=0)),
    make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=5)),
    make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=200, tol=1e-2)),
    VotingClassifier([("a", LogisticRegression(max_iter=5000))], voting="soft"),
    HistGradientBoostingClassifier(max_iter=5),
]


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda e: str(e)[:60])
@pytest.mark.parametrize("names", [None, IRIS_NAMES])
def test_classifiers_give_label_and_probabilities(tmp_path: Path, estimator: Any, names: Any) -> None:
    x, y = load_iris(return_X_y=True)
    y = y if names is None else names[y]
    imported = load_model(estimator.fit(x, y), data=(x, y), workdir=tmp_path)
    signature = imported.model.signature
    assert signature.output_names == ("label", "probabilities")
    assert signature.output("probabilities").labels == (() if names is None else tuple(names))
    with open_session(imported.model) as session:
        got = session.run(next(iter(bind(open_dataset((x, y)), signature).batches(150))).inputs)
    assert (got["label"] == estimator.predict(x)).mean() == 1.0


@pytest.mark.parametrize("estimator", [LinearSVC(), SVC(), RidgeClassifier()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("data", [load_iris, load_breast_cancer], ids=["three classes", "two classes"])
def test_classifiers_without_probabilities_give_scores(tmp_path: Path, estimator: Any, data: Any) -> None:
    x, y = data(return_X_y=True)
    imported = load_model(make_pipeline(StandardScaler(), estimator).fit(x, y), data=(x, y), workdir=tmp_path)
    scores = imported.model.signature.output("scores")
    assert scores.shape == ("batch", len(set(y)))


def test_a_tree_behind_a_scaler_is_imported_in_the_precision_it_needs(tmp_path: Path) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    estimator = make_pipeline(StandardScaler(), HistGradientBoostingClassifier(max_iter=20)).fit(x, y)
    imported = load_model(estimator, data=(x, y), workdir=tmp_path)
    assert imported.model.signature.inputs[0].datatype == "FP64"
    assert "numbers are taken as FP64: with FP32: output 'probabilities'" in imported.model.notes[0]


@pytest.mark.parametrize("tree", [RandomForestClassifier(20), GradientBoostingClassifier(n_estimators=5)])
def test_trees_taken_as_fp64_compare_as_scikit_learn_does(tmp_path: Path, tree: Any) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    estimator = make_pipeline(StandardScaler(), tree).fit(x, y)
    path = tmp_path / "m.onnx"
    path.write_bytes(convert(estimator, [Column("x", "FP64", (30,), "matrix")]).SerializeToString())
    imported = load_model(path, workdir=tmp_path / "out")
    with open_session(imported.model) as session:
        got = session.run({"x": x})["probabilities"]
    np.testing.assert_allclose(got, estimator.predict_proba(x), atol=1e-6)


@pytest.mark.parametrize(
    "estimator",
    [LinearRegression(), RandomForestRegressor(5), HistGradientBoostingRegressor(max_iter=5)],
    ids=lambda e: type(e).__name__,
)
def test_regressors_give_a_prediction(tmp_path: Path, estimator: Any) -> None:
    x, y = load_diabetes(return_X_y=True)
    imported = load_model(estimator.fit(x, y), data=(x, y), workdir=tmp_path)
    assert [(o.name, o.shape) for o in imported.model.signature.outputs] == [("prediction", ("batch", 1))]


@pytest.mark.parametrize(
    ("estimator", "outputs"),
    [
        (KMeans(3, n_init=1), ("label", "distances")),
        (IsolationForest(n_estimators=5), ("label", "scores")),
        (PCA(2), ("transformed",)),
    ],
    ids=lambda e: type(e).__name__,
)
def test_clusterers_detectors_and_transformers(tmp_path: Path, estimator: Any, outputs: tuple[str, ...]) -> None:
    x, _ = load_iris(return_X_y=True)
    imported = load_model(estimator.fit(x), data={"x": x}, workdir=tmp_path)
    assert imported.model.signature.output_names == outputs


# --- text


def test_a_text_pipeline_takes_strings_and_answers_class_names(tmp_path: Path, text_pipeline: Any) -> None:
    imported = load_model(text_pipeline, data=SENTIMENT, workdir=tmp_path)
    assert imported.model.format == told()[WORDS]
    signature = imported.model.signature
    assert [(s.name, s.datatype, s.shape) for s in signature.inputs] == [("text", "BYTES", ("batch",))]
    assert signature.output("probabilities").labels == ("negative", "positive")
    x, _ = texts()
    with open_session(imported.model) as session:
        got = session.run({"text": np.array(x, dtype=object)})["label"]
    assert (got == text_pipeline.predict(x)).mean() == 1.0


@pytest.mark.parametrize(
    "pipeline",
    [
        make_pipeline(CountVectorizer(), MultinomialNB()),
        make_pipeline(TfidfVectorizer(stop_words="english"), LinearSVC()),
        make_pipeline(make_union(TfidfVectorizer(), CountVectorizer(ngram_range=(2, 2))), LogisticRegression()),
    ],
    ids=["counts", "stop words", "union"],
)
def test_other_text_pipelines(tmp_path: Path, pipeline: Any) -> None:
    x, y = texts()
    assert load_model(pipeline.fit(x, y), data=SENTIMENT, workdir=tmp_path).parity.examples == 256


RUN = """
import locale, os, sys
import onnxruntime
try:
    locale.setlocale(locale.LC_ALL, "en_US.UTF-8")
    sys.exit("the locale is there")
except locale.Error:
    pass
for path in sys.argv[1:]:
    try:
        print(onnxruntime.InferenceSession(path).run(["label"], {"text": ["a bad film", "good"]})[0].tolist())
    except Exception as error:
        print(repr(error))
"""


def test_a_text_graph_runs_where_there_is_no_locale_but_c(tmp_path: Path, text_pipeline: Any) -> None:
    path = load_model(text_pipeline, data=SENTIMENT, workdir=tmp_path).model.path
    usual = tmp_path / "usual.onnx"  # what the converter writes when it is not told otherwise
    graph = onnx.load(path)
    (given,) = [a for node in graph.graph.node for a in node.attribute if a.name == "locale"]
    given.s = b"en_US.UTF-8"
    onnx.save(graph, usual)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "LOCPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path), str(usual)], env=environment, capture_output=True, text=True, check=True
    )
    answers, refusal = done.stdout.splitlines()
    assert answers == str(text_pipeline.predict(["a bad film", "good"]).tolist())
    assert "Failed to construct locale" in refusal


ROUTED = {
    "stop words and bigrams": TfidfVectorizer(ngram_range=(1, 2), stop_words="english"),
    "sublinear": TfidfVectorizer(sublinear_tf=True),
    "char": TfidfVectorizer(analyzer="char", ngram_range=(2, 3)),
    "char_wb": TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3)),
    "accents": TfidfVectorizer(strip_accents="unicode"),
    "hashes": HashingVectorizer(n_features=256),
}


@pytest.mark.parametrize("name", ROUTED)
def test_text_steps_that_the_converter_gets_wrong_or_lacks_are_run_by_scikit_learn(tmp_path: Path, name: str) -> None:
    x, y = texts()
    pipeline = make_pipeline(ROUTED[name], LogisticRegression()).fit(x, y)
    imported = load_model(pipeline, data=SENTIMENT, workdir=tmp_path)
    model = imported.model
    if model.format == "sklearn":
        assert (
            "served natively, by the framework of format 'sklearn' itself, and not optimized: with FP32"
            in model.notes[-1]
        )
        assert [p.name for p in tmp_path.iterdir()] == ["model.skops"]
    if name.startswith("char"):
        assert model.format == told()[CHARACTERS]
    assert model.signature.output("probabilities").labels == ("negative", "positive")
    with open_session(model) as session:
        given = session.run({"text": np.array(x, dtype=object)})["label"]
    assert (given == pipeline.predict(x)).all()


def test_functions_before_a_vectorizer_take_texts(tmp_path: Path) -> None:
    x, y = texts()
    pipeline = make_pipeline(FunctionTransformer(upper), TfidfVectorizer(), LogisticRegression()).fit(x, y)
    imported = load_model(pipeline, data=SENTIMENT, workdir=tmp_path)
    assert (imported.model.format, imported.model.trusted) == ("sklearn", True)
    assert [(s.name, s.datatype) for s in imported.model.signature.inputs] == [("text", "BYTES")]


def upper(values: Any) -> Any:
    return [value.upper() for value in values]


# --- tables


def table() -> tuple[Any, Any]:
    x, y = load_iris(return_X_y=True)
    colors = np.array(["red", "green", "blue"])[np.arange(150) % 3]
    frame = {"length": x[:, 0], "width": x[:, 1], "color": colors, "count": np.arange(150) % 5, "unused": x[:, 3]}
    return pd.DataFrame(frame), IRIS_NAMES[y]


def table_pipeline() -> Any:
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    steps = [
        ("numbers", numbers, ["length", "width"]),
        ("words", OneHotEncoder(handle_unknown="ignore"), ["color"]),
        ("rest", "passthrough", ["count"]),
    ]
    return make_pipeline(ColumnTransformer(steps), LogisticRegression(max_iter=1000))


@pytest.mark.parametrize("with_data", [True, False])
def test_a_column_transformer_takes_one_input_per_column(tmp_path: Path, with_data: bool) -> None:
    frame, y = table()
    data = {name: frame[name].to_numpy() for name in frame} if with_data else None
    imported = load_model(table_pipeline().fit(frame, y), data=data, workdir=tmp_path)
    assert imported.model.format == told()[MIXED]
    assert {s.name: s.datatype for s in imported.model.signature.inputs} == {
        "length": "FP32",
        "width": "FP32",
        "color": "BYTES",
        "count": "FP32",
    }


def test_columns_in_another_order_than_the_models_are_refused(tmp_path: Path) -> None:
    frame, y = table()
    model = LogisticRegression(max_iter=1000).fit(frame[["length", "width", "count"]], y)
    data = {name: frame[name].to_numpy() for name in ("width", "length", "count")}
    with pytest.raises(InvalidArgument, match="column 1 is 'width', the model was fitted with 'length' there"):
        load_model(model, data=data, workdir=tmp_path)
    data = {name: frame[name].to_numpy() for name in ("length", "width", "count")}
    assert load_model(model, data=data, workdir=tmp_path).model.signature.inputs[0].shape == ("batch", 3)


def test_a_search_is_what_it_found(tmp_path: Path) -> None:
    x, y = texts()
    search = GridSearchCV(
        make_pipeline(TfidfVectorizer(), LogisticRegression()), {"logisticregression__C": [1, 9]}, cv=2
    )
    imported = load_model(search.fit(x, y), data=SENTIMENT, workdir=tmp_path)
    assert imported.model.format == "onnx", imported.model.notes
    assert imported.model.signature.output("probabilities").labels == ("negative", "positive")


def test_values_are_filled_in_before_trees_that_need_fp64(tmp_path: Path) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    holes = np.where(np.random.default_rng(0).random(x.shape) < 0.1, np.nan, x)
    trees = HistGradientBoostingClassifier(max_iter=20)
    pipeline = make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), trees).fit(holes, y)
    model = load_model(pipeline, data={"x": holes}, workdir=tmp_path).model
    assert (model.format, model.signature.inputs[0].datatype) == ("onnx", "FP64"), model.notes
    np.testing.assert_allclose(answer(model, holes)["probabilities"], pipeline.predict_proba(holes), atol=1e-6)


# --- what is refused


class Bomb:
    """A pickle that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".joblib", ".cloudpickle", ".dill"])
def test_a_tampered_pickle_is_never_run(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / f"m{suffix}"
    model = LogisticRegression(max_iter=1000).fit(*load_iris(return_X_y=True))
    model.extra = Bomb(tmp_path / "ran")
    joblib.dump(model, path)
    with pytest.raises(UntrustedPickle, match=r"trust_pickle[\s\S]*posix\.system: and call it; DANGEROUS"):
        load_model(path, workdir=tmp_path)
    with pytest.raises(PermissionDenied, match=r"refused though pickles are trusted: no model needs posix\.system"):
        load_model(path, workdir=tmp_path, trust_pickle=True)
    assert "posix.system: and call it; DANGEROUS" in caplog.text
    assert not (tmp_path / "ran").exists()


def test_what_a_trusted_pickle_imports_is_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m.cloudpickle"
    x, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(FunctionTransformer(lambda v: v / 2), KNeighborsClassifier()).fit(x, y)
    path.write_bytes(pytest.importorskip("cloudpickle").dumps(pipeline))
    imported = load_model(path, data=(x, y), workdir=tmp_path / "out", trust_pickle=True)
    assert (imported.model.format, imported.model.blobs[0].name) == ("sklearn", "model.pkl")
    assert "it holds code: a server runs it only from a bundle that is signed" in imported.model.notes[0]
    assert "cloudpickle.cloudpickle._make_function: and call it; runs code that is stored in this file" in caplog.text


def test_skops_types_that_are_not_known_to_be_safe_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "m.skops"
    skops_io.dump(make_pipeline(FunctionTransformer(texts), LogisticRegression()), path)
    with pytest.raises(PermissionDenied, match=r"texts.*--trust-pickle"):
        load_model(path, workdir=tmp_path)


@pytest.mark.parametrize("suffix", [".pkl", ".joblib", ".skops"])
@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(CorruptArtifact, match=f"m{suffix}"):
        load_model(path, workdir=tmp_path, trust_pickle=True)


def test_an_estimator_that_is_not_fitted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="not fitted; call fit"):
        load_model(LogisticRegression(), workdir=tmp_path)


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(FunctionTransformer(np.log1p), LogisticRegression(max_iter=1000)),
        KNeighborsClassifier(),
        HistGradientBoostingClassifier(max_iter=5, categorical_features=[3]),
        MultiOutputClassifier(RandomForestClassifier(5, random_state=0)),
        ClassifierChain(LogisticRegression(max_iter=1000)),
    ],
    ids=["function", "ties", "categories", "several targets", "chain"],
)
def test_what_no_graph_can_do_is_run_by_scikit_learn(tmp_path: Path, estimator: Any) -> None:
    x, y = load_iris(return_X_y=True)
    if not isinstance(estimator, KNeighborsClassifier):
        x = np.c_[x[:, :3], np.arange(150) % 4]
    several = isinstance(estimator, MultiOutputClassifier | ClassifierChain)
    estimator.fit(x, np.stack([y > 0, y > 1], axis=1).astype(int) if several else y)
    imported = load_model(estimator, data={"x": x}, workdir=tmp_path)
    model = imported.model
    assert model.format == "sklearn", model.notes
    assert all(o.max_abs == 0.0 for o in imported.parity.outputs)
    assert [p.name for p in tmp_path.iterdir()] == ["model.skops"]
    with open_session(model) as session:
        given = session.run({"x": x})
    assert (given["label"] == estimator.predict(x)).all()
    if isinstance(estimator, MultiOutputClassifier):
        assert list(given) == ["label", "probabilities_1", "probabilities_2"]


def test_what_can_be_neither_converted_nor_kept_is_refused(tmp_path: Path) -> None:
    x, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(FunctionTransformer(lambda v: v + 1), LogisticRegression(max_iter=1000)).fit(x, y)
    with pytest.raises(Unimplemented, match=r"cannot be converted .* nor kept as it is .*skops: .*pickle: "):
        load_model(pipeline, workdir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_data_that_the_model_cannot_take_are_refused(tmp_path: Path, text_pipeline: Any) -> None:
    with pytest.raises(InvalidArgument, match="got datatype FP64, expected BYTES"):
        load_model(text_pipeline, data={"text": np.zeros(3)}, workdir=tmp_path)
    x, y = load_iris(return_X_y=True)
    broken = LogisticRegression(max_iter=1000).fit(x, y)
    with pytest.raises((FailedPrecondition, ParityFailed)):
        load_model(broken, data={"x": np.full((4, 4), np.nan)}, workdir=tmp_path)


# --- what the page promises


def told() -> dict[str, str]:
    """Name -> format, of the page's table."""
    rows = re.findall(r"^\| ([^|]+?) \| (ONNX|as it is)\b", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.replace("`", ""): {"ONNX": "onnx", "as it is": "sklearn"}[becomes] for name, becomes in rows}


FLOWERS, PATIENTS = load_iris(return_X_y=True), load_diabetes(return_X_y=True)
SHOWN: dict[str, tuple[Any, Any]] = {
    "LogisticRegression": (LogisticRegression(max_iter=50, tol=0.1), FLOWERS),
    "RidgeClassifier": (RidgeClassifier(), FLOWERS),
    "LinearSVC, SVC": (SVC(), FLOWERS),
    "MLPClassifier": (MLPClassifier((8,), max_iter=200, tol=1e-2, random_state=0), FLOWERS),
    "GaussianNB": (GaussianNB(), FLOWERS),
    "LinearDiscriminantAnalysis": (LinearDiscriminantAnalysis(), FLOWERS),
    "DecisionTreeClassifier": (DecisionTreeClassifier(random_state=0), FLOWERS),
    "RandomForestClassifier": (RandomForestClassifier(5, random_state=0), FLOWERS),
    "GradientBoostingClassifier": (GradientBoostingClassifier(n_estimators=3), FLOWERS),
    "HistGradientBoostingClassifier": (HistGradientBoostingClassifier(max_iter=3), FLOWERS),
    "AdaBoostClassifier": (AdaBoostClassifier(n_estimators=3, random_state=0), FLOWERS),
    "StackingClassifier": (StackingClassifier([("a", GaussianNB())], cv=2), FLOWERS),
    "CalibratedClassifierCV": (CalibratedClassifierCV(GaussianNB(), cv=2), FLOWERS),
    "LinearRegression, Ridge, Lasso, ElasticNet": (ElasticNet(), PATIENTS),
    "SVR": (SVR(), PATIENTS),
    "HistGradientBoostingRegressor": (HistGradientBoostingRegressor(max_iter=3), PATIENTS),
    "KNeighborsRegressor": (KNeighborsRegressor(), PATIENTS),
    "KMeans": (KMeans(3, n_init=1, random_state=0), FLOWERS),
    "IsolationForest": (IsolationForest(n_estimators=5, random_state=0), FLOWERS),
    "PCA": (PCA(2), FLOWERS),
    "KNeighborsClassifier": (KNeighborsClassifier(), FLOWERS),
    "NearestCentroid": (NearestCentroid(), FLOWERS),
    "QuadraticDiscriminantAnalysis": (QuadraticDiscriminantAnalysis(), FLOWERS),
    "Birch": (Birch(n_clusters=3), FLOWERS),
    "NMF": (NMF(2, init="nndsvda", max_iter=500, tol=1e-2), FLOWERS),
    "numbers: SimpleImputer, StandardScaler, LogisticRegression": (
        make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
        FLOWERS,
    ),
}


def test_the_page_has_the_estimators_that_are_tried_here() -> None:
    assert sorted(told()) == sorted([*SHOWN, *BOOSTED, WORDS, CHARACTERS, MIXED])


@pytest.mark.parametrize("name", SHOWN)
def test_an_estimator_becomes_what_the_page_says(tmp_path: Path, name: str) -> None:
    estimator, (x, y) = SHOWN[name]
    imported = load_model(estimator.fit(x, y), data={"x": x}, workdir=tmp_path)
    assert imported.model.format == told()[name], imported.model.notes


QUICK: dict[str, dict[str, Any]] = {
    "xgboost": {"n_jobs": 1, "n_estimators": 5},
    "lightgbm": {"n_jobs": 1, "n_estimators": 5, "verbose": -1},
    "catboost": {"thread_count": 1, "iterations": 5, "verbose": False, "allow_writing_files": False},
}
BOOSTED = {
    "StandardScaler, XGBClassifier": ("xgboost", "XGBClassifier"),
    "StandardScaler, XGBRegressor": ("xgboost", "XGBRegressor"),
    "StandardScaler, LGBMClassifier": ("lightgbm", "LGBMClassifier"),
    "StandardScaler, LGBMRegressor": ("lightgbm", "LGBMRegressor"),
    "StandardScaler, CatBoostClassifier": ("catboost", "CatBoostClassifier"),
    "StandardScaler, CatBoostRegressor": ("catboost", "CatBoostRegressor"),
}


def behind_a_scaler(module: str, kind: str, x: Any, y: Any, **settings: Any) -> Any:
    library = pytest.importorskip(module, reason="needs pip install 'salver[boosting]'")
    return make_pipeline(StandardScaler(), getattr(library, kind)(**QUICK[module], **settings)).fit(x, y)


def answer(model: Any, x: Any) -> dict[str, Any]:
    with open_session(model) as session:
        return session.run({"x": x.astype(model.signature.inputs[0].dtype)})


@pytest.mark.parametrize("name", BOOSTED)
def test_boosting_behind_a_scaler_becomes_one_graph(tmp_path: Path, name: str) -> None:
    x, y = PATIENTS if name.endswith("Regressor") else load_breast_cancer(return_X_y=True)
    pipeline = behind_a_scaler(*BOOSTED[name], x, y)
    model = load_model(pipeline, data={"x": x}, workdir=tmp_path).model
    assert model.format == told()[name], model.notes
    given = answer(model, x)
    if name.endswith("Regressor"):
        np.testing.assert_allclose(given["prediction"][:, 0], pipeline.predict(x), rtol=1e-5)
    else:
        np.testing.assert_allclose(given["probabilities"], pipeline.predict_proba(x), atol=1e-5)
        assert (given["label"] == np.ravel(pipeline.predict(x))).all()


@pytest.mark.parametrize("name", [name for name in BOOSTED if re.search("(LGBM|CatBoost)Classifier", name)])
def test_classes_of_boosting_behind_a_scaler_keep_their_names(tmp_path: Path, name: str) -> None:
    x, y = FLOWERS
    pipeline = behind_a_scaler(*BOOSTED[name], x, IRIS_NAMES[y])
    model = load_model(pipeline, data={"x": x}, workdir=tmp_path).model
    assert model.format == "onnx", model.notes
    assert model.signature.output("probabilities").labels == tuple(IRIS_NAMES)
    assert (answer(model, x)["label"] == np.ravel(pipeline.predict(x))).all()


def test_boosting_that_no_graph_can_say_is_run_with_its_steps(tmp_path: Path) -> None:
    x, y = FLOWERS
    pipeline = behind_a_scaler("xgboost", "XGBClassifier", x, y, missing=-1.0)
    model = load_model(pipeline, data={"x": x}, workdir=tmp_path).model
    assert model.format == "sklearn"
    assert "this XGBClassifier takes -1 for a missing value" in model.notes[-1]
    np.testing.assert_array_equal(answer(model, x)["probabilities"], pipeline.predict_proba(x))
