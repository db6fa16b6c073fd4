"""Keras files written from Keras models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.builder.importers import load_model
from salver.builder.importers.base import Imported
from tests import tensorflow_nets as nets
from tests.tensorflow_nets import keras


class TestKeras(nets.KerasExports):
    exporter_name = "keras"

    @pytest.fixture
    def refused(self, tmp_path: Path) -> Imported:
        return load_model(nets.save(nets.cnn(), tmp_path / "saved"), workdir=tmp_path / "refused")

    def test_keras_reads_it_layers_and_all(self, exported: Any) -> None:
        model = keras.saving.load_model(exported.model.path, compile=False)
        assert model.get_layer("conv").filters == 16
        x = nets.digits()[0][:4]
        np.testing.assert_allclose(model(x), nets.cnn()(x), atol=1e-5)

    @pytest.mark.parametrize("suffix", [".keras", ".h5"])
    def test_both_kinds_of_file_are_sources(self, tmp_path: Path, suffix: str) -> None:
        nets.check_export(nets.save(nets.cnn(), tmp_path / f"net{suffix}"), self.exporter_name, tmp_path)
