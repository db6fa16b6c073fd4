"""A model that another runtime runs faster: found by the search, sealed, verified, and served beside ONNX models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from salver.cli import run
from tests.e2e.conftest import serving

pytest.importorskip("openvino", reason="pip install 'salver[openvino]'")

WIDTH = 8192
CLASSES = 4
STEPS = 40


def chain(path: Path) -> Path:
    """Element by element, one operator after another: OpenVINO makes one loop of them, ONNX Runtime a loop of each."""
    rng = np.random.default_rng(0)
    weights = {
        "scale": rng.uniform(0.9, 1.1, WIDTH).astype(np.float32),
        "shift": rng.normal(0, 0.1, WIDTH).astype(np.float32),
        "classes": (rng.normal(size=(WIDTH, CLASSES)) / 8).astype(np.float32),
    }
    nodes, last = [], "x"
    for number in range(STEPS):
        nodes += [
            helper.make_node("Mul", [last, "scale"], [f"m{number}"]),
            helper.make_node("Add", [f"m{number}", "shift"], [f"a{number}"]),
            helper.make_node("Abs", [f"a{number}"], [f"r{number}"]),
        ]
        last = f"r{number}"
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", [last, "classes"], ["scores"])],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_the_search_moves_a_model_to_where_it_is_faster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, data, bundle = chain(tmp_path / "chain.onnx"), tmp_path / "x.npz", tmp_path / "chain.salver"
    x = np.random.default_rng(1).normal(size=(900, WIDTH)).astype(np.float32)
    np.savez(data, x=x)
    build = ["build", str(source), "--data", str(data), "--budget", "60s", "--backends", "openvino", "--json"]
    assert run([*build, "--cache", str(tmp_path / "cache"), "-o", str(bundle)]) == 0
    record = json.loads(capsys.readouterr().out)["record"]
    assert "openvino" in record["chosen"]
    assert any("pip install 'salver[openvino]'" in why for why in record["why"])
    assert run(["verify", str(bundle)]) == 0
    assert "golden requests gave the stored answers" in capsys.readouterr().out
    plain = Path(shutil.copy(source, tmp_path / "plain.onnx"))
    with serving(bundle, plain, "--lanes", "2") as server:
        given = {"name": "x", "shape": [1, WIDTH], "datatype": "FP32", "data": x[0].tolist()}
        answers = []
        for name in ("chain", "plain"):
            status, answer = server.call(f"/v2/models/{name}/infer", {"inputs": [given]})
            assert status == 200
            answers.append(answer["outputs"][0]["data"])
        np.testing.assert_allclose(*answers, rtol=1e-3, atol=1e-3)
        assert server.call("/v2/models/chain")[1]["platform"] == "openvino_openvinov1"
