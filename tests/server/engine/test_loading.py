"""What a model goes through before it is ready."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from salver.bundle import Bundle
from salver.core.errors import FailedPrecondition, InvalidArgument, UnknownName
from salver.core.model import Model
from salver.server.engine.config import ModelConfig, WarmUp
from salver.server.engine.folder import Told
from salver.server.engine.loading import load, taste, warm_up
from salver.server.engine.repository import open_model
from salver.server.settings import RunSettings, ServeSettings
from salver.testing.engine import FunctionSession


def save(path: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], shape: list[str | int]) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], 3])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def make_raw(path: Path, *, dynamic: bool, batch: str | int = "batch") -> Bundle:
    """One dense layer, in float or with dynamic quantization, whose scale is taken over the whole batch."""
    weights = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    if not dynamic:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        save(path, nodes, [numpy_helper.from_array(weights, "w")], [batch, 4])
    else:
        scale = np.float32(np.abs(weights).max() / 127)
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
            helper.make_node("MatMulInteger", ["xq", "w", "xz"], ["i"]),
            helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["xs", "ws"], ["s"]),
            helper.make_node("Mul", ["f", "s"], ["y"]),
        ]
        quantized = np.round(weights / scale).astype(np.int8)
        save(path, nodes, [numpy_helper.from_array(quantized, "w"), numpy_helper.from_array(scale, "ws")], [batch, 4])
    return open_model(path, "m")


def test_the_provider_reaches_the_runtime(digits_bundle: Path) -> None:
    with load(Bundle.open(digits_bundle), RunSettings(provider="cpu")).session as session:
        assert session.signature.inputs
    with pytest.raises(UnknownName, match=r"execution provider.*'warp'.*auto.*cpu"):
        load(Bundle.open(digits_bundle), RunSettings(provider="warp"))


def test_golden_requests_are_replayed(digits_bundle: Path) -> None:
    loaded = load(Bundle.open(digits_bundle), RunSettings())
    assert loaded.golden == 3
    loaded.session.close()


def test_a_model_that_gives_other_answers_is_refused(wrong_bundle: Path) -> None:
    with pytest.raises(FailedPrecondition, match="golden requests failed on this machine"):
        load(Bundle.open(wrong_bundle), RunSettings())


def test_warm_up_learns_what_batches_cost(digits: Model) -> None:
    loaded = load(Bundle.wrap(digits, "m", "raw"), RunSettings(max_batch=16))
    assert 0 < loaded.cost.mean_s(1) < math.inf
    assert 0 < loaded.cost.cpu_s(16) < math.inf
    assert loaded.merge
    assert loaded.merge_reason == "tried at load on made-up rows"


def test_a_raw_model_whose_rows_change_each_other_is_not_merged(tmp_path: Path) -> None:
    safe = load(make_raw(tmp_path / "safe.onnx", dynamic=False), RunSettings())
    unsafe = load(make_raw(tmp_path / "unsafe.onnx", dynamic=True), RunSettings())
    assert safe.merge
    assert not unsafe.merge
    assert "batch-mates change its answers" in unsafe.merge_reason


def test_more_runs_before_it_is_ready(digits: Model) -> None:
    session = FunctionSession(digits.signature, lambda inputs: {"scores": inputs["image"]})
    warm_up(session, {"image": np.zeros((2, 1, 28, 28), np.float32)}, WarmUp(rows=5, count=3))
    warm_up(session, {}, WarmUp())
    assert session.batches == [5, 5, 5]
    load(Bundle.wrap(digits, "m", "raw"), RunSettings(), ModelConfig(warm_up=(WarmUp(rows=3, count=2),)))


def test_names_of_classes_are_part_of_the_signature(digits: Model) -> None:
    output = digits.signature.outputs[0].name
    told = Told(class_names={output: tuple("abcdefghij")})
    tasted = taste(digits.path, "m", told, ServeSettings())
    assert tasted.loaded.session.signature.outputs[0].labels == tuple("abcdefghij")
    with pytest.raises(InvalidArgument, match=f"output 'other', which the model has not; it has '{output}'"):
        taste(digits.path, "m", Told(class_names={"other": ("a",)}), ServeSettings())


def test_a_model_without_a_batch_dimension_is_not_merged(tmp_path: Path) -> None:
    fixed = load(make_raw(tmp_path / "fixed.onnx", dynamic=False, batch=2), RunSettings())
    assert not fixed.merge
    assert "no batch dimension" in fixed.merge_reason
    assert fixed.cost.mean_s(1) > 0
