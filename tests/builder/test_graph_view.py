"""A real model's graph with the times of its operators."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from salver.backends import find_backend
from salver.builder.graph_view import view_graph
from salver.core.errors import Unimplemented
from salver.core.model import Blob, Model

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


def model_of(path: Path) -> Model:
    blob = Blob.of(path)
    return Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob,))


def test_operators_are_timed_as_they_run_and_as_they_are_stored() -> None:
    info = view_graph(model_of(DIGITS), "digits")
    served, stored = info.views
    assert (served.title, stored.title) == ("as it runs here", "as stored")
    for view in (served, stored):
        assert view.nodes
        assert all(node.time_ms is not None and node.time_ms >= 0 for node in view.nodes)
        assert sum(node.time_ms or 0 for node in view.nodes) > 0
    assert sum(node.weight_bytes for node in stored.nodes) == pytest.approx(DIGITS.stat().st_size, rel=0.1)
    assert "made-up inputs" in info.facts["measured on"]


def test_bodies_have_views_of_their_own_and_what_they_read_from_around_is_an_input(tmp_path: Path) -> None:
    path = tmp_path / "branch.onnx"
    one = numpy_helper.from_array(np.ones((2, 2), np.float32), "one")
    bodies = {}
    for key, op in (("then_branch", "Add"), ("else_branch", "MatMul")):
        value = helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, None)
        bodies[key] = helper.make_graph([helper.make_node(op, ["x", "one"], [f"{op}_out"])], key, [], [value], [one])
    graph = helper.make_graph(
        [helper.make_node("If", ["flag"], ["y"], name="choice", **bodies)],
        "branch",
        [
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )
    x = np.eye(2, dtype=np.float32)
    info = view_graph(model_of(path), "branch", [{"flag": np.array(True), "x": x}])
    titles = [view.title for view in info.views if view.title.startswith("as stored")]
    assert titles == ["as stored", "as stored / choice / else_branch", "as stored / choice / then_branch"]
    choice = next(view for view in info.views if view.title == "as stored").nodes[0]
    assert [port.tensor for port in choice.inputs] == ["flag", "x"]
    assert choice.bodies == tuple(titles[1:])
    branches = {view.title: view.nodes[0] for view in info.views if view.title in titles[1:]}
    assert branches[titles[2]].time_ms is not None
    assert branches[titles[1]].time_ms is None  # never taken


def test_operators_without_names_are_timed_too() -> None:
    magika = files("magika") if _has_magika() else None
    if magika is None:
        pytest.skip("needs magika's network: pip install --no-deps magika")
    path = next(Path(str(magika)).rglob("*.onnx"))
    served = view_graph(model_of(path), "magika").views[0]
    assert len(served.nodes) > 20
    assert sum(node.time_ms is not None for node in served.nodes) == len(served.nodes)


def _has_magika() -> bool:
    try:
        files("magika")
    except ModuleNotFoundError:
        return False
    return True


def test_other_formats_are_refused_by_name(tmp_path: Path) -> None:
    model = model_of(DIGITS)
    other = Model(format="tflite", signature=model.signature, blobs=model.blobs)
    with pytest.raises(Unimplemented, match="'phone' is a model of format 'tflite'"):
        view_graph(other, "phone")
