"""SavedModels written from Keras models and from SavedModels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from salver.builder.importers import load_model
from salver.builder.importers.base import Imported
from tests import tensorflow_nets as nets
from tests.tensorflow_nets import tf


def pure_onnx(folder: Path) -> Imported:
    """A model that was never anything but ONNX."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    path = folder / "plain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return load_model(path, workdir=folder / "plain")


class TestSavedmodel(nets.KerasExports):
    exporter_name = "savedmodel"

    @pytest.fixture
    def refused(self, tmp_path: Path) -> Imported:
        return pure_onnx(tmp_path)

    def test_tensorflow_serves_it_by_the_same_names(self, exported: Any) -> None:
        run = tf.saved_model.load(str(exported.model.path.parent)).signatures["serving_default"]
        x = nets.digits()[0][:4]
        np.testing.assert_allclose(run(image=tf.constant(x))["digit"], nets.cnn()(x), atol=1e-5)


@pytest.mark.parametrize("name", ["net.keras", "saved"])
def test_files_of_keras_and_tensorflow_are_sources(tmp_path: Path, name: str) -> None:
    nets.check_export(nets.save(nets.cnn(), tmp_path / name), "savedmodel", tmp_path)
