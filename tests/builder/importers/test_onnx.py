"""ONNX models, sound and otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from salver.backends import open_session
from salver.builder.importers import Imported, ImportOptions, load_model
from salver.core.dataset import Dataset
from salver.core.errors import CorruptArtifact, InvalidArgument, NotFound, ParityFailed, Unimplemented
from salver.datasets import open_dataset
from salver.testing.importers import ImporterConformance

ROOT = Path(__file__).parents[3]
DIGITS = ROOT / "examples" / "digits"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((4, 3)).astype(np.float32)


def value(name: str, *shape: int | str | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    *,
    weights: dict[str, Any] | None = None,
    opset: int = 17,
    ir: int = 8,
    domains: tuple[tuple[str, int], ...] = (),
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(v, k) for k, v in (weights or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def dense(batch: int | str | None = "n", out: tuple[int | str | None, ...] = ("n", 3)) -> onnx.ModelProto:
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", batch, 4)], [value("y", *out)], weights={"w": W}
    )


def shapes(imported: Imported) -> dict[str, tuple[int | str, ...]]:
    signature = imported.model.signature
    return {s.name: s.shape for s in (*signature.inputs, *signature.outputs)}


def notes(imported: Imported) -> str:
    return "; ".join(imported.model.notes)


class TestOnnx(ImporterConformance):
    importer_name = "onnx"
    suffix = ".onnx"

    @pytest.fixture(params=["trained network", "ModelProto", "ZipMap"])
    def source(self, request: pytest.FixtureRequest) -> Any:
        return {"trained network": DIGITS / "digits.onnx", "ModelProto": dense(), "ZipMap": zipmapped()}[request.param]

    @pytest.fixture
    def data(self, source: Any) -> Dataset:
        if isinstance(source, Path):
            return open_dataset(DIGITS / "val.npz")
        return open_dataset({"x": np.random.default_rng(1).standard_normal((20, 4))})


# --- what is made of sound models


def test_leading_dimensions_get_one_name(tmp_path: Path) -> None:
    graph = model(
        [helper.make_node("Add", ["a", "b"], ["y"])], [value("a", None, 4), value("b", "N", 4)], [value("y", "M", 4)]
    )
    imported = load_model(graph, workdir=tmp_path)
    assert shapes(imported) == {"a": ("batch", 4), "b": ("batch", 4), "y": ("batch", 4)}
    assert imported.model.signature.batch_dim == "batch"


def test_other_symbolic_dimensions_are_kept(tmp_path: Path) -> None:
    graph = model([helper.make_node("Relu", ["x"], ["y"])], [value("x", "n", "seq", 8)], [value("y", "n", "seq", 8)])
    assert shapes(load_model(graph, workdir=tmp_path))["y"] == ("batch", "seq", 8)


@pytest.mark.parametrize("size", [1, 3])
def test_a_fixed_batch_becomes_dynamic_where_runs_prove_it(tmp_path: Path, size: int) -> None:
    imported = load_model(dense(size, (size, 3)), workdir=tmp_path)
    assert shapes(imported) == {"x": ("batch", 4), "y": ("batch", 3)}
    assert f"was fixed at {size} and is dynamic now" in notes(imported)
    with open_session(imported.model) as session:
        x = RANDOM.standard_normal((5, 4)).astype(np.float32)
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ W, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "weights", "reason"),
    [
        ([helper.make_node("Reshape", ["x", "s"], ["y"])], {"s": np.array([1, 2, 4])}, "does not run with another"),
        ([helper.make_node("Reshape", ["x", "s"], ["y"])], {"s": np.array([1, 2, -1])}, "has shape"),
        ([helper.make_node("Softmax", ["x"], ["y"], axis=0)], {}, "changes with the number of rows"),
    ],
)
def test_a_batch_baked_into_the_graph_is_reported_as_fixed(
    tmp_path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Any], reason: str
) -> None:
    out = value("y", 1, 8) if not weights else value("y", 1, 2, 4)
    imported = load_model(model(nodes, [value("x", 1, 8)], [out], weights=weights), workdir=tmp_path)
    assert shapes(imported)["x"] == (1, 8)
    assert "the batch dimension is fixed at 1" in notes(imported)
    assert reason in notes(imported)
    assert imported.parity.batch_sizes == (1,)


def test_an_output_without_rows_is_said_and_never_batched(tmp_path: Path) -> None:
    graph = model([helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)], [value("x", "n", 4)], [value("y")])
    imported = load_model(graph, workdir=tmp_path)
    assert imported.model.signature.batch_dim is None
    assert "one at a time" in notes(imported)


def test_shapes_that_the_file_leaves_out_are_completed(tmp_path: Path) -> None:
    graph = dense()
    graph.graph.output[0].type.tensor_type.ClearField("shape")
    assert shapes(load_model(graph, workdir=tmp_path))["y"] == ("batch", 3)


def test_weights_in_constants_and_among_the_inputs_become_initializers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W)),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "half"], ["b"]),
        helper.make_node("Add", ["b", "bias"], ["y"]),
    ]
    bias = np.ones(3, np.float32)
    graph = model(nodes, [value("x", "n", 4), value("bias", 3)], [value("y", "n", 3)], weights={"bias": bias}, ir=3)
    imported = load_model(graph, workdir=tmp_path)
    written = onnx.load(imported.model.path)
    assert {t.name for t in written.graph.initializer} == {"w", "half", "bias"}
    assert [i.name for i in written.graph.input] == ["x"]
    assert "Constant" not in {n.op_type for n in written.graph.node}
    assert written.ir_version >= 4


def test_an_old_opset_is_raised(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Softmax", ["a"], ["y"], axis=1)]
    graph = model(nodes, [value("x", "n", 4)], [value("y", "n", 3)], weights={"w": W}, opset=9, ir=3)
    graph.graph.input.append(value("w", 4, 3))
    imported = load_model(graph, workdir=tmp_path)
    assert onnx.load(imported.model.path).opset_import[0].version == 13
    assert "opset 9 was raised to 13" in notes(imported)


def test_an_ir_version_from_the_future_is_lowered(tmp_path: Path) -> None:
    graph = dense()
    graph.ir_version = 99
    imported = load_model(graph, workdir=tmp_path)
    assert "IR version 99 was lowered" in notes(imported)


def shuffled(node: onnx.NodeProto) -> onnx.ModelProto:
    """A graph whose nodes stand in the wrong order, one of them read by a branch only."""
    nodes = [
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("a", "r"), else_branch=branch("b", "w")),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("ReduceSum", ["r"], ["total"], keepdims=0),
        node,
    ]
    weights = {"zero": np.float32(0), "w": np.ones((1, 4), np.float32)}
    return model(nodes, [value("x", "n", 4)], [value("y", None, 4)], weights=weights)


def branch(name: str, reads: str) -> onnx.GraphProto:
    nodes = [
        helper.make_node("Add", ["x", reads], [f"{name}_s"]),
        helper.make_node("Neg", [f"{name}_s"], [f"{name}_y"]),
    ]
    return helper.make_graph(nodes, name, [], [value(f"{name}_y", "n", 4)])


def test_nodes_in_the_wrong_order_are_sorted(tmp_path: Path) -> None:
    imported = load_model(shuffled(helper.make_node("Relu", ["x"], ["r"])), workdir=tmp_path)
    assert "nodes were sorted" in notes(imported)
    onnx.checker.check_model(str(imported.model.path))
    x = np.ones((2, 4), np.float32)
    with open_session(imported.model) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], -2 * x)


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match=r"cycl|acyclic|sorted"):
        load_model(shuffled(helper.make_node("Mul", ["x", "total"], ["r"])), workdir=tmp_path)


def test_control_flow_passes_with_its_constants(tmp_path: Path) -> None:
    def branch(name: str, factor: float) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Constant", [], [f"{name}_f"], value_float=factor),
            helper.make_node("Mul", ["x", f"{name}_f"], [f"{name}_y"]),
        ]
        return helper.make_graph(nodes, name, [], [value(f"{name}_y", "n", 4)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("a", 2.0), else_branch=branch("b", -1.0)),
    ]
    graph = model(nodes, [value("x", "n", 4)], [value("y", None, None)], weights={"zero": np.float32(0)})
    imported = load_model(graph, workdir=tmp_path)
    with open_session(imported.model) as session:
        x = np.ones((3, 4), np.float32)
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
        np.testing.assert_array_equal(session.run({"x": -x})["y"], x)


def test_inputs_without_a_common_batch_run_as_they_are(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "state"], ["a"]), helper.make_node("Add", ["a", "rate"], ["y"])]
    inputs = [value("x", None, 16), value("state", 2, None, 16), value("rate")]
    imported = load_model(model(nodes, inputs, [value("y", 2, None, 16)]), workdir=tmp_path)
    assert "share no batch dimension" in notes(imported)
    assert imported.parity.outputs[0].max_abs == 0


def zipmapped() -> onnx.ModelProto:
    scores = {"coefficients": W.T.reshape(-1).tolist(), "intercepts": [0.0, 0.1, 0.2], "post_transform": "SOFTMAX"}
    classes = [b"ant", b"bee", b"cat"]
    nodes = [
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "p"], domain="ai.onnx.ml", classlabels_strings=classes, **scores
        ),
        helper.make_node("ZipMap", ["p"], ["probability"], domain="ai.onnx.ml", classlabels_strings=classes),
    ]
    table = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    outputs = [
        value("label", None, kind=TensorProto.STRING),
        helper.make_value_info("probability", helper.make_sequence_type_proto(table)),
    ]
    return model(nodes, [value("x", None, 4)], outputs, domains=(("ai.onnx.ml", 1),))


def test_a_zipmap_becomes_a_tensor_with_its_class_names(tmp_path: Path) -> None:
    imported = load_model(zipmapped(), workdir=tmp_path)
    output = imported.model.signature.output("probability")
    assert (output.shape, output.labels) == (("batch", 3), ("ant", "bee", "cat"))


def test_labels_are_put_on_the_output_they_fit(tmp_path: Path) -> None:
    assert load_model(dense(), labels=("a", "b", "c"), workdir=tmp_path).model.signature.outputs[0].labels == (
        "a",
        "b",
        "c",
    )
    with pytest.raises(InvalidArgument, match=r"2 labels were given.*'y' \['batch', 3\]"):
        load_model(dense(), labels=("a", "b"), workdir=tmp_path)


@pytest.mark.slow
def test_a_published_network_of_an_old_opset(tmp_path: Path) -> None:
    imported = load_model(LIGHT / "light_squeezenet.onnx", workdir=tmp_path)
    assert shapes(imported)["data_0"] == ("batch", 3, 224, 224)
    assert "opset 9 was raised to 13" in notes(imported)


# --- external data


def external(folder: Path, location: str = "weights.bin") -> Path:
    graph = dense()
    onnx.save(graph, folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    stored = onnx.load(folder / "m.onnx", load_external_data=False)
    for entry in stored.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    (folder / "m.onnx").write_bytes(stored.SerializeToString())
    return folder / "m.onnx"


def test_external_data_travel_as_a_blob_of_their_own(tmp_path: Path) -> None:
    imported = load_model(external(tmp_path), workdir=tmp_path / "out")
    assert [b.name for b in imported.model.blobs] == ["model.onnx", "weights.bin"]
    with open_session(imported.model) as session:
        np.testing.assert_allclose(session.run({"x": np.eye(4, dtype=np.float32)})["y"], W, rtol=1e-6)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "C:\\w.bin", "a/../../w", "..\\w", ""])
def test_external_data_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(InvalidArgument, match="expected a file name below the model's own folder"):
        load_model(external(tmp_path, location), workdir=tmp_path / "out")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    path = external(tmp_path / "models")
    (tmp_path / "models" / "weights.bin").rename(tmp_path / "secret.bin")
    (tmp_path / "models" / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(InvalidArgument, match="a link out of the model's folder"):
        load_model(path, workdir=tmp_path / "out")


def test_missing_and_truncated_external_data_are_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").write_bytes((tmp_path / "weights.bin").read_bytes()[:20])
    with pytest.raises(
        CorruptArtifact, match=r"'weights.bin' is truncated: tensor 'w' ends at byte 48, the file has 20"
    ):
        load_model(path, workdir=tmp_path / "out")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(NotFound, match=r"external data 'weights.bin' of tensor 'w' is missing"):
        load_model(path, workdir=tmp_path / "out")


# --- what is refused


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07", None])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(dense().SerializeToString()[:-20] if content is None else content)
    with pytest.raises(CorruptArtifact, match=r"m\.onnx' is not an ONNX model"):
        load_model(path, workdir=tmp_path / "out")


def test_a_broken_graph_is_refused(tmp_path: Path) -> None:
    graph = dense()
    graph.graph.node[0].input[1] = "nowhere"
    with pytest.raises(CorruptArtifact, match="nowhere"):
        load_model(graph, workdir=tmp_path)


@pytest.mark.parametrize(
    ("op", "domain", "message"),
    [
        ("Frobnicate", "", "node 'odd' uses operator 'Frobnicate' of domain 'ai.onnx': there is no such operator"),
        (
            "Foo",
            "com.acme",
            "node 'odd' uses operator 'Foo' of domain 'com.acme': no installed runtime knows the domain",
        ),
        ("Foo", "com.microsoft", "node 'odd', operator 'Foo' of domain 'com.microsoft'"),
    ],
)
def test_an_operator_that_nobody_has_is_named_with_its_node(tmp_path: Path, op: str, domain: str, message: str) -> None:
    node = helper.make_node(op, ["x"], ["y"], name="odd", domain=domain)
    domains = ((domain, 1),) if domain else ()
    graph = model([node], [value("x", "n", 4)], [value("y", "n", 4)], domains=domains)
    with pytest.raises(Unimplemented, match=message):
        load_model(graph, workdir=tmp_path)


def test_an_opset_from_the_future_is_refused(tmp_path: Path) -> None:
    graph = dense()
    graph.opset_import[0].version = 999
    with pytest.raises(Unimplemented, match="uses opset 999, newest known here"):
        load_model(graph, workdir=tmp_path)


def test_an_input_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("SequenceAt", ["s", "i"], ["y"])
    inputs = [helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["n", 4])]
    graph = model([node], inputs, [value("y", "n", 4)], weights={"i": np.array(0)})
    with pytest.raises(Unimplemented, match="'s' is a sequence_type"):
        load_model(graph, workdir=tmp_path)


def test_data_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"got shape \[batch, 5\], expected \[batch, 4\]"):
        load_model(dense(), data={"x": np.zeros((10, 5))}, workdir=tmp_path)


def test_a_difference_is_found_and_named_and_leaves_no_file(tmp_path: Path) -> None:
    # The runtime's optimizations are the one thing that differs here, and they agree to the last digits only.
    source = DIGITS / "digits.onnx"
    with pytest.raises(
        ParityFailed, match=r"output 'logits', input row \d+, element \d: the original gives .*, the import"
    ):
        load_model(source, workdir=tmp_path / "out", tolerance=0.0)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(dense().SerializeToString())
    with pytest.raises(InvalidArgument, match="choose another workdir"):
        load_model(path, workdir=tmp_path)
    assert path.read_bytes() == dense().SerializeToString()


@pytest.mark.parametrize("source", [Path("model.xyz"), 3])
def test_what_nobody_reads_is_refused(tmp_path: Path, source: Any) -> None:
    if isinstance(source, Path):
        source = tmp_path / source
        source.write_bytes(b"x")
    with pytest.raises(InvalidArgument, match="no importer reads"):
        load_model(source, workdir=tmp_path)


def test_options_are_versioned() -> None:
    assert ImportOptions.from_data(ImportOptions(labels=("a",)).to_data()) == ImportOptions(labels=("a",))
