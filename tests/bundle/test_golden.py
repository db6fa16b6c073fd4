"""Golden requests tell another model from another way of running the same one. On a real network trained here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from salver.backends import SessionOptions, find_backend, open_session
from salver.bundle import GoldenRequest, ReplayReport, Tolerance, make_golden, replay
from salver.bundle.calibrate import split_rows, synthetic_inputs
from salver.bundle.golden import compare
from salver.bundle.tensors import decode_golden, encode_golden
from salver.core.errors import FailedPrecondition, InvalidArgument
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec
from salver.testing.bundles import golden_requests, tensor_specs

WAYS = (
    SessionOptions(),
    SessionOptions(optimize="none"),
    SessionOptions(threads=2),
    SessionOptions(threads=2, optimize="none"),
)


def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


def trained(path: Path, seed: int, softmax: bool = True) -> Path:
    x, y = digits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it need not converge
        net = MLPClassifier((32, 16), max_iter=40, random_state=seed).fit(x[:1200], y[:1200])
    assert net.score(x[1200:], y[1200:]) > 0.85
    nodes, weights, current = [], [], "x"
    for i, (w, b) in enumerate(zip(net.coefs_, net.intercepts_, strict=True)):
        weights += [numpy_helper.from_array(a.astype(np.float32), n) for n, a in ((f"w{i}", w), (f"b{i}", b))]
        nodes.append(helper.make_node("Gemm", [current, f"w{i}", f"b{i}"], [f"h{i}"]))
        current = f"h{i}"
        if i < 2:
            nodes.append(helper.make_node("Relu", [current], [f"r{i}"]))
            current = f"r{i}"
    if softmax:
        nodes.append(helper.make_node("Softmax", [current], ["p"]))
        current = "p"
    save(path, nodes, [("x", TensorProto.FLOAT, ["batch", 64])], [(current, TensorProto.FLOAT, ["batch", 10])], weights)
    return path


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any] | None = None) -> None:
    infos = [[helper.make_tensor_value_info(*v) for v in values] for values in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *infos, weights or [])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def quantized(source: Path, path: Path) -> Path:
    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter([{"x": row[None]} for row in digits()[0][:100]])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    quantize_static(
        source,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return path


def model_of(path: Path) -> Model:
    blob = Blob.of(path)
    return Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob,))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    float32, logits = trained(folder / "f.onnx", 0), trained(folder / "l.onnx", 0, softmax=False)
    return {
        "float": float32,
        "float-logits": logits,
        "int8": quantized(float32, folder / "q.onnx"),
        "int8-logits": quantized(logits, folder / "ql.onnx"),
        "other-float": (other := trained(folder / "o.onnx", 1)),
        "other-float-logits": (other_logits := trained(folder / "ol.onnx", 1, softmax=False)),
        "other-int8": quantized(other, folder / "oq.onnx"),
        "other-int8-logits": quantized(other_logits, folder / "oql.onnx"),
    }


ROWS = {"x": digits()[0][1200:]}
KINDS = ["float", "float-logits", "int8", "int8-logits"]


def check(model: Model, golden: tuple[GoldenRequest, ...], options: SessionOptions = WAYS[0]) -> ReplayReport:
    with open_session(model, options) as session:
        return replay(session, golden)


@pytest.mark.parametrize("rows", [ROWS, None], ids=["real", "synthetic"])
@pytest.mark.parametrize("name", KINDS)
def test_other_ways_of_running_the_same_model_pass(name: str, rows: Any, networks: dict[str, Path]) -> None:
    model = model_of(networks[name])
    golden = make_golden(model, rows)
    assert len(golden) == 8
    for options in WAYS:
        report = check(model, golden, options)
        assert report.ok, f"{options}: {report}"
        assert report.worst_ratio <= 1.0


def mutants(path: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    base = onnx.load(path)
    rng = np.random.default_rng(0)
    for number, tensor in enumerate(base.graph.initializer):
        array = numpy_helper.to_array(tensor)
        changed: dict[str, np.ndarray] = {}
        if tensor.name.startswith("w") and array.ndim == 2:
            changed["zero"] = np.zeros_like(array)
            changed["permuted rows"] = array[rng.permutation(len(array))]
            noise = 0.5 * array.std() * rng.standard_normal(array.shape)
            changed["noise"] = array + noise
            changed["negated"] = -(array.astype(np.int16))
        elif tensor.name.startswith("w") and tensor.name.endswith("_scale"):
            changed["doubled"] = array * 2
            changed["halved"] = array / 2
        for what, new in changed.items():
            info = np.iinfo(array.dtype) if array.dtype.kind in "iu" else None
            new = np.clip(new, info.min, info.max) if info else new
            mutant = onnx.ModelProto()
            mutant.CopyFrom(base)
            mutant.graph.initializer[number].CopyFrom(numpy_helper.from_array(new.astype(array.dtype), tensor.name))
            if (new.astype(array.dtype) != array).any():
                yield f"{tensor.name} {what}", mutant


@pytest.mark.parametrize("name", KINDS)
def test_a_model_with_other_weights_fails(name: str, networks: dict[str, Path], tmp_path: Path) -> None:
    golden = make_golden(model_of(networks[name]), ROWS)
    tried, passed = 0, []
    for what, proto in mutants(networks[name]):
        onnx.save(proto, tmp_path / "mutant.onnx")
        tried += 1
        if check(model_of(tmp_path / "mutant.onnx"), golden).ok:
            passed.append(what)
    assert tried >= 9
    assert passed == []


@pytest.mark.parametrize("rows", [ROWS, None], ids=["real", "synthetic"])
@pytest.mark.parametrize("name", KINDS)
def test_another_trained_model_fails(name: str, rows: Any, networks: dict[str, Path]) -> None:
    golden = make_golden(model_of(networks[name]), rows)
    report = check(model_of(networks[f"other-{name}"]), golden)
    assert not report.ok
    assert "golden requests gave other answers" in str(report)


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_for_another_input_fails(name: str, networks: dict[str, Path]) -> None:
    model = model_of(networks[name])
    golden = make_golden(model, ROWS)
    shifted = tuple(
        msgspec.structs.replace(request, expected=golden[i - 1].expected) for i, request in enumerate(golden)
    )
    report = check(model, shifted)
    assert len(report.differences) >= len(golden) // 2


def test_the_same_model_and_rows_give_the_same_golden_requests(networks: dict[str, Path]) -> None:
    model = model_of(networks["int8"])
    for rows in (ROWS, None):
        once, again = (encode_golden(make_golden(model, rows), model.signature) for _ in range(2))
        assert once == again
    assert encode_golden(make_golden(model, seed=1), model.signature) != once


def test_a_model_that_refuses_the_inputs_is_a_difference(networks: dict[str, Path], tmp_path: Path) -> None:
    golden = make_golden(model_of(networks["float"]), ROWS, count=2)
    path = tmp_path / "narrow.onnx"
    save(
        path,
        [helper.make_node("Identity", ["x"], ["p"])],
        [("x", TensorProto.FLOAT, ["batch", 3])],
        [("p", TensorProto.FLOAT, ["batch", 3])],
    )
    report = check(model_of(path), golden)
    assert [d.request for d in report.differences] == [0, 1]
    assert "refused its inputs" in report.differences[0].reason


@pytest.mark.parametrize(
    ("onnx_type", "array"),
    [
        (TensorProto.STRING, np.array([["a", "ü✓"], ["", "long " * 20]], dtype=object)),
        (TensorProto.BFLOAT16, np.array([[0x3F80, 0x4000], [0xC0A0, 0]], dtype=np.uint16)),
        (TensorProto.INT64, np.array([[2**60, -1], [3, 4]])),
        (TensorProto.BOOL, np.array([[True, False], [False, False]])),
        (TensorProto.FLOAT16, np.array([[1.5, -2], [np.inf, np.nan]], np.float16)),
    ],
)
def test_every_kind_of_tensor_is_replayed(onnx_type: int, array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "identity.onnx"
    value = ["batch", 2]
    save(path, [helper.make_node("Identity", ["x"], ["y"])], [("x", onnx_type, value)], [("y", onnx_type, value)])
    model = model_of(path)
    golden = make_golden(model, {"x": array})
    read = decode_golden(*encode_golden(golden, model.signature))
    assert check(model, read).ok
    assert not check(model, (msgspec.structs.replace(read[0], expected=read[1].expected),)).ok
    assert check(model, make_golden(model)).ok


def test_inputs_of_fixed_size_and_rows_stacked_along_a_new_dimension() -> None:
    fixed = Signature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(3, 2)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(3,)),),
    )
    cut = list(split_rows({"x": np.zeros((10, 2), np.float32)}, fixed, 8))
    assert [r["x"].shape for r in cut] == [(3, 2)] * 3
    stacked = list(split_rows({"x": np.zeros((10, 3, 2), np.float32)}, fixed, 4))
    assert [r["x"].shape for r in stacked] == [(3, 2)] * 4
    with pytest.raises(InvalidArgument, match="same number of rows"):
        list(split_rows({"x": np.zeros((0, 2), np.float32)}, fixed, 4))


def test_synthetic_inputs_respect_a_small_table(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.eye(5, dtype=np.float32), "table")
    path = tmp_path / "gather.onnx"
    save(
        path,
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        [("ids", TensorProto.INT64, ["batch", "time"])],
        [("y", TensorProto.FLOAT, ["batch", "time", 5])],
        [table],
    )
    model = model_of(path)
    assert check(model, make_golden(model)).ok


def test_a_model_that_takes_no_synthetic_input(tmp_path: Path) -> None:
    path = tmp_path / "reshape.onnx"
    shape = numpy_helper.from_array(np.array([7, 11]), "shape")
    save(
        path,
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [("x", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, [7, 11])],
        [shape],
    )
    model = model_of(path)
    with open_session(model) as session, pytest.raises(FailedPrecondition, match="use real examples"):
        synthetic_inputs(session, model.signature, 2, 0)


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_tensors_survive_the_round_trip(data: st.DataObject) -> None:
    inputs, outputs = (data.draw(tensor_specs("x")),), (data.draw(tensor_specs("y")),)
    signature = Signature(inputs=inputs, outputs=outputs)
    request = data.draw(golden_requests(signature))
    manifest, blob = encode_golden((request,), signature)
    (read,) = decode_golden(manifest, blob)
    assert encode_golden((read,), signature) == (manifest, blob)
    for name, want in (request.inputs | request.expected).items():
        got = (read.inputs | read.expected)[name]
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        assert got.tobytes() == want.tobytes() if want.dtype != object else got.tolist() == want.tolist()


@pytest.mark.parametrize(
    ("got", "expected", "tolerance", "datatype", "fits"),
    [
        ([1.0, 2.0], [1.0, 2.05], Tolerance(abs=0.1), "FP32", True),
        ([1.0, 2.0], [1.0, 2.2], Tolerance(abs=0.1), "FP32", False),
        ([100.0], [101.0], Tolerance(rel=0.02), "FP32", True),
        ([0.50, 0.52], [0.57, 0.45], Tolerance(abs=0.1), "FP32", False),
        ([0.50, 0.52], [0.53, 0.49], Tolerance(abs=0.1), "FP32", True),
        ([np.nan, 1.0], [np.nan, 1.0], Tolerance(abs=0.1), "FP32", True),
        ([np.nan, 1.0], [1.0, 1.0], Tolerance(abs=9.0), "FP32", False),
        ([np.inf], [-np.inf], Tolerance(abs=9.0), "FP32", False),
        ([1, 2, 3, 4], [1, 2, 3, 5], Tolerance(mismatch=0.25), "INT64", True),
        ([1, 2, 3, 4], [1, 2, 3, 5], Tolerance(mismatch=0.2), "INT64", False),
        ([1.0], [[1.0]], Tolerance(abs=1.0), "FP32", False),
        ([], [], Tolerance(), "FP32", True),
    ],
)
def test_compare(got: Any, expected: Any, tolerance: Tolerance, datatype: str, fits: bool) -> None:
    dtype = np.int64 if datatype == "INT64" else np.float32
    ratio, reason = compare(np.array(got, dtype), np.array(expected, dtype), tolerance, datatype)
    assert (reason == "") is fits
    assert (ratio <= 1.0) is fits
