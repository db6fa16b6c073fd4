"""A scikit-learn pipeline on real texts, from its file to an endpoint that takes strings and answers class names."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import joblib
import numpy as np
import pytest
import skops.io
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from tests.e2e.conftest import salver, serving

http = pytest.importorskip("tritonclient.http")

SENTIMENT = Path(__file__).parents[1] / "data" / "sentiment.jsonl.gz"
NAMES = ("negative", "positive")
TRAINED_ON = 900


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, str]]:
    """Texts and their class names."""
    with gzip.open(SENTIMENT, "rt") as lines:
        read = [json.loads(line) for line in lines]
    return [(row["text"], NAMES[row["label"]]) for row in read]


@pytest.fixture(scope="module")
def pipeline(rows: list[tuple[str, str]]) -> Pipeline:
    texts, labels = zip(*rows[:TRAINED_ON], strict=True)
    return make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(texts, labels)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> Path:
    path = tmp_path_factory.mktemp("data") / "val.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in rows[TRAINED_ON:]))
    return path


@pytest.mark.parametrize("suffix", ["skops", "joblib"])
def test_strings_in_class_names_out(
    tmp_path: Path, rows: list[tuple[str, str]], pipeline: Pipeline, data: Path, suffix: str
) -> None:
    source, bundle = tmp_path / f"sentiment.{suffix}", tmp_path / "sentiment.salver"
    build = ["build", source, "--data", data, "--max-drop", "2pp", "--budget", "10s", "-o", bundle]
    build += ["--cache", tmp_path / "cache"]
    if suffix == "skops":
        skops.io.dump(pipeline, source)
    else:
        joblib.dump(pipeline, source)
        refused = salver(*build)
        assert refused.returncode != 0
        assert "--trust-pickle" in refused.stderr
        assert not bundle.exists()
        build.append("--trust-pickle")
    built = salver(*build)
    assert built.returncode == 0, built.stderr

    texts = [text for text, _ in rows[-8:]]
    expected = pipeline.predict(texts).tolist()
    scores = pipeline.predict_proba(texts)
    with serving(bundle) as server:
        status, answer = server.call("/predict", {"instances": texts})
        assert status == 200, answer
        assert [p["label"] for p in answer["predictions"]] == expected
        np.testing.assert_allclose([p["score"] for p in answer["predictions"]], scores.max(1), atol=0.02)
        assert set(answer["predictions"][0]["scores"]) == set(NAMES)

        tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
        status, answer = server.call("/v2/models/sentiment/infer", {"inputs": [tensor]})
        assert status == 200, answer
        outputs = {output["name"]: output for output in answer["outputs"]}
        assert outputs["label"]["data"] == expected

        with http.InferenceServerClient(server.url.removeprefix("http://")) as client:
            given = http.InferInput("text", [len(texts)], "BYTES")
            given.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object))
            best = http.InferRequestedOutput("probabilities", class_count=1)
            result = client.infer("sentiment", [given], outputs=[http.InferRequestedOutput("label"), best])
            assert [value.decode() for value in result.as_numpy("label")] == expected
            assert [v.decode().split(":")[2] for v in result.as_numpy("probabilities").ravel()] == expected
            given.set_data_from_numpy(np.array([b"fine", b"\xff", *[b""] * (len(texts) - 2)], dtype=object))
            with pytest.raises(http.InferenceServerException, match="element 1 is not UTF-8"):
                client.infer("sentiment", [given])
