"""int8-dynamic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from salver.backends import open_session
from salver.builder.passes import make_pass
from salver.builder.passes._int8_static import quantizable_nodes
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument, PassNotApplicable, UnknownName
from salver.core.model import Model
from salver.testing.passes import ArrayDataset, PassConformance, save_model
from tests.builder.passes.graphs import cnn_graph, recurrent_graph


def ops(model: Model) -> set[str]:
    return {node.op_type for node in onnx.load(model.path).graph.node}


class TestInt8Dynamic(PassConformance):
    pass_name = "int8-dynamic"
    configs = ({}, {"weight_type": "uint8"}, {"per_channel": True, "reduce_range": True})
    max_change = 0.3

    def test_convolutions_stay_fp32(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        made = ops(self.run_pass(model, data, tmp_path / "out", {}))
        assert {"Conv", "MatMulInteger"} <= made
        assert "ConvInteger" not in made

    def test_runtime_defaults_fall_into_the_runtimes_own_trap(
        self, model: Model, data: Dataset, tmp_path: Path
    ) -> None:
        """The default recipe quantizes Conv: with int8 weights this runtime may have no kernel, or a slow one."""
        try:
            made = ops(self.run_pass(model, data, tmp_path / "out", {"runtime_defaults": True}))
        except PassNotApplicable as error:
            assert "ConvInteger" in error.message
        else:
            assert "ConvInteger" in made

    @pytest.mark.parametrize("kept", ["hidden", "output"])
    def test_excluded_nodes_stay_fp32(self, model: Model, data: Dataset, tmp_path: Path, kept: str) -> None:
        (tmp_path / "names").mkdir()
        names = quantizable_nodes(model, ["MatMul"], tmp_path / "names")
        excluded = [name for name in names if name.startswith(kept)]
        assert len(names) == 2
        assert len(excluded) == 1
        result = self.run_pass(model, data, tmp_path / "out", {"op_types": ["MatMul"], "exclude_nodes": excluded})
        weights = {t.name: t.data_type for t in onnx.load(result.path).graph.initializer if len(t.dims) == 2}
        assert sorted(weights.values()) == [TensorProto.FLOAT, TensorProto.INT8]
        assert weights[kept] == TensorProto.FLOAT

    def test_embeddings_and_recurrent_layers_shrink(self, tmp_path: Path) -> None:
        model = save_model(recurrent_graph(), tmp_path / "lstm.onnx")
        data = ArrayDataset({"ids": np.random.default_rng(1).integers(0, 40, (9, 6))})
        result = self.run_pass(model, data, tmp_path / "out", {})
        floats = {t.name for t in onnx.load(result.path).graph.initializer if t.data_type == TensorProto.FLOAT}
        assert not floats & {"table", "w", "r", "dense"}
        with open_session(model) as before, open_session(result) as after:
            inputs = next(data.batches(9)).inputs
            assert np.abs(before.run(inputs)["scores"] - after.run(inputs)["scores"]).max() < 0.1

    def test_runtime_defaults_stand_alone(self) -> None:
        with pytest.raises(InvalidArgument, match="runtime_defaults"):
            make_pass(self.pass_name, {"runtime_defaults": True, "per_channel": True})

    def test_an_unknown_node_to_exclude_is_refused(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        with pytest.raises(UnknownName, match="outpt"):
            self.run_pass(model, data, tmp_path / "out", {"exclude_nodes": ["outpt"]})

    def test_an_old_opset_is_refused(self, data: Dataset, tmp_path: Path) -> None:
        proto = cnn_graph()
        proto.opset_import[0].version = 11
        model = save_model(proto, tmp_path / "old.onnx")
        with pytest.raises(PassNotApplicable, match="opset 11"):
            self.run_pass(model, data, tmp_path / "out", {})
