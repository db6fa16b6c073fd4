"""prune-magnitude."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from salver.builder.passes import PASSES, make_pass
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument
from salver.core.model import Model
from salver.testing.passes import PassConformance


def zeros(model: Model) -> dict[str, float]:
    """Share of zeros of each weight."""
    names = ("kernel", "hidden", "output")
    return {
        t.name: float(np.mean(numpy_helper.to_array(t) == 0))
        for t in onnx.load(model.path).graph.initializer
        if t.name in names
    }


class TestPruneMagnitude(PassConformance):
    pass_name = "prune-magnitude"
    configs = ({"sparsity": 0.2}, {"sparsity": 0.2, "scope": "tensor"})
    max_change = None

    def test_per_tensor_each_has_the_share(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        result = self.run_pass(model, data, tmp_path / "out", {"sparsity": 0.75, "scope": "tensor"})
        assert all(abs(share - 0.75) < 0.01 for share in zeros(result).values())

    def test_global_removes_the_smallest_of_all(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        result = self.run_pass(model, data, tmp_path / "out", {"sparsity": 0.5})
        before, after = (
            np.concatenate(
                [
                    numpy_helper.to_array(t).reshape(-1)
                    for t in onnx.load(m.path).graph.initializer
                    if t.name in ("kernel", "hidden", "output")
                ]
            )
            for m in (model, result)
        )
        assert np.mean(after == 0) == pytest.approx(0.5, abs=1e-3)
        assert np.abs(before[after == 0]).max() <= np.abs(before[after != 0]).min()

    def test_excluded_nodes_keep_their_weights(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        result = self.run_pass(model, data, tmp_path / "out", {"exclude_nodes": ["conv"]})
        assert zeros(result)["kernel"] == zeros(model)["kernel"] == 0

    def test_says_that_no_speed_is_to_be_expected(self) -> None:
        assert "dense kernels do not skip zeros" in PASSES.get(self.pass_name).gives_speed

    @pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.1])
    def test_shares_out_of_range_are_refused(self, sparsity: float) -> None:
        with pytest.raises(InvalidArgument, match="sparsity"):
            make_pass(self.pass_name, {"sparsity": sparsity})
