"""A Keras file at the command line: converted to integers of TensorFlow Lite, sealed, verified, served by LiteRT in a
process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import tensorflow_nets as nets
from tests.e2e.conftest import salver, serving

pytest.importorskip("ai_edge_litert", reason="pip install 'salver[litert]'")


def test_integers_of_tensorflow_lite_are_sealed_and_served(tmp_path: Path) -> None:
    source = nets.save(nets.cnn(), tmp_path / "net.keras")
    x, y = nets.digits()
    integers = np.round(x * 255 - 128).astype(np.int8)
    np.savez(tmp_path / "floats.npz", image=x[:100], label=y[:100])
    np.savez(tmp_path / "integers.npz", image=integers[:100], label=y[:100])
    lite, bundle = tmp_path / "net.tflite", tmp_path / "net.salver"
    asked = ["convert", source, "--to", "tflite", "--precision", "int8", "--data", tmp_path / "floats.npz", "-o", lite]
    made = salver(*asked)
    assert made.returncode == 0, made.stderr
    built = salver(
        *("build", lite, "--data", tmp_path / "integers.npz", "--max-drop", "5pp", "--budget", "5s", "-o", bundle),
        *("--cache", tmp_path / "cache"),
    )
    assert built.returncode == 0, built.stderr
    verified = salver("verify", bundle)
    assert verified.returncode == 0, verified.stderr
    with serving(bundle) as server:
        data = integers[:8].ravel().tolist()
        tensor = {"name": "image", "datatype": "INT8", "shape": [8, 8, 8, 1], "data": data}
        status, answer = server.call("/v2/models/net/infer", {"inputs": [tensor]})
    assert status == 200, answer
    (output,) = answer["outputs"]
    assert output["datatype"] == "INT8"
    assert np.mean(np.reshape(output["data"], (8, 10)).argmax(1) == y[:8]) > 0.8
