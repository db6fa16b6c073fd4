"""A whole build on small models: what is refused before anything long begins, and what comes out."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import salver
from salver.core.errors import (
    FailedPrecondition,
    InvalidArgument,
    MissingExtra,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    UnknownName,
)

WIDTH = 64
CLASSES = 4


def _weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Two layers: large enough that 8 bits are faster, small enough for a second."""
    return _save(tmp_path / "net.onnx", ["batch", WIDTH], ["batch", CLASSES])


def _save(path: Path, given: list[Any], made: list[Any], *, unbatched: bool = False) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["s" if unbatched else "scores"]),
    ]
    if unbatched:
        nodes.append(helper.make_node("ReduceMean", ["s"], ["scores"], axes=[0], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, made)],
        [
            numpy_helper.from_array(_weights(WIDTH, 512), "w1"),
            numpy_helper.from_array(_weights(512, CLASSES, seed=1), "w2"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _data(rows: int, *inner: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(2).normal(size=(rows, *(inner or (WIDTH,)))).astype(np.float32)
    scores = np.maximum(x @ _weights(WIDTH, 512), 0) @ _weights(512, CLASSES, seed=1)
    scores = scores if scores.ndim == 2 else scores.mean(axis=1)
    return {"x": x, "label": scores.argmax(axis=1)}


def test_a_build_seals_a_bundle_with_a_verdict_for_every_candidate(network: Path, tmp_path: Path) -> None:
    bundle = salver.build(
        network, _data(900), max_drop="3pp", budget_s=40, output=tmp_path / "net.salver", cache=tmp_path / "cache"
    )
    with bundle:
        record = bundle.record
        assert record is not None
        names = [c.name for c in record.candidates]
        first = ["original", "runtime default: quantize_dynamic", "runtime default: quantize_static"]
        assert names[:3] == first[: len(names)]  # on a busy machine the budget may end before the third
        assert len(names) > 1
        assert all(c.verdict.reason for c in record.candidates)
        assert record.chosen in names
        assert sum(record.splits.values()) == 900
        answers = bundle.predict({"x": _data(5)["x"]})
    assert answers["scores"].shape == (5, CLASSES)
    assert [p.name for p in tmp_path.glob("*.partial")] == []


@pytest.mark.skipif(find_spec("openvino") is not None, reason="pip uninstall openvino: it must not be there")
def test_a_backend_that_is_not_installed_is_asked_for_in_vain(network: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'salver\[openvino\]'"):
        salver.build(network, _data(60), backends=["openvino"], output=tmp_path / "n.salver", cache=tmp_path / "c")
    assert not list(tmp_path.glob("*.salver"))


def test_the_framework_that_made_a_model_may_run_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="pip install 'salver[torch]'")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(WIDTH, 32), torch.nn.ReLU(), torch.nn.Linear(32, CLASSES)).eval()
    data = {"x": _data(300)["x"]}
    given = {"inputs": f"x:float32[batch,{WIDTH}]", "cache": tmp_path / "cache", "output": tmp_path / "net.salver"}
    with salver.build(net, data, backends=["torch", "onnxruntime"], budget_s=120, **given) as bundle:
        record = bundle.record
        assert record is not None
        [found] = [one for one in record.candidates if one.name == "torch"]
        assert found.recipe == ({"pass": "native", "config": {}},)
        assert found.evaluation is not None
        assert found.evaluation.steer[0].drop <= 0.02
        # A network of microseconds, run in a process of its own, where the framework alone takes 100 MiB.
        assert (found.verdict.outcome, found.verdict.gate) == ("rejected", "speed")
        assert found.evaluation.peak_memory_bytes > 50 << 20
        assert found.evaluation.latency[0].cpu_ms > found.evaluation.latency[0].baseline_cpu_ms
    pytest.importorskip("tensorflow", reason="pip install 'salver[tensorflow]'")
    with pytest.raises(InvalidArgument, match=r"'tensorflow' cannot run this model, .*; 'torch' can"):
        salver.build(net, data, backends=["tensorflow"], budget_s=30, **given)


def test_a_model_that_stays_in_its_framework_is_sealed_as_it_is(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs pip install 'salver[sklearn]'")
    discriminant_analysis = pytest.importorskip("sklearn.discriminant_analysis")
    skops_io = pytest.importorskip("skops.io", reason="needs pip install 'salver[sklearn]'")
    x, y = datasets.load_iris(return_X_y=True)
    estimator = discriminant_analysis.QuadraticDiscriminantAnalysis().fit(x, y)  # skl2onnx gives other answers
    output, cache = tmp_path / "flowers.salver", tmp_path / "cache"
    with salver.build(estimator, {"x": x, "label": y}, budget_s=3, output=output, cache=cache) as bundle:
        (blob,) = bundle.model.blobs
        assert (bundle.model.format, blob.name, blob.path) == ("sklearn", "model.skops", output)
        assert bundle.sizes()["model.skops"] == blob.size_bytes
        assert (skops_io.loads(blob.read()).predict(x) == estimator.predict(x)).all()
        answers = bundle.predict({"x": x})
        assert bundle.verify().ok
    assert (answers["label"] == estimator.predict(x)).all()
    np.testing.assert_array_equal(answers["probabilities"], estimator.predict_proba(x))


def test_a_model_without_batch_dimension_is_built(tmp_path: Path) -> None:
    path = _save(tmp_path / "single.onnx", [6, WIDTH], [CLASSES], unbatched=True)
    data = _data(120, 6, WIDTH)
    with salver.build(
        path, data, max_drop="10pp", budget_s=5, output=tmp_path / "single.salver", cache=tmp_path / "cache"
    ) as bundle:
        record = bundle.record
        assert record is not None
        assert not [c for c in record.candidates if c.verdict.outcome == "failed"]
        assert not record.hints["merge"]
        assert bundle.signature.inputs[0].shape == (6, WIDTH)


@pytest.mark.parametrize(
    ("change", "settings", "error", "message"),
    [
        ({"x": np.zeros((1, WIDTH), np.float32), "label": np.zeros(1, int)}, {}, InvalidArgument, "has 1 example;"),
        ({"label": np.arange(60) % 7}, {}, InvalidArgument, "label 4 is out of range"),
        ({"label": np.linspace(0.0, 1.0, 60)}, {}, InvalidArgument, "for a regression say --metric mse"),
        ({}, {"metric": "acuracy"}, InvalidArgument, "Did you mean 'accuracy'"),
        ({}, {"backends": ["openvin"]}, UnknownName, "Did you mean 'openvino'"),
        ({}, {"max_drop": "5"}, InvalidArgument, "write '5pp'"),
        ({}, {"max_drop": "a lot"}, InvalidArgument, "expected percentage points"),
        ({}, {"metric": "mse", "max_drop": "1pp"}, InvalidArgument, "percentage points mean nothing"),
        ({}, {"budget_s": 0}, InvalidArgument, "budget"),
        ({}, {"output": Path("no") / "such" / "folder.salver"}, NotFound, "no such folder for the bundle"),
        ({"x": np.zeros((60, WIDTH - 1), np.float32)}, {}, InvalidArgument, r"got shape \[batch, 63\]"),
    ],
)
def test_what_can_never_work_is_refused(
    network: Path,
    tmp_path: Path,
    change: dict[str, Any],
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    given = {"output": tmp_path / "net.salver", "cache": tmp_path / "cache", "budget_s": 5.0, **settings}
    with pytest.raises(error, match=message):
        salver.build(network, {**_data(60), **change}, **given)
    assert not (tmp_path / "net.salver").exists()


@pytest.mark.parametrize(("metric", "allowed"), [("mse", "1%"), ("agreement", "0.5pp")])
def test_the_margin_follows_the_metric(network: Path, tmp_path: Path, metric: str, allowed: str) -> None:
    data = {"x": _data(60)["x"], "label": np.zeros((60, CLASSES), np.float32)}
    output, cache = tmp_path / "net.salver", tmp_path / "cache"
    with salver.build(network, data, metric=metric, budget_s=1, output=output, cache=cache) as bundle:
        record = bundle.record
        assert record is not None
        assert record.settings["max_drop"] == allowed
        assert record.settings["margin"] == {"value": 0.01 if metric == "mse" else 0.005, "relative": metric == "mse"}


def test_a_model_of_one_row_at_a_time_is_built(tmp_path: Path) -> None:
    """Its ``Reshape`` holds the batch, so that it cannot be made dynamic."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["scores"])],
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, WIDTH // 2])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, CLASSES])],
        [
            numpy_helper.from_array(_weights(WIDTH, CLASSES), "w"),
            numpy_helper.from_array(np.array([1, WIDTH]), "shape"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    data, output = {"x": _data(60)["x"].reshape(60, 2, -1)}, tmp_path / "m.salver"
    with salver.build(tmp_path / "m.onnx", data, budget_s=3, output=output, cache=tmp_path / "cache") as bundle:
        record = bundle.record
        assert record is not None
        assert not [c for c in record.candidates if c.verdict.outcome == "failed"]
        assert bundle.signature.inputs[0].shape[0] == 1


def test_labels_that_are_not_numbers_stop_a_regression(network: Path, tmp_path: Path) -> None:
    labels = np.zeros((60, CLASSES), np.float32)
    labels[59, 0] = np.nan
    with pytest.raises(InvalidArgument, match="some labels are NaN"):
        salver.build(
            network,
            {"x": _data(60)["x"], "label": labels},
            metric="mse",
            max_drop="5%",
            budget_s=5,
            output=tmp_path / "net.salver",
            cache=tmp_path / "cache",
        )


def test_a_metric_that_needs_labels_says_so(network: Path, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="needs labels and the data has none"):
        salver.build(network, {"x": _data(60)["x"]}, metric="accuracy", cache=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(network: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises((FailedPrecondition, PermissionDenied), match="file"):
        salver.build(network, _data(60), cache=tmp_path / "file" / "cache", output=tmp_path / "net.salver")


def test_a_full_disk_is_told_and_leaves_nothing(network: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ResourceExhausted, match="the disk is full"):
            salver.build(network, _data(60), cache=tmp_path / "cache", output=tmp_path / "net.salver", budget_s=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("*.salver*"))
    assert not list((tmp_path / "cache" / "imports").glob("new-*"))


def test_ctrl_c_before_there_is_anything_to_seal_leaves_nothing(network: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "val.npz", **_data(600))
    with tempfile.TemporaryDirectory(dir=tmp_path) as scratch:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "salver", "build", network, "--data", tmp_path / "val.npz"),
                *("--budget", "10m", "--cache", tmp_path / "cache", "-o", tmp_path / "net.salver"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": scratch},
            text=True,
        )
        while process.poll() is None and not (tmp_path / "cache" / "trials").is_dir():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        left = list(Path(scratch).glob("salver-*"))
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    assert left == []
    assert not list(tmp_path.glob("*.salver*"))
