"""HDF5 files written from Keras models."""

from __future__ import annotations

from typing import Any

import pytest

from tests import tensorflow_nets as nets
from tests.builder.exporters.test_keras import TestKeras as KerasSuite

h5py = pytest.importorskip("h5py", reason=nets.NEEDED)


class TestH5(KerasSuite):
    exporter_name = "h5"

    def test_it_is_one_hdf5_file_with_its_configuration(self, exported: Any) -> None:
        with h5py.File(exported.model.path) as file:
            assert "conv" in file.attrs["model_config"]
            assert "model_weights" in file
