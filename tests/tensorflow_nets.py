"""Networks of Keras and files of them, for the tests of everything that reads or writes TensorFlow's formats."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

NEEDED = "pip install 'salver[tensorflow]'"
tf = pytest.importorskip("tensorflow", reason=NEEDED)
pytest.importorskip("tf2onnx", reason=NEEDED)

from salver.backends import open_session  # noqa: E402  # after the check for TensorFlow
from salver.backends.tensorflow_graph import keras, quiet, save_keras, write_saved_model  # noqa: E402  # after the check for TensorFlow
from salver.builder.exporters import Exported, export_model, find_exporter  # noqa: E402  # after the check for TensorFlow
from salver.builder.importers import IMPORTERS, Imported, load_model  # noqa: E402  # after the check for TensorFlow
from salver.core.dataset import Dataset  # noqa: E402  # after the check for TensorFlow
from salver.datasets import open_dataset  # noqa: E402  # after the check for TensorFlow
from salver.testing.exporters import ExporterConformance  # noqa: E402  # after the check for TensorFlow
from salver.testing.importers import ImporterConformance  # noqa: E402  # after the check for TensorFlow

CLASSES = 10


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Real digits, ``[1797, 8, 8, 1]`` in [0, 1], and their labels."""
    x, y = load_digits(return_X_y=True)
    return (x.reshape(-1, 8, 8, 1) / 16).astype(np.float32), y


@functools.cache
def cnn() -> Any:
    """A small network trained on digits."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(16, 3, activation="relu", name="conv")(image)
    x = keras.layers.BatchNormalization(momentum=0.8)(x)
    x = keras.layers.Flatten()(keras.layers.MaxPooling2D()(x))
    digit = keras.layers.Dense(CLASSES, activation="softmax", name="digit")(x)
    model = keras.Model(image, digit)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    with quiet():
        model.fit(*digits(), epochs=3, batch_size=64, verbose=0)
    return model


@functools.cache
def recurrent() -> Any:
    """Two inputs, one of any length; a dictionary of outputs; an LSTM."""
    keras.utils.set_random_seed(0)
    words, extra = keras.Input((None,), dtype="int32", name="words"), keras.Input((3,), name="extra")
    x = keras.layers.LSTM(6)(keras.layers.Embedding(20, 4)(words))
    x = keras.layers.Concatenate()([x, extra])
    outputs = {"score": keras.layers.Dense(2, name="a")(x), "flag": keras.layers.Dense(1, activation="sigmoid")(x)}
    return keras.Model({"words": words, "extra": extra}, outputs)


def lambda_model() -> Any:
    """A model that carries Python code."""
    x = keras.Input((4,), name="x")
    return keras.Model(x, keras.layers.Lambda(lambda t: t * 2, output_shape=(4,), name="twice")(x))


@keras.saving.register_keras_serializable("tests")
class Scale(keras.layers.Layer):
    """A layer of the user's own."""

    def call(self, x: Any) -> Any:
        """Twice the input."""
        return x * 2


def custom_model() -> Any:
    """A model with a layer that only this process knows."""
    x = keras.Input((4,), name="x")
    return keras.Model(x, Scale(name="scale")(x))


def save(model: Any, path: Path) -> Path:
    """Save as the suffix says; as a SavedModel without one."""
    if path.suffix:
        save_keras(model, path)
    else:
        write_saved_model(model, path)
    return path


def write_keras_2(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """An HDF5 file laid out as Keras 2.15 writes it, by hand: configuration of layers without modules, weights in
    groups named by layer; returns kernel and bias of its only dense layer."""
    h5py = pytest.importorskip("h5py", reason=NEEDED)
    random = np.random.default_rng(0)
    kernel, bias = random.normal(size=(4, 3)).astype(np.float32), random.normal(size=3).astype(np.float32)
    dense = {
        "name": "dense",
        "trainable": True,
        "dtype": "float32",
        "units": 3,
        "activation": "softmax",
        "use_bias": True,
        "kernel_initializer": {
            "class_name": "GlorotUniform",
            "config": {"seed": None},
        },
        "bias_initializer": {"class_name": "Zeros", "config": {}},
        "kernel_regularizer": None,
        "bias_regularizer": None,
        "activity_regularizer": None,
        "kernel_constraint": None,
        "bias_constraint": None,
    }
    entry = {"batch_input_shape": [None, 4], "dtype": "float32", "sparse": False, "ragged": False, "name": "features"}
    config = {
        "class_name": "Sequential",
        "config": {
            "name": "sequential",
            "layers": [
                {"class_name": "InputLayer", "config": entry},
                {"class_name": "Dense", "config": dense},
            ],
        },
    }
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "2.15.0", "tensorflow"
        file.attrs["model_config"] = json.dumps(config)
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [b"dense"]
        weights.attrs["backend"], weights.attrs["keras_version"] = b"tensorflow", b"2.15.0"
        group = weights.create_group("dense")
        group.attrs["weight_names"] = [b"dense/kernel:0", b"dense/bias:0"]
        group["dense/kernel:0"], group["dense/bias:0"] = kernel, bias
    return kernel, bias


def tflite(precision: str = "source") -> bytes:
    """The digits network as a TensorFlow Lite file."""
    return _tflite(precision)


@functools.cache
def _tflite(precision: str) -> bytes:
    import tempfile

    from salver.backends.tensorflow_graph import convert_to_tflite

    with tempfile.TemporaryDirectory() as folder:
        saved = save(cnn(), Path(folder) / "saved")
        rows = [{"image": digits()[0][i : i + 1]} for i in range(64)]
        return convert_to_tflite(saved, precision, iter(rows) if precision == "int8" else None)


class KerasImports(ImporterConformance):
    """Conformance of importers of the digits network, read once for all tests. A member gives ``source`` the scope of
    its class."""

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls) -> Dataset:
        """Digits."""
        x, y = digits()
        return open_dataset({"image": x[:40], "label": y[:40]})

    @pytest.fixture(scope="class")
    @classmethod
    def workdir(cls, source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """One folder for each source."""
        return tmp_path_factory.mktemp(f"imported-{type(source).__name__}")

    @pytest.fixture(scope="class")
    @classmethod
    def imported(cls, source: Any, data: Dataset, workdir: Path) -> Imported:
        """Read once."""
        return IMPORTERS.get(cls.importer_name)().load(source, workdir, data, cls.options)


class KerasExports(ExporterConformance):
    """Conformance of exporters of the digits network, written once for all tests that only look at it."""

    deterministic = False  # names and versions in the files are counted on

    @pytest.fixture(scope="class")
    @classmethod
    def imported(cls, tmp_path_factory: pytest.TempPathFactory) -> Imported:
        """The network."""
        return load_model(cnn(), workdir=tmp_path_factory.mktemp("imported"))

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, imported: Imported, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """One folder for each model."""
        return tmp_path_factory.mktemp(f"exported-{imported.model.format}")

    @pytest.fixture(scope="class")
    @classmethod
    def exported(cls, imported: Imported, place: Path) -> Exported:
        """Written once."""
        exporter = find_exporter(cls.exporter_name)
        return export_model(imported, exporter, place / f"net{exporter.suffix}", options=cls.options)


def check_export(source: Path, to: str, folder: Path) -> None:
    """Import a file of the digits network and export it: the answers are those of the network."""
    exporter = find_exporter(to)
    imported = load_model(source, workdir=folder / "imported")
    exported = export_model(imported, exporter, folder / f"made{exporter.suffix}")
    x = digits()[0][:7]
    with open_session(exported.model) as session:
        (got,) = session.run({session.signature.inputs[0].name: x}).values()
    np.testing.assert_allclose(got, cnn()(x), atol=1e-4)
