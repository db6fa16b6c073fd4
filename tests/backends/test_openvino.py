"""OpenVINO."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from salver.backends import SessionOptions
from salver.core.errors import CorruptArtifact, InvalidArgument, Unimplemented
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec
from salver.testing.backends import BackendConformance, Case, same

pytest.importorskip("openvino", reason="pip install 'salver[openvino]'")

from salver.backends._openvino import OpenvinoBackend, read, read_signature, write

KINDS = {"FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE, "INT64": TensorProto.INT64, "INT32": TensorProto.INT32}
RANDOM = np.random.default_rng(0)


def make(folder: Path, datatype: str = "FP32", weights: np.ndarray | None = None) -> Model:
    """``y = x + x``, or ``x @ w``, as IR."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    if weights is not None:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    kind = KINDS[datatype]
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("x", kind, ["batch", 4])],
        [helper.make_tensor_value_info("y", kind, ["batch", None])],
        [numpy_helper.from_array(weights, "w")] if weights is not None else [],
    )
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    write(read(folder / "net.onnx"), folder / "net.xml", float16=False)
    return Model(
        format="openvino",
        signature=read_signature(read(folder / "net.xml")),
        blobs=(Blob.of(folder / "net.xml"), Blob.of(folder / "net.bin")),
    )


class TestOpenvino(BackendConformance):
    backend = OpenvinoBackend

    @pytest.fixture
    def cases(self, tmp_path: Path) -> list[Case]:
        made = []
        for datatype in KINDS:
            x = (RANDOM.standard_normal((4, 4)) * 10).astype(TensorSpec(name="x", datatype=datatype, shape=()).dtype)
            made.append(
                Case(model=make(tmp_path / datatype, datatype), inputs={"x": x}, expected={"y": x + x}, atol=1e-5)
            )
        w = RANDOM.standard_normal((4, 3)).astype(np.float32)
        x = RANDOM.standard_normal((4, 4)).astype(np.float32)
        made.append(Case(model=make(tmp_path / "w", weights=w), inputs={"x": x}, expected={"y": x @ w}, atol=1e-5))
        return made


def test_weights_inside_a_bundle_are_found(tmp_path: Path) -> None:
    w = RANDOM.standard_normal((4, 3)).astype(np.float32)
    model = make(tmp_path / "net", weights=w)
    outer = tmp_path / "outer"
    content = [blob.read() for blob in model.blobs]
    outer.write_bytes(b"..".join([b"", *content]))
    first = 2
    blobs = []
    for blob, data in zip(model.blobs, content, strict=True):
        blobs.append(msgspec.structs.replace(blob, path=outer, offset=first))
        first += len(data) + 2
    x = RANDOM.standard_normal((2, 4)).astype(np.float32)
    with OpenvinoBackend().load(msgspec.structs.replace(model, blobs=tuple(blobs)), SessionOptions()) as session:
        same(session.run({"x": x})["y"], x @ w, 1e-5)


def test_weights_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "net", weights=RANDOM.standard_normal((4, 3)).astype(np.float32))
    (tmp_path / "net" / "net.bin").write_bytes(model.blobs[1].read()[:10])
    blobs = (model.blobs[0], Blob.of(tmp_path / "net" / "net.bin"))
    with pytest.raises(CorruptArtifact):
        OpenvinoBackend().load(msgspec.structs.replace(model, blobs=blobs), SessionOptions())


def test_operators_that_it_lacks_are_named(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Rare", ["x"], ["y"], domain="some.where")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("some.where", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "net.onnx")
    with pytest.raises(
        Unimplemented, match=r"'net\.onnx'.*: No conversion rule found for operations: some\.where\.Rare$"
    ):
        read(tmp_path / "net.onnx")


def test_names_of_its_own_are_taken_by_position(tmp_path: Path) -> None:
    model = make(tmp_path / "net")
    renamed = Signature(
        inputs=(TensorSpec(name="a", datatype="FP32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="b", datatype="FP32", shape=("batch", 4)),),
    )
    with OpenvinoBackend().load(msgspec.structs.replace(model, signature=renamed), SessionOptions()) as session:
        same(session.run({"a": np.ones((1, 4), np.float32)})["b"], np.full((1, 4), 2, np.float32))
        with pytest.raises(InvalidArgument):
            session.run({"a": np.ones((1, 5), np.float32)})


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """No name is looked up, nothing is connected to, and no file is left in the user's home."""
    code = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise SystemExit('network: %r' % (args,))\n"
        "socket.getaddrinfo = refuse; socket.socket.connect = refuse\n"
        "import salver.backends._openvino as backend\n"
        "print(backend.OpenvinoBackend().providers(), sys.modules['openvino_telemetry'])\n"
    )
    environ = {"HOME": str(tmp_path), "PATH": ""}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environ, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "'cpu'" in found.stdout
    assert "None" in found.stdout
    assert list(tmp_path.rglob("*")) == []
