"""The same graph on OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from salver.backends import open_session
from salver.builder.passes import PassContext, make_pass
from salver.core.dataset import Dataset
from salver.core.errors import PassNotApplicable
from salver.core.model import Model
from salver.testing.passes import ArrayDataset, PassConformance, save_model

pytest.importorskip("openvino", reason="pip install 'salver[openvino]'")


def net(*nodes: object, kind: int = TensorProto.FLOAT, weights: tuple[TensorProto, ...] = ()) -> ModelProto:
    """A graph from ``x [batch, 4]`` to ``y``."""
    x, y = (helper.make_tensor_value_info(name, kind, ["batch", 4]) for name in "xy")
    graph = helper.make_graph(list(nodes), "net", [x], [y], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class TestOpenvino(PassConformance):
    pass_name = "openvino"
    max_change = 1e-5

    def test_refuses_what_it_has_nothing_to_do_for(self, tmp_path: Path) -> None:
        """It takes whatever OpenVINO has types and operators for."""
        model = save_model(
            net(helper.make_node("Identity", ["x"], ["y"]), kind=TensorProto.STRING), tmp_path / "s.onnx"
        )
        with pytest.raises(PassNotApplicable, match="OpenVINO cannot run the model"):
            self.run_pass(model, None, tmp_path / "out", {})

    def test_another_runtime_runs_it(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        assert self.run_pass(model, data, tmp_path / "out", {}).format == "openvino"

    def test_after_it_no_pass_applies(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        moved = self.run_pass(model, data, tmp_path / "out", {})
        with pytest.raises(PassNotApplicable, match="'openvino'"):
            self.run_pass(moved, data, tmp_path / "again", {})

    def test_other_answers_are_found(self, tmp_path: Path) -> None:
        """OpenVINO's CPU computes 64-bit floats in 32 bits."""
        large = numpy_helper.from_array(np.full(4, 1e9), "w")
        nodes = helper.make_node("Mul", ["x", "w"], ["angle"]), helper.make_node("Sin", ["angle"], ["y"])
        model = save_model(net(*nodes, kind=TensorProto.DOUBLE, weights=(large,)), tmp_path / "wide.onnx")
        data = ArrayDataset({"x": np.random.default_rng(0).normal(size=(8, 4))})
        with pytest.raises(PassNotApplicable, match=r"openvino gives other answers: .*'y'"):
            self.run_pass(model, data, tmp_path / "out", {})

    def test_what_was_quantized_is_for_quality_to_judge(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        (tmp_path / "int8").mkdir()
        config = {"op_types": ["Conv", "MatMul", "Gemm"], "per_channel": True}
        small = make_pass("int8-static", config)
        quantized = small.apply(model, PassContext(workdir=tmp_path / "int8", calibration=data))
        moved = self.run_pass(quantized, data, tmp_path / "out", {})
        assert [step.name for step in moved.lineage[-2:]] == ["int8-static", "openvino"]
        inputs = next(data.batches(64)).inputs
        with open_session(model) as before, open_session(moved) as after:
            expected, got = (next(iter(session.run(inputs).values())) for session in (before, after))
        assert np.mean(expected.argmax(-1) == got.argmax(-1)) > 0.9

    def test_control_flow_gives_the_same_bytes(self, tmp_path: Path) -> None:
        branches = {
            f"{name}_branch": helper.make_graph(
                [helper.make_node(kind, ["x", "x"], [name])],
                name,
                [],
                [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
            )
            for name, kind in (("then", "Add"), ("else", "Mul"))
        }
        nodes = (
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["is_positive"]),
            helper.make_node("If", ["is_positive"], ["y"], **branches),
        )
        zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
        model = save_model(net(*nodes, weights=(zero,)), tmp_path / "if.onnx")
        made = [self.run_pass(model, None, tmp_path / name, {}) for name in ("first", "second")]
        assert made[0].digest == made[1].digest
