"""onnxslim."""

from __future__ import annotations

from pathlib import Path

import onnx

from salver.core.dataset import Dataset
from salver.core.model import Model
from salver.testing.passes import PassConformance


class TestOnnxslim(PassConformance):
    pass_name = "onnxslim"
    configs = ({}, {"deduplicate": False})
    max_change = 1e-4

    def test_merges_batch_normalization(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        graph = onnx.load(self.run_pass(model, data, tmp_path / "out", {}).path).graph
        assert "BatchNormalization" not in {node.op_type for node in graph.node}
