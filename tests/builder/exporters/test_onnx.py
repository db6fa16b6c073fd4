"""ONNX out."""

from __future__ import annotations

from pathlib import Path

import pytest

from salver.builder.exporters import export_model, find_exporter
from salver.builder.importers import Imported, load_model
from salver.testing.exporters import ExporterConformance


class TestOnnx(ExporterConformance):
    exporter_name = "onnx"

    @pytest.fixture(params=["digits", "external"])
    def imported(self, request: pytest.FixtureRequest) -> Imported:
        return request.getfixturevalue(request.param)

    @pytest.fixture
    def refused(self, native_only: Imported) -> Imported:
        return native_only


def test_external_data_get_the_name_of_the_model_and_load_again(external: Imported, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    exported = export_model(external, find_exporter("onnx"), tmp_path / "out" / "net.onnx")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["net.onnx", "net.onnx.data"]
    again = load_model(exported.model.path, workdir=tmp_path / "again")
    assert again.parity.outputs[0].max_abs == 0
    assert exported.parity is not None
    assert exported.parity.outputs[0].max_abs == 0
