"""fp16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from salver.core.dataset import Dataset
from salver.core.model import Model
from salver.testing.passes import ArrayDataset, PassConformance, save_model
from tests.builder.passes.graphs import graph


class TestFp16(PassConformance):
    pass_name = "fp16"
    configs = ({}, {"compute": "fp16"})
    max_change = 0.02

    def test_halves_the_file(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        assert self.run_pass(model, data, tmp_path / "out", {}).size_bytes < 0.6 * model.size_bytes

    def test_weights_beyond_the_range_stay(self, tmp_path: Path) -> None:
        large, small = np.full((8, 8), 1e5, np.float32), np.full((8, 8), 0.5, np.float32)
        nodes = [helper.make_node("MatMul", ["x", "large"], ["m"]), helper.make_node("MatMul", ["m", "small"], ["y"])]
        model = save_model(
            graph(nodes, {"large": large, "small": small}, {"x": (TensorProto.FLOAT, ["b", 8])}, {"y": ["b", 8]}),
            tmp_path / "large.onnx",
        )
        result = self.run_pass(model, ArrayDataset({"x": np.ones((4, 8), np.float32)}), tmp_path / "out", {})
        stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(result.path).graph.initializer}
        assert np.array_equal(stored["large"], large)
        assert stored["small:fp16"].dtype == np.float16
