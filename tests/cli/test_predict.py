"""`salver predict`: texts, class names, and models that take one example at a time."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import salver
from salver.cli import run

SENTIMENT = Path(__file__).parents[1] / "data" / "sentiment.jsonl.gz"
NAMES = ("negative", "positive")


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """A bundle that answers texts with class names, some texts, and what the pipeline says of them."""
    folder = tmp_path_factory.mktemp("sentiment")
    with gzip.open(SENTIMENT, "rt") as lines:
        rows = [json.loads(line) for line in lines][:400]
    texts, labels = [row["text"] for row in rows], [NAMES[row["label"]] for row in rows]
    pipeline = make_pipeline(TfidfVectorizer(max_features=500), LogisticRegression()).fit(texts, labels)
    data = {"text": np.array(texts), "label": np.array(labels)}
    path = folder / "sentiment.salver"
    salver.build(pipeline, data, budget_s=2, output=path, cache=folder / "cache").close()
    return path, texts[:25], pipeline.predict(texts[:25]).tolist()


def write_csv(path: Path, texts: list[str]) -> None:
    lines = ["text", *(f'"{text.replace(chr(34), chr(34) * 2)}"' for text in texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "npz": lambda path, texts: np.savez(path, text=np.array(texts))}


@pytest.mark.parametrize("suffix", WRITERS)
def test_texts_are_answered_with_class_names(
    sentiment: tuple[Path, list[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    bundle, texts, expected = sentiment
    source, answers = tmp_path / f"few.{suffix}", tmp_path / "answers.npz"
    WRITERS[suffix](source, texts)
    assert run(["predict", str(bundle), str(source)]) == 0
    shown = capsys.readouterr().out
    assert "label BYTES [25]" in shown
    assert f"\n     3  {expected[3]}\n" in shown
    assert f"\n     3  {expected[3]}  (0." in shown
    assert "and 5 more" in shown
    assert run(["predict", str(bundle), str(source), "--json"]) == 0
    outputs = json.loads(capsys.readouterr().out)["outputs"]
    assert outputs["label"] == expected
    assert [NAMES[int(np.argmax(row))] for row in outputs["probabilities"]] == expected
    assert run(["predict", str(bundle), str(source), "-o", str(answers)]) == 0
    with np.load(answers, allow_pickle=False) as written:
        assert written["label"].tolist() == expected
        np.testing.assert_allclose(written["probabilities"], outputs["probabilities"], rtol=1e-6)


X = np.random.default_rng(0).standard_normal((30, 2, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("inputs", "outputs", "columns"),
    [
        ({"x": [2, 4]}, {"y": [4]}, {"x": X}),
        ({"x": [2, 4], "scale": []}, {"y": [4]}, {"x": X, "scale": np.arange(30, dtype=np.float32)}),
    ],
    ids=["one matrix", "a matrix and a scalar"],
)
def test_one_example_at_a_time(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    inputs: dict[str, list[int]],
    outputs: dict[str, list[int]],
    columns: dict[str, Any],
) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=0)]
    nodes.append(helper.make_node("Mul", ["m", "scale" if "scale" in inputs else "m"], ["y"]))
    given, made = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]
        for values in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, "single", given, made)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "rows.npz", **columns)
    bundle = tmp_path / "m.salver"
    salver.build(
        tmp_path / "m.onnx", tmp_path / "rows.npz", budget_s=1, output=bundle, cache=tmp_path / "cache"
    ).close()
    assert run(["predict", str(bundle), str(tmp_path / "rows.npz"), "--json"]) == 0
    answers = np.array(json.loads(capsys.readouterr().out)["outputs"]["y"])
    mean = X.mean(axis=1)
    expected = mean * (columns["scale"][:, None] if "scale" in columns else mean)
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)
