"""TensorFlow Lite files of every precision; one whose answers changed is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salver.backends import open_session
from salver.builder.exporters import ExportOptions, export_model, find_exporter
from salver.builder.importers import load_model
from salver.builder.importers.base import Imported
from salver.core.dataset import Dataset
from salver.core.errors import FailedPrecondition, ParityFailed, Unimplemented
from salver.datasets import open_dataset
from tests import tensorflow_nets as nets
from tests.builder.exporters.test_savedmodel import pure_onnx
from tests.tensorflow_nets import keras

pytest.importorskip("ai_edge_litert", reason="pip install 'salver[litert]'")


def examples(rows: int = 200) -> Dataset:
    x, y = nets.digits()
    return open_dataset({"image": x[:rows], "label": y[:rows]})


class TestTflite(nets.KerasExports):
    exporter_name = "tflite"

    @pytest.fixture
    def refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Imported:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where no toolchain stands
        return pure_onnx(tmp_path)


@pytest.mark.parametrize("name", ["net.keras", "saved", "net.tflite"])
def test_every_file_of_tensorflow_is_a_source(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".tflite":
        path.write_bytes(nets.tflite())
    else:
        nets.save(nets.cnn(), path)
    nets.check_export(path, "tflite", tmp_path)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    return load_model(nets.cnn(), workdir=tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize("precision", ["float16", "dynamic", "int8"])
def test_every_precision_keeps_the_labels_and_is_smaller(digits: Imported, tmp_path: Path, precision: str) -> None:
    options = ExportOptions(precision=precision)
    made = export_model(
        digits, find_exporter("tflite", precision), tmp_path / "a.tflite", data=examples(), options=options
    )
    assert made.parity is not None
    assert made.parity.changed_by == (precision,)
    assert made.parity.outputs[0].label_agreement >= 0.95
    x, y = nets.digits()
    whole = precision == "int8"
    given = np.round(x * 255 - 128).astype(np.int8) if whole else x
    with open_session(made.model) as session:
        assert session.signature.inputs[0].datatype == ("INT8" if whole else "FP32")
        (answers,) = session.run({"image": given}).values()
    assert (answers.argmax(1) == y).mean() > 0.85
    assert ("'image' is an integer q: its value is" in " ".join(made.notes)) == whole


def test_full_int8_wants_examples(digits: Imported, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="needs real examples"):
        export_model(digits, find_exporter("tflite"), tmp_path / "a.tflite", options=ExportOptions(precision="int8"))
    assert list(tmp_path.iterdir()) == []


def test_integers_that_tell_one_class_only_are_refused_with_the_numbers(tmp_path: Path) -> None:
    """What full int8 makes of ranges that differ by orders of magnitude: one constant class (tensorflow#41840)."""
    x = keras.Input((8, 8, 1), name="image")
    flat = keras.layers.Flatten()(x)
    wide = keras.layers.Concatenate()([flat, keras.layers.Rescaling(600.0)(flat[:, :1] + 1)])
    dense = keras.layers.Dense(10, name="digit", use_bias=False)
    model = keras.Model(x, dense(wide))
    weights = np.random.default_rng(0).normal(size=(65, 10)).astype(np.float32)
    weights[64] = 0
    dense.set_weights([weights])
    imported = load_model(model, workdir=tmp_path / "import", tolerance=1e-3)
    options = ExportOptions(precision="int8")
    with pytest.raises(
        ParityFailed, match=r"the source's label on .*% of \d+ rows.*tells \d+ classes apart, the export \d"
    ):
        export_model(imported, find_exporter("tflite"), tmp_path / "a.tflite", data=examples(), options=options)
    assert not (tmp_path / "a.tflite").exists()


def test_operators_without_a_counterpart_are_named(tmp_path: Path) -> None:
    x = keras.Input((4,), name="x")
    imported = load_model(keras.Model(x, keras.ops.erfinv(keras.ops.tanh(x))), workdir=tmp_path / "import")
    with pytest.raises(Unimplemented, match="no counterpart of Erfinv"):
        export_model(imported, find_exporter("tflite"), tmp_path / "a.tflite")
