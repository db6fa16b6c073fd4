"""ONNX from anywhere: old and new opsets, functions, sequences, loops, custom operators, large weights."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import salver
from salver.backends import open_session
from salver.builder.exporters import export_model, find_exporter
from salver.builder.importers import Imported, load_model
from salver.core.errors import CorruptArtifact, MissingExtra, ResourceExhausted, Unimplemented

NEWEST = onnx.defs.onnx_opset_version()
W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)


def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def model(
    nodes: list[onnx.NodeProto],
    *,
    opset: int = 17,
    out: int = TensorProto.FLOAT,
    inputs: list[onnx.ValueInfoProto] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
    domains: tuple[str, ...] = (),
    weights: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    held = [numpy_helper.from_array(array, name) for name, array in ({"w": W} if weights is None else weights).items()]
    graph = helper.make_graph(nodes, "net", inputs or [value("x", "n", 4)], [value("y", "n", "?", kind=out)], held)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions or [])


def answer(imported: Imported, **inputs: np.ndarray) -> np.ndarray:
    with open_session(imported.model) as session:
        return session.run(inputs or {"x": X})["y"]


def dense(opset: int) -> onnx.ModelProto:
    return model([helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])], opset=opset)


@pytest.mark.parametrize("opset", range(5, NEWEST + 1))
def test_every_opset_from_the_oldest_to_the_newest(opset: int, tmp_path: Path) -> None:
    imported = load_model(dense(opset), workdir=tmp_path)
    np.testing.assert_allclose(answer(imported), np.tanh(X @ W), rtol=1e-5, atol=1e-6)
    written = onnx.load(imported.model.path)
    assert 13 <= written.opset_import[0].version <= NEWEST


def test_what_is_new_in_an_opset_the_runtime_does_not_read_is_named(tmp_path: Path) -> None:
    if NEWEST < 28:
        pytest.skip("needs an onnx package with opset 28")
    node = helper.make_node("BitShift", ["x", "x"], ["y"], name="shift", direction="LEFT")
    shift = model(
        [node], opset=28, weights={}, inputs=[value("x", "n", 4, kind=TensorProto.INT32)], out=TensorProto.INT32
    )
    try:
        imported = load_model(shift, workdir=tmp_path)
    except Unimplemented as error:
        assert "node 'shift' uses operator 'BitShift' as of opset 28, and this runtime" in error.message
    else:  # a newer runtime reads it
        x = np.arange(4, dtype=np.int32)[None]
        np.testing.assert_array_equal(answer(imported, x=x), x << x)


def test_functions_of_the_model_itself(tmp_path: Path) -> None:
    body = [helper.make_node("MatMul", ["a", "b"], ["h"]), helper.make_node("Tanh", ["h"], ["c"])]
    function = helper.make_function("acme", "Dense", ["a", "b"], ["c"], body, [helper.make_opsetid("", 17)])
    call = model([helper.make_node("Dense", ["x", "w"], ["y"], domain="acme")], functions=[function], domains=("acme",))
    np.testing.assert_allclose(answer(load_model(call, workdir=tmp_path)), np.tanh(X @ W), rtol=1e-5, atol=1e-6)


def test_sequences_inside_the_graph(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("SequenceConstruct", ["h", "h"], ["s"]),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=1),
    ]
    got = answer(load_model(model(nodes), workdir=tmp_path))
    np.testing.assert_allclose(got, np.concatenate([X @ W] * 2, axis=1), rtol=1e-5, atol=1e-6)


def test_a_loop_whose_length_is_an_input(tmp_path: Path) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["before", "before"], ["after"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [value("i", kind=TensorProto.INT64), value("go", kind=TensorProto.BOOL), value("before", "n", 3)],
        [value("go_on", kind=TensorProto.BOOL), value("after", "n", 3)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Loop", ["times", "", "h"], ["y"], body=body),
    ]
    inputs = [value("x", "n", 4), value("times", kind=TensorProto.INT64)]
    imported = load_model(model(nodes, inputs=inputs), workdir=tmp_path)
    for times in (0, 1, 3):
        got = answer(imported, x=X, times=np.array(times))
        np.testing.assert_allclose(got, X @ W * 2**times, rtol=1e-5, atol=1e-6)


def lower() -> onnx.ModelProto:
    node = helper.make_node("StringLower", ["x"], ["y"], domain="ai.onnx.contrib", name="lower")
    return model(
        [node],
        weights={},
        inputs=[value("x", "n", 1, kind=TensorProto.STRING)],
        out=TensorProto.STRING,
        domains=("ai.onnx.contrib",),
    )


def test_operators_of_onnxruntime_extensions(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_extensions", reason="pip install 'salver[extensions]'")
    imported = load_model(lower(), workdir=tmp_path)
    assert answer(imported, x=np.array([["ÄBC"], ["x"]], object)).tolist() == [["äbc"], ["x"]]


def test_without_them_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"'ai\.onnx\.contrib' needs onnxruntime-extensions: pip install 'salver\["):
        load_model(lower(), workdir=tmp_path)


def test_text_operators_run_where_a_locale_is_missing(tmp_path: Path) -> None:
    node = helper.make_node("StringNormalizer", ["x"], ["y"], case_change_action="LOWER", locale="xx_YY.UTF-8")
    text = model([node], weights={}, inputs=[value("x", "n", kind=TensorProto.STRING)], out=TensorProto.STRING)
    text.graph.output[0].CopyFrom(value("y", "n", kind=TensorProto.STRING))
    imported = load_model(text, workdir=tmp_path)
    assert answer(imported, x=np.array(["ÄBC", "x"], object)).tolist() == ["äbc", "x"]
    assert any("locale" in note for note in imported.model.notes)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 2.2 GB, nearly all of it a hole in the file, of which rows are looked up."""
    folder = tmp_path_factory.mktemp("large")
    rows, width = 2_200_000, 256
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[rows, width])
    table.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "table.bin"), ("offset", "0"), ("length", str(rows * width * 4))):
        table.external_data.add(key=key, value=text)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "lookup",
        [value("ids", "n", kind=TensorProto.INT64)],
        [value("y", "n", width)],
    )
    graph.initializer.append(table)
    net = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "large.onnx").write_bytes(net.SerializeToString())
    with (folder / "table.bin").open("wb") as file:
        file.truncate(rows * width * 4)
        file.seek((rows - 1) * width * 4)
        file.write(np.arange(width, dtype=np.float32).tobytes())
    return folder / "large.onnx"


@pytest.mark.slow
def test_more_than_two_gigabytes_of_external_data(large: Path, tmp_path: Path) -> None:
    imported = load_model(large, workdir=tmp_path / "in")
    assert imported.model.size_bytes > 1 << 31
    got = answer(imported, ids=np.array([0, 2_199_999]))
    assert got[0].sum() == 0
    assert got[1].tolist() == list(range(256))
    assert (tmp_path / "in" / "table.bin").stat().st_blocks * 512 < 1 << 26
    with pytest.raises(Unimplemented, match="--to onnx"):
        find_exporter("ort").route(imported)
    exported = export_model(imported, find_exporter("onnx"), tmp_path / "out.onnx")
    assert exported.parity is not None
    assert exported.parity.outputs[0].max_abs == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.onnx", "out.onnx.data"]


def test_a_full_disk_is_told_and_nothing_is_left(large: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))  # as a disk that is full
    try:
        with pytest.raises(ResourceExhausted, match="the disk is full"):
            salver.convert(large, "onnx", tmp_path / "out.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["pickle", "zip", "png", "half", "json", "other protobuf"])
def test_files_of_another_kind_are_refused(kind: str, tmp_path: Path) -> None:
    whole = dense(17).SerializeToString()
    content = {
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00",
        "zip": b"PK\x03\x04" + bytes(60),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(60),
        "half": whole[: len(whole) // 2],
        "json": b'{"learner": {}}',
        "other protobuf": numpy_helper.from_array(W, "w").SerializeToString(),
    }[kind]
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(CorruptArtifact, match=r"net\.onnx"):
        load_model(path, workdir=tmp_path / "in")
