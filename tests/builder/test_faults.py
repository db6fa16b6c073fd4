"""What breaks elsewhere when models are quantized, shown to be refused or left aside here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import salver
from salver.backends import open_session
from salver.core.errors import Unimplemented

RANDOM = np.random.default_rng(0)
CLASSES = 4


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8])
def test_a_quantized_file_runs_right_or_is_refused_with_its_node(kind: int, tmp_path: Path) -> None:
    """``NOT_IMPLEMENTED ... ConvInteger(10)``: https://github.com/microsoft/onnxruntime/issues/15888. Which types have
    a kernel depends on the version of the runtime."""
    weights = RANDOM.integers(-9, 9, (2, 1, 3, 3)).astype(np.int8)
    graph = helper.make_graph(
        [helper.make_node("ConvInteger", ["x", "w"], ["y"], name="stem_quant")],
        "quantized",
        [helper.make_tensor_value_info("x", kind, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["n", 2, 6, 6])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = RANDOM.integers(0, 100, (3, 1, 8, 8)).astype(helper.tensor_dtype_to_np_dtype(kind))
    try:
        loaded = salver.load(model, workdir=tmp_path)
    except Unimplemented as error:
        assert "node 'stem_quant', operator 'ConvInteger'" in error.message
    else:
        windows = np.lib.stride_tricks.sliding_window_view(x[:, 0].astype(np.int32), (3, 3), axis=(1, 2))
        expected = np.einsum("nijkl,okl->noij", windows, weights[:, 0].astype(np.int32))
        with open_session(loaded) as session:
            assert session.run({"x": x})["y"].tolist() == expected.tolist()


@pytest.fixture(scope="module")
def outlier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A network that is always right, one of whose inputs is thousands of times as large as the others and means
    nothing: 8 bits for all of them together leave the others none."""
    x = RANDOM.standard_normal((600, 9)).astype(np.float32)
    x[:, 8] *= 20_000
    weights = RANDOM.standard_normal((9, CLASSES)).astype(np.float32)
    weights[8] = 0
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"], name="head")],
        "outlier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 9])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path_factory.mktemp("outlier") / "outlier.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path, {"x": x, "label": (x @ weights).argmax(1)}


def test_a_collapse_by_quantization_is_rejected_and_said(
    outlier: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """From 70 % to 0.1 % without a word: https://github.com/microsoft/onnxruntime-inference-examples/issues/319."""
    path, data = outlier
    bundle = salver.build(path, data, output=tmp_path / "out.salver", cache=tmp_path / "cache", budget_s=25)
    assert bundle.record is not None
    qualities = {
        c.name: c.evaluation.quality for c in bundle.record.candidates if c.evaluation and c.evaluation.quality
    }
    collapsed = {name for name, quality in qualities.items() if quality.value < quality.baseline - 0.2}
    outcomes = {c.name: c.verdict for c in bundle.record.candidates}
    assert collapsed, qualities
    assert all(outcomes[name].outcome in ("rejected", "not-certified") for name in collapsed)
    assert bundle.record.chosen not in collapsed
    sealed = qualities[bundle.record.chosen]
    assert sealed.value >= sealed.baseline - 0.005
