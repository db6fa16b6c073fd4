"""int8-static."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from salver.backends import open_session
from salver.builder.passes import PassContext, make_pass
from salver.builder.passes._int8_static import WEIGHTED, quantizable_nodes
from salver.core.dataset import Dataset
from salver.core.errors import FailedPrecondition, InvalidArgument, PassNotApplicable, UnknownName
from salver.core.model import Blob, Model
from salver.testing.passes import ArrayDataset, PassConformance, save_model
from tests.builder.passes.graphs import cnn, cnn_graph, digits, examples, graph


def accuracy(model: Model) -> float:
    images, labels = digits()
    with open_session(model) as session:
        logits = session.run({"image": images[1200:]})["logits"]
    return float(np.mean(logits.argmax(1) == labels[1200:]))


class TestInt8Static(PassConformance):
    pass_name = "int8-static"
    configs = (
        {},
        {"per_channel": True},
        {"op_types": list(WEIGHTED), "activation_type": "int8", "activation_symmetric": True},
        {"weight_type": "uint8", "weight_symmetric": False, "reduce_range": True},
        {"calibration": "percentile", "percentile": 99.9},
        {"calibration": "entropy"},
        {"runtime_defaults": True},
    )
    max_change = None

    def test_smaller_and_as_accurate(self, model: Model, tmp_path: Path) -> None:
        before = accuracy(model)
        assert before > 0.85
        for number, config in enumerate(({}, {"per_channel": True}, {"calibration": "percentile"})):
            result = self.run_pass(model, examples(0, 256), tmp_path / str(number), config)
            assert accuracy(result) > before - 0.02
            assert result.size_bytes < 0.6 * model.size_bytes

    def test_needs_examples(self, model: Model, tmp_path: Path) -> None:
        with pytest.raises(FailedPrecondition, match="calibration"):
            make_pass(self.pass_name).apply(model, PassContext(workdir=tmp_path))

    def test_excluded_nodes_stay_fp32(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        names = quantizable_nodes(model, WEIGHTED, tmp_path)
        assert len(names) == 3
        result = self.run_pass(model, data, tmp_path / "out", {"exclude_nodes": [names[0]]})
        kept = [t for t in onnx.load(result.path).graph.initializer if list(t.dims) == [12, 1, 3, 3]]
        assert [t.data_type for t in kept] == [TensorProto.FLOAT]

    def test_excluding_all_leaves_nothing(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        names = list(quantizable_nodes(model, WEIGHTED, tmp_path))
        with pytest.raises(PassNotApplicable, match="no node of type"):
            self.run_pass(model, data, tmp_path / "out", {"exclude_nodes": names})
        with pytest.raises(UnknownName, match="'nope'"):
            self.run_pass(model, data, tmp_path / "out2", {"exclude_nodes": ["nope"]})

    def test_matmul_covers_the_gemm_that_preparation_makes_of_it(
        self, model: Model, data: Dataset, tmp_path: Path
    ) -> None:
        both = self.run_pass(model, data, tmp_path / "both", {"op_types": ["Conv", "MatMul", "Gemm"]})
        named = self.run_pass(model, data, tmp_path / "named", {"op_types": ["Conv", "MatMul"]})
        assert both.size_bytes == named.size_bytes

    def test_products_of_activations_stay_fp32(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["q"], name="project"),
            helper.make_node("Transpose", ["q"], ["k"], name="turn", perm=[0, 2, 1]),
            helper.make_node("MatMul", ["q", "k"], ["y"], name="attend"),
        ]
        proto = graph(
            nodes,
            {"w": rng.normal(size=(8, 8)).astype(np.float32)},
            {"x": (TensorProto.FLOAT, ["batch", 4, 8])},
            {"y": ["batch", 4, 4]},
        )
        model = save_model(proto, tmp_path / "attention.onnx")
        assert quantizable_nodes(model, WEIGHTED, tmp_path) == ("project",)

    def test_activations_that_are_not_finite_are_named(self, tmp_path: Path) -> None:
        model = cnn(tmp_path)
        images = digits()[0][:8].copy()
        images[5, 0, 0, 0] = np.inf
        with pytest.raises(PassNotApplicable, match="activation 'image' is NaN or infinite"):
            self.run_pass(model, ArrayDataset({"image": images}), tmp_path / "out", {})

    def test_constant_inputs_give_a_model_that_runs(self, model: Model, tmp_path: Path) -> None:
        zeros = ArrayDataset({"image": np.zeros((5, 1, 8, 8), np.float32)})
        for number, method in enumerate(("minmax", "entropy", "percentile")):
            result = self.run_pass(model, zeros, tmp_path / str(number), {"calibration": method})
            with open_session(result) as session:
                assert np.isfinite(session.run(next(zeros.batches(2)).inputs)["logits"]).all()

    def test_no_examples_are_refused(self, model: Model, tmp_path: Path) -> None:
        nothing = ArrayDataset({"image": np.zeros((0, 1, 8, 8), np.float32)})
        with pytest.raises(PassNotApplicable, match="no calibration examples"):
            self.run_pass(model, nothing, tmp_path / "out", {})

    def test_a_fixed_batch_is_kept(self, tmp_path: Path) -> None:
        proto = cnn_graph()
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 4
        model = save_model(proto, tmp_path / "fixed.onnx")
        result = self.run_pass(model, examples(0, 10), tmp_path / "out", {})
        with open_session(result) as session:
            assert session.run({"image": digits()[0][:4]})["logits"].shape == (4, 10)

    def test_external_data_is_read(self, data: Dataset, tmp_path: Path) -> None:
        inside = cnn(tmp_path)
        folder = tmp_path / "external"
        folder.mkdir()
        proto = onnx.load(inside.path)
        onnx.save(proto, folder / "cnn.onnx", save_as_external_data=True, location="cnn.data", size_threshold=0)
        blobs = (Blob.of(folder / "cnn.onnx"), Blob.of(folder / "cnn.data"))
        outside = Model(format="onnx", signature=inside.signature, blobs=blobs)
        first = self.run_pass(inside, data, tmp_path / "a", {})
        second = self.run_pass(outside, data, tmp_path / "b", {})
        assert first.digest == second.digest

    def test_settings_that_cannot_be_are_refused(self) -> None:
        with pytest.raises(InvalidArgument, match="percentile: got 40"):
            make_pass(self.pass_name, {"percentile": 40.0})
        with pytest.raises(InvalidArgument, match="runtime_defaults"):
            make_pass(self.pass_name, {"runtime_defaults": True, "per_channel": True})
        with pytest.raises(InvalidArgument, match="calibration"):
            make_pass(self.pass_name, {"calibration": "guess"})
