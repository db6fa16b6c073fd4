"""bf16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from salver.backends import open_session
from salver.core.dataset import Dataset
from salver.core.model import Model
from salver.testing.passes import ArrayDataset, PassConformance, save_model
from tests.builder.passes.graphs import graph


class TestBf16(PassConformance):
    pass_name = "bf16"
    max_change = 0.1

    def test_halves_the_file(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        assert self.run_pass(model, data, tmp_path / "out", {}).size_bytes < 0.6 * model.size_bytes

    def test_rounds_to_the_nearest_and_ties_to_even(self, tmp_path: Path) -> None:
        weights = np.zeros((8, 8), np.float32)
        weights[0, :4] = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7, -3.0e38]  # a tie down, a tie up, exact, large
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        model = save_model(
            graph(nodes, {"w": weights}, {"x": (TensorProto.FLOAT, ["b", 8])}, {"y": ["b", 8]}), tmp_path / "ties.onnx"
        )
        data = ArrayDataset({"x": np.eye(8, dtype=np.float32)[:1].repeat(4, axis=0)})
        with open_session(self.run_pass(model, data, tmp_path / "out", {})) as session:
            row = session.run(next(data.batches(1)).inputs)["y"][0]
        assert row[:3].tolist() == [1.0, 1 + 2**-6, 1 + 2**-7]
        assert abs(row[3] / -3.0e38 - 1) < 2**-8
