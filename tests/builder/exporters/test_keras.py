"""Keras files written from Keras models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.builder.importers import load_model
from salver.builder.importers.base import Imported
from salver.testing.exporters import ExporterConformance
from tests import tensorflow_nets as nets
from tests.tensorflow_nets import keras


class TestKeras(ExporterConformance):
    exporter_name = "keras"
    deterministic = False

    @pytest.fixture(params=[".keras", ".h5", "model"])
    def imported(self, request: pytest.FixtureRequest, tmp_path: Path) -> Imported:
        source = nets.cnn() if request.param == "model" else nets.save(nets.cnn(), tmp_path / f"net{request.param}")
        return load_model(source, workdir=tmp_path / "import")

    @pytest.fixture
    def refused(self, tmp_path: Path) -> Imported:
        return load_model(nets.save(nets.cnn(), tmp_path / "saved"), workdir=tmp_path / "refused")

    def test_keras_reads_it_layers_and_all(self, exported: Any) -> None:
        model = keras.saving.load_model(exported.model.path, compile=False)
        assert model.get_layer("conv").filters == 16
        x = nets.digits()[0][:4]
        np.testing.assert_allclose(model(x), nets.cnn()(x), atol=1e-5)
