"""Keras models from files of every age and from memory, and files that are no honest models."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.backends import open_session
from salver.builder.importers import load_model
from salver.core.errors import CorruptArtifact, InvalidArgument, PermissionDenied, TooLarge
from tests import tensorflow_nets as nets
from tests.tensorflow_nets import keras

h5py = pytest.importorskip("h5py", reason=nets.NEEDED)


class TestKeras(nets.KerasImports):
    importer_name = "keras"
    suffix = ".keras"

    @pytest.fixture(scope="class", params=["model", ".keras"])
    @classmethod
    def source(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
        if request.param == "model":
            return nets.cnn()
        return nets.save(nets.cnn(), tmp_path_factory.mktemp("source") / f"net{request.param}")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_inputs_and_outputs_have_the_names_of_the_layers_and_the_answers_of_keras(tmp_path: Path, suffix: str) -> None:
    imported = load_model(nets.save(nets.cnn(), tmp_path / f"net{suffix}"), workdir=tmp_path / "out")
    signature = imported.model.signature
    assert (imported.model.format, signature.output_names) == ("onnx", ("digit",))
    assert signature.inputs[0].shape == ("batch", 8, 8, 1)
    x, y = nets.digits()
    with open_session(imported.model) as session:
        got = session.run({"image": x})["digit"]
    np.testing.assert_allclose(got, nets.cnn().predict(x, verbose=0), atol=1e-5)
    assert (got.argmax(1) == y).mean() > 0.85
    assert imported.native is not None
    assert imported.native.format == "keras"


def test_several_inputs_any_length_and_a_dictionary_of_outputs(tmp_path: Path) -> None:
    imported = load_model(nets.recurrent(), workdir=tmp_path)
    model = imported.model
    assert model.format == "onnx"
    assert {s.name: s.datatype for s in model.signature.inputs} == {"words": "INT32", "extra": "FP32"}
    assert set(model.signature.output_names) == {"score", "flag"}
    for length in (1, 5, 33):
        inputs = {"words": np.full((3, length), 7, np.int32), "extra": np.ones((3, 3), np.float32)}
        expected = nets.recurrent()(inputs)
        with open_session(model) as session:
            got = session.run(inputs)
        np.testing.assert_allclose(got["score"], expected["score"], atol=1e-5)
        np.testing.assert_allclose(got["flag"], expected["flag"], atol=1e-5)


def test_a_file_of_keras_2_is_read(tmp_path: Path) -> None:
    kernel, bias = nets.write_keras_2(tmp_path / "old.h5")
    imported = load_model(tmp_path / "old.h5", workdir=tmp_path / "out")
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    with open_session(imported.model) as session:
        got = session.run({imported.model.signature.inputs[0].name: x})["dense"]
    scores = np.exp(x @ kernel + bias)
    np.testing.assert_allclose(got, scores / scores.sum(1, keepdims=True), atol=1e-6)


def test_a_subclassed_model_is_imported_once_it_was_called(tmp_path: Path) -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return {"twice": self.dense(x) * 2}

    model = Own()
    with pytest.raises(InvalidArgument, match="call it once"):
        load_model(model, workdir=tmp_path / "unbuilt")
    x = np.ones((2, 4), np.float32)
    expected = model(x)["twice"]
    imported = load_model(model, workdir=tmp_path / "out")
    assert imported.model.format == "onnx"
    with open_session(imported.model) as session:
        got = session.run({imported.model.signature.inputs[0].name: x})
    np.testing.assert_allclose(got["twice"], expected, atol=1e-6)


def test_what_no_converter_takes_runs_in_keras_itself_and_says_so(tmp_path: Path) -> None:
    x = keras.Input((16,), name="x")
    # The discrete Fourier transform in two parts: tf2onnx has no counterpart of this operator.
    real, _ = keras.ops.fft((x, keras.ops.zeros_like(x)))
    model = keras.Model(x, real)
    imported = load_model(model, workdir=tmp_path)
    assert imported.model.format in ("keras", "savedmodel")
    assert "and not optimized: no route to ONNX keeps its answers" in imported.model.notes[-1]
    assert "Keras' own export failed" in imported.model.notes[-1]
    rows = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    with open_session(imported.model) as session:
        (got,) = session.run({"x": rows}).values()
    np.testing.assert_allclose(got, np.fft.fft(rows).real, atol=1e-4)


# --- code and custom layers


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_lambda_layer_is_refused_without_trust(tmp_path: Path, suffix: str) -> None:
    path = nets.save(nets.lambda_model(), tmp_path / f"code{suffix}")
    with pytest.raises(PermissionDenied, match=r"Lambda: code from the file.*--trust-pickle"):
        load_model(path, workdir=tmp_path / "out")
    imported = load_model(path, workdir=tmp_path / "out", trust_pickle=True)
    with open_session(imported.model) as session:
        (got,) = session.run({"x": np.ones((1, 4), np.float32)}).values()
    assert got.tolist() == [[2.0] * 4]
    assert imported.native is not None
    assert imported.native.format == "savedmodel"  # which carries the computation and no code


def test_a_custom_layer_is_named_unless_it_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nets.save(nets.custom_model(), tmp_path / "own.keras")
    assert load_model(path, workdir=tmp_path / "known").model.format == "onnx"
    monkeypatch.delitem(keras.saving.get_custom_objects(), "tests>Scale")
    with pytest.raises(InvalidArgument, match=r"Scale.*model\.export\(folder\)"):
        load_model(path, workdir=tmp_path / "unknown")


@pytest.mark.parametrize("module", ["os", "subprocess", "keras.utils", "keras.src.utils.file_utils", "kerasx"])
def test_a_configuration_that_names_other_modules_is_refused(tmp_path: Path, module: str) -> None:
    path = tmp_path / "evil.keras"
    function = {"module": module, "class_name": "function", "config": "system", "registered_name": "function"}
    rewrite(nets.save(nets.custom_model(), tmp_path / "own.keras"), path, lambda c: c["config"].update(call=function))
    with pytest.raises(InvalidArgument, match=rf"{module}\.system"):
        load_model(path, workdir=tmp_path / "out")


def rewrite(source: Path, target: Path, change: Any) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            new.writestr(name, content)


# --- damaged files and bombs


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("content", ["empty", "noise", "half", "last byte"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str, content: str) -> None:
    whole = nets.save(nets.cnn(), tmp_path / f"whole{suffix}").read_bytes()
    cuts = {"empty": b"", "noise": b"\x93rubbish" * 40, "half": whole[: len(whole) // 2], "last byte": whole[:-1]}
    path = tmp_path / f"net{suffix}"
    path.write_bytes(cuts[content])
    with pytest.raises(CorruptArtifact, match="net"):
        load_model(path, workdir=tmp_path / "out")


def test_another_kind_of_file_is_said(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    with pytest.raises(CorruptArtifact, match=r"'config\.json' is not in it"):
        load_model(tmp_path / "other.keras", workdir=tmp_path / "out")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["w"] = np.zeros(3)
    with pytest.raises(CorruptArtifact, match="perhaps weights alone"):
        load_model(tmp_path / "weights.h5", workdir=tmp_path / "out")
    (tmp_path / "archive.h5").write_bytes(nets.save(nets.cnn(), tmp_path / "net.keras").read_bytes())
    with pytest.raises(InvalidArgument, match=r"ends in \.h5.*\.keras archive"):
        load_model(tmp_path / "archive.h5", workdir=tmp_path / "out")


def test_declared_sizes_out_of_proportion_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.h5"
    nets.write_keras_2(path)
    with h5py.File(path, "a") as file:
        file["model_weights"].create_dataset(
            "x", shape=(1 << 20, 1 << 20), dtype="f4", chunks=(64, 64), compression="gzip"
        )
    with pytest.raises(TooLarge, match=r"declares 4194304 MiB in a file of .*decompression bomb"):
        load_model(path, workdir=tmp_path / "out")
    packed = tmp_path / "bomb.keras"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(100 << 20))
    with pytest.raises(TooLarge, match="decompression bomb"):
        load_model(packed, workdir=tmp_path / "out")


def test_a_small_file_with_a_bomb_inside_its_weights_is_refused(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with h5py.File(inner, "w") as file:
        file.create_dataset("x", shape=(1 << 40,), dtype="f4", chunks=(1 << 10,))
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", inner.getvalue())
    with pytest.raises(TooLarge, match="decompression bomb"):
        load_model(tmp_path / "bomb.keras", workdir=tmp_path / "out")


def test_files_that_read_other_files_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(400))
    path = tmp_path / "net.h5"
    nets.write_keras_2(path)
    with h5py.File(path, "a") as file:
        file.create_dataset("x", shape=(100,), dtype="f4", external=[(str(secret), 0, 400)])
    with pytest.raises(PermissionDenied, match="reads another file"):
        load_model(path, workdir=tmp_path / "out")
    nets.write_keras_2(path)
    with h5py.File(path, "a") as file:
        file["x"] = h5py.ExternalLink(str(secret), "/")
    with pytest.raises(PermissionDenied, match="is a link"):
        load_model(path, workdir=tmp_path / "out")


def test_a_configuration_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.keras"
    nested: Any = {}
    for _ in range(400):
        nested = {"config": nested}
    rewrite(nets.save(nets.custom_model(), tmp_path / "own.keras"), path, lambda config: config.update(deep=nested))
    with pytest.raises(CorruptArtifact, match="without end"):
        load_model(path, workdir=tmp_path / "out")
