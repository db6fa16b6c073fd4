"""graph-optimize."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from salver.builder.passes import PassContext, make_pass
from salver.core.dataset import Dataset
from salver.core.errors import PassNotApplicable
from salver.core.model import Model
from salver.testing.passes import PassConformance


class TestGraphOptimize(PassConformance):
    pass_name = "graph-optimize"
    configs = ({}, {"level": "extended"})
    max_change = 1e-4

    def test_basic_merges_batch_normalization_within_standard_operators(
        self, model: Model, data: Dataset, tmp_path: Path
    ) -> None:
        graph = onnx.load(self.run_pass(model, data, tmp_path / "out", {}).path).graph
        assert "BatchNormalization" not in {node.op_type for node in graph.node}
        assert {node.domain for node in graph.node} == {""}

    def test_twice_finds_nothing(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        once = self.run_pass(model, data, tmp_path / "once", {})
        (tmp_path / "twice").mkdir()
        with pytest.raises(PassNotApplicable, match="nothing to optimize at level 'basic'"):
            make_pass(self.pass_name).apply(once, PassContext(workdir=tmp_path / "twice"))
