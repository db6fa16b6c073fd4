"""Weights out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from salver.builder.exporters import export_model, find_exporter
from salver.builder.importers import Imported, load_model
from salver.core.errors import Unimplemented
from salver.testing.exporters import ExporterConformance

numpy_file = pytest.importorskip("safetensors.numpy", reason="pip install 'salver[safetensors]'")


class TestSafetensors(ExporterConformance):
    exporter_name = "safetensors"
    runs = False

    @pytest.fixture(params=["digits", "external"])
    def imported(self, request: pytest.FixtureRequest) -> Imported:
        return request.getfixturevalue(request.param)

    @pytest.fixture
    def refused(self, native_only: Imported) -> Imported:
        return native_only


@pytest.mark.parametrize("name", ["digits", "external"])
def test_every_weight_is_there_bit_for_bit(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    imported: Imported = request.getfixturevalue(name)
    export_model(imported, find_exporter("safetensors"), tmp_path / "net.safetensors")
    graph = onnx.load(imported.model.path).graph
    expected = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    found = numpy_file.load_file(tmp_path / "net.safetensors")
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)


def test_a_weight_it_cannot_hold_is_named(tmp_path: Path) -> None:
    words = helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["words", "x"], ["y"])],
        "words",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["n"])],
        [words],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    imported = load_model(model, data={"x": np.array([0, 1, 1, 0])}, workdir=tmp_path / "in")
    with pytest.raises(Unimplemented, match=r"weight 'words' is STRING.*--to onnx"):
        export_model(imported, find_exporter("safetensors"), tmp_path / "net.safetensors")
