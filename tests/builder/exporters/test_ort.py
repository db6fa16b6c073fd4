"""ORT format out."""

from __future__ import annotations

import pytest

from salver.builder.importers import Imported
from salver.testing.exporters import ExporterConformance


class TestOrt(ExporterConformance):
    exporter_name = "ort"
    deterministic = False  # ONNX Runtime writes tables in the order of a hash

    @pytest.fixture(params=["digits", "external"])
    def imported(self, request: pytest.FixtureRequest) -> Imported:
        return request.getfixturevalue(request.param)

    @pytest.fixture
    def refused(self, native_only: Imported) -> Imported:
        return native_only
