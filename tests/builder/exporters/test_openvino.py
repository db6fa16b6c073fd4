"""OpenVINO IR out."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from salver.builder.exporters import ExportOptions, export_model, find_exporter
from salver.builder.importers import Imported, load_model
from salver.testing.exporters import ExporterConformance

pytest.importorskip("openvino", reason="pip install 'salver[openvino]'")


class TestOpenvino(ExporterConformance):
    exporter_name = "openvino"

    @pytest.fixture(params=["digits", "external"])
    def imported(self, request: pytest.FixtureRequest) -> Imported:
        return request.getfixturevalue(request.param)

    @pytest.fixture
    def refused(self, native_only: Imported) -> Imported:
        return native_only


class TestFloat16(TestOpenvino):
    options: ClassVar[ExportOptions] = ExportOptions(precision="float16")
    atol = 0.05


def test_float16_takes_half_the_place(digits: Imported, tmp_path: Path) -> None:
    sizes = []
    for precision in ("source", "float16"):
        options = ExportOptions(precision=precision)
        path = tmp_path / f"{precision}.xml"
        sizes.append(export_model(digits, find_exporter("openvino", precision), path, options=options).model.blobs[1])
    assert sizes[1].size_bytes < 0.6 * sizes[0].size_bytes


def test_what_came_from_ir_goes_back_to_ir(digits: Imported, tmp_path: Path) -> None:
    first = export_model(digits, find_exporter("openvino"), tmp_path / "first.xml")
    imported = load_model(first.model.path, workdir=tmp_path / "in")
    again = export_model(imported, find_exporter("openvino"), tmp_path / "again.xml")
    assert again.parity is not None
    assert again.parity.outputs[0].max_abs == 0
