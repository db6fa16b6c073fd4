"""SavedModels, their signatures, and frozen graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.backends import open_session
from salver.builder.importers import load_model
from salver.core.errors import CorruptArtifact, InvalidArgument, NotFound, Unimplemented
from tests import tensorflow_nets as nets
from tests.tensorflow_nets import tf


class TestSavedmodel(nets.KerasImports):
    importer_name = "savedmodel"
    suffix = ""

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return nets.save(nets.cnn(), tmp_path_factory.mktemp("source") / "saved")


class TestFrozen(TestSavedmodel):
    suffix = ".pb"

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return frozen(tmp_path_factory.mktemp("source") / "net.pb")


def frozen(path: Path) -> Path:
    """A graph of TensorFlow 1, its weights constants."""
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    graph = tf.Graph()
    with graph.as_default():
        image = tf.compat.v1.placeholder(tf.float32, (None, 8, 8, 1), name="image")
        flat = tf.reshape(image, (-1, 64))
        tf.nn.softmax(tf.matmul(flat, tf.constant(weights)), name="digit")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


class Calculator(tf.Module):
    def __init__(self) -> None:
        self.factor = tf.Variable(3.0)

    @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, name="x")])
    def multiply(self, x: Any) -> Any:
        return {"product": x * self.factor}

    @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, name="x")])
    def add(self, x: Any) -> Any:
        return {"sum": x + self.factor}

    @tf.function(input_signature=[tf.TensorSpec((), tf.string, name="x")])
    def peek(self, x: Any) -> Any:
        return {"content": tf.io.read_file(x)}


def calculator(folder: Path, **signatures: str) -> Path:
    module = Calculator()
    tf.saved_model.save(module, str(folder), signatures={k: getattr(module, v) for k, v in signatures.items()})
    return folder


@pytest.mark.parametrize(
    ("signatures", "output"),
    [({"serving_default": "add", "other": "multiply"}, "sum"), ({"predict": "multiply"}, "product")],
)
def test_the_default_signature_is_taken_or_the_only_one(
    tmp_path: Path, signatures: dict[str, str], output: str
) -> None:
    imported = load_model(calculator(tmp_path / "saved", **signatures), workdir=tmp_path / "out")
    assert imported.model.signature.output_names == (output,)
    with open_session(imported.model) as session:
        assert session.run({"x": np.ones((1, 2), np.float32)})[output].tolist() == [
            [4.0, 4.0] if output == "sum" else [3.0, 3.0]
        ]


def test_several_signatures_without_a_default_are_listed(tmp_path: Path) -> None:
    folder = calculator(tmp_path / "saved", a="add", b="multiply")
    with pytest.raises(
        InvalidArgument,
        match=r"2 signatures \(a, b\).*Save it again.*signatures=\{'serving_default': model\.signatures\['a'\]\}",
    ):
        load_model(folder, workdir=tmp_path / "out")


def test_a_model_without_signatures_is_told_how_to_get_one(tmp_path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path / "bare"))
    with pytest.raises(InvalidArgument, match=r"no signature; export it with one: model\.export"):
        load_model(tmp_path / "bare", workdir=tmp_path / "out")


def test_operators_that_reach_for_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unimplemented, match="uses ReadFile, which reach beyond the model"):
        load_model(calculator(tmp_path / "saved", serving_default="peek"), workdir=tmp_path / "out")


def test_the_main_file_stands_for_its_folder(tmp_path: Path) -> None:
    folder = calculator(tmp_path / "saved", serving_default="add")
    by_file = load_model(folder / "saved_model.pb", workdir=tmp_path / "a")
    assert by_file.model.digest == load_model(folder, workdir=tmp_path / "b").model.digest


@pytest.mark.parametrize("content", [b"", b"rubbish" * 100, "half"])
def test_damaged_files_are_refused(tmp_path: Path, content: Any) -> None:
    folder = calculator(tmp_path / "saved", serving_default="add")
    main = folder / "saved_model.pb"
    main.write_bytes(main.read_bytes()[: main.stat().st_size // 2] if content == "half" else content)
    with pytest.raises(CorruptArtifact, match="saved"):
        load_model(folder, workdir=tmp_path / "out")
    path = frozen(tmp_path / "net.pb")
    path.write_bytes(path.read_bytes()[:-30] if content == "half" else content)
    with pytest.raises(CorruptArtifact, match="net"):
        load_model(path, workdir=tmp_path / "out")


def test_missing_weights_are_said(tmp_path: Path) -> None:
    folder = calculator(tmp_path / "saved", serving_default="add")
    (folder / "variables" / "variables.index").unlink()
    with pytest.raises(CorruptArtifact, match="saved"):
        load_model(folder, workdir=tmp_path / "out")


def test_a_folder_of_another_kind_is_said(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(InvalidArgument, match=r"'pictures'.*saved_model\.pb"):
        load_model(tmp_path / "pictures", workdir=tmp_path / "out")
    with pytest.raises(NotFound, match="gone"):
        load_model(tmp_path / "gone", workdir=tmp_path / "out")


def test_a_graph_that_is_not_frozen_is_refused(tmp_path: Path) -> None:
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, (None, 2), name="x")
        tf.multiply(x, tf.compat.v1.get_variable("w", (2,)), name="y")
    (tmp_path / "net.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(InvalidArgument, match=r"has variables \('w'.*freeze it"):
        load_model(tmp_path / "net.pb", workdir=tmp_path / "out")
