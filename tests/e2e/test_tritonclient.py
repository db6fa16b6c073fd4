"""``tritonclient.http`` with its defaults against a real server: the de-facto conformance test of OIP v2 REST.

Every model gives its input back, or nearly: what arrives must be what ONNX Runtime gives in this process, bit for bit.
"""

from __future__ import annotations

import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from salver.server import Server, ServeSettings

http = pytest.importorskip("tritonclient.http")

NAMES = {
    "BOOL": (TensorProto.BOOL, np.bool_),
    "UINT8": (TensorProto.UINT8, np.uint8),
    "UINT16": (TensorProto.UINT16, np.uint16),
    "UINT32": (TensorProto.UINT32, np.uint32),
    "UINT64": (TensorProto.UINT64, np.uint64),
    "INT8": (TensorProto.INT8, np.int8),
    "INT16": (TensorProto.INT16, np.int16),
    "INT32": (TensorProto.INT32, np.int32),
    "INT64": (TensorProto.INT64, np.int64),
    "FP16": (TensorProto.FLOAT16, np.float16),
    "BF16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    "FP32": (TensorProto.FLOAT, np.float32),
    "FP64": (TensorProto.DOUBLE, np.float64),
    "BYTES": (TensorProto.STRING, np.object_),
}
BATCHES = [1, 2, 3, 7, 16, 33, 64]


def write(folder: Path, name: str, nodes, inputs, outputs, weights=()) -> None:
    path = folder / name / "1"
    path.mkdir(parents=True)
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, k, s) for n, k, s in inputs],
        [helper.make_tensor_value_info(n, k, s) for n, k, s in outputs],
        [onnx.numpy_helper.from_array(array, n) for n, array in weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path / "model.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, (kind, _) in NAMES.items():
        write(
            folder,
            name.lower(),
            [helper.make_node("Identity", ["x"], ["y"])],
            [("x", kind, ["batch", "width"])],
            [("y", kind, ["batch", "width"])],
        )
    rng = np.random.default_rng(5)
    write(
        folder,
        "mlp",
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("MatMul", ["a", "v"], ["y"]),
            helper.make_node("ArgMax", ["y"], ["best"], axis=1, keepdims=0),
        ],
        [("x", TensorProto.FLOAT, ["batch", 8])],
        [("y", TensorProto.FLOAT, ["batch", 3]), ("best", TensorProto.INT64, ["batch"])],
        [("w", rng.normal(size=(8, 16)).astype(np.float32)), ("v", rng.normal(size=(16, 3)).astype(np.float32))],
    )
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with Server(ServeSettings(sources=(str(folder),), http="127.0.0.1:0", max_body_bytes=1 << 20)) as running:
        yield running


@pytest.fixture
def client(server):
    with http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def make(datatype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Values all over the datatype's range, its extremes and, for floats, NaN and infinities among them."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(NAMES[datatype][1])
    count = int(np.prod(shape))
    if datatype == "BYTES":
        texts = ["", "plain", "é ü 漢字 🎉", "a" * 300, "tab\tand\nline", '"quoted" \\']
        return np.array([texts[i] for i in rng.integers(0, len(texts), count)], dtype=object).reshape(shape)
    if datatype == "BOOL":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
        array.flat[: min(2, count)] = [limits.min, limits.max][: min(2, count)]
        return array
    array = rng.normal(size=shape).astype(dtype)
    array.flat[: min(3, count)] = [np.nan, np.inf, -np.inf][: min(3, count)]
    return array


def as_input(name: str, datatype: str, array: np.ndarray, binary: bool = True) -> http.InferInput:
    tensor = http.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def text(array: np.ndarray) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]


def check_same(datatype: str, given: np.ndarray, got: np.ndarray) -> None:
    assert got.shape == given.shape
    if datatype == "BYTES":
        assert text(got) == text(given)
    else:
        assert got.dtype == given.dtype
        assert got.tobytes() == given.tobytes()


@pytest.mark.parametrize("datatype", NAMES)
def test_every_datatype_comes_back_bit_for_bit(client, datatype):
    for batch in BATCHES:
        array = make(datatype, (batch, 5), batch)
        result = client.infer(datatype.lower(), [as_input("x", datatype, array)], request_id=str(batch))
        assert result.get_response()["id"] == str(batch)
        check_same(datatype, array, result.as_numpy("y"))


@pytest.mark.parametrize("datatype", [d for d in NAMES if d != "BF16"])
def test_every_datatype_as_json(client, datatype):
    """BF16 has no JSON form in the client. JSON carries numbers, not the payload of a NaN: its bits may differ."""
    array = make(datatype, (4, 5))
    outputs = [http.InferRequestedOutput("y", binary_data=False)]
    result = client.infer(datatype.lower(), [as_input("x", datatype, array, binary=False)], outputs=outputs)
    got = result.as_numpy("y")
    if array.dtype.kind == "f":
        assert np.array_equal(got.astype(array.dtype), array, equal_nan=True)
    else:
        check_same(datatype, array, got)


@pytest.mark.parametrize("batch", range(1, 65))
def test_a_network_gives_the_numbers_of_onnx_runtime(client, folder, batch):
    session = onnxruntime.InferenceSession(folder / "mlp" / "1" / "model.onnx")
    x = np.random.default_rng(batch).normal(size=(batch, 8)).astype(np.float32)
    y, best = session.run(["y", "best"], {"x": x})
    result = client.infer("mlp", [as_input("x", "FP32", x)])
    np.testing.assert_array_max_ulp(result.as_numpy("y"), y, maxulp=2)
    assert np.array_equal(result.as_numpy("best"), best)


def test_two_clients_with_different_shapes_at_once(server):
    """Rows of different widths must not be mixed up, however they are batched."""
    failures: list[str] = []

    def run(width: int) -> None:
        with http.InferenceServerClient(server.url.removeprefix("http://")) as client:
            for i in range(150):
                array = np.full((1 + i % 4, width), 1000 * width + i, np.float32)
                got = client.infer("fp32", [as_input("x", "FP32", array)]).as_numpy("y")
                if not np.array_equal(got, array):
                    failures.append(f"width {width}, request {i}: {got!r}")

    threads = [threading.Thread(target=run, args=(width,)) for width in (3, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
def test_compression_both_ways(client, request_coding, response_coding):
    array = np.tile(np.arange(64, dtype=np.float32), (40, 1))
    result = client.infer(
        "fp32",
        [as_input("x", "FP32", array)],
        request_compression_algorithm=request_coding,
        response_compression_algorithm=response_coding,
    )
    check_same("FP32", array, result.as_numpy("y"))


def test_outputs_and_classes(client):
    x = np.ones((2, 8), np.float32)
    outputs = [http.InferRequestedOutput("best"), http.InferRequestedOutput("y", class_count=2)]
    result = client.infer("mlp", [as_input("x", "FP32", x)], outputs=outputs)
    assert [o["name"] for o in result.get_response()["outputs"]] == ["best", "y"]
    classes = result.as_numpy("y")
    assert classes.shape == (2, 2)
    assert int(text(classes)[0].split(":")[1]) == result.as_numpy("best")[0]


def test_health_metadata_index_and_statistics(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp")
    assert client.is_model_ready("mlp", "1")
    assert not client.is_model_ready("mlp", "2")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    described = client.get_model_metadata("mlp")
    assert described["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}]
    index = {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}
    assert index["bytes"] == "READY"
    client.infer("mlp", [as_input("x", "FP32", np.ones((1, 8), np.float32))])
    [stats] = client.get_inference_statistics("mlp")["model_stats"]
    assert stats["inference_stats"]["success"]["count"] >= 1


@pytest.mark.parametrize(
    ("model", "tensor", "status", "message"),
    [
        ("none", as_input("x", "FP32", np.ones((1, 8), np.float32)), "404", "no model 'none'"),
        ("mlp", as_input("z", "FP32", np.ones((1, 8), np.float32)), "400", "unknown input 'z'; missing input 'x'"),
        ("mlp", as_input("x", "FP64", np.ones((1, 8))), "400", "input 'x': got datatype FP64, expected FP32"),
        ("mlp", as_input("x", "FP32", np.ones((1, 9), np.float32)), "400", "got shape [1, 9], expected [batch, 8]"),
        ("mlp", as_input("x", "FP32", np.ones((1, 300_000), np.float32)), "413", "over the limit of 1048576"),
    ],
)
def test_errors_arrive_as_the_clients_exception(client, model, tensor, status, message):
    with pytest.raises(http.InferenceServerException) as caught:
        client.infer(model, [tensor])
    assert caught.value.status() == status
    assert message in caught.value.message()
    assert client.is_server_live()


def test_strings_that_are_not_utf8_are_named(client):
    array = np.array([[b"ok", b"\xff"]], dtype=object)
    with pytest.raises(http.InferenceServerException, match="element 1 is not UTF-8"):
        client.infer("bytes", [as_input("x", "BYTES", array)])


def test_timeout_and_priority_are_understood(client):
    x = np.ones((1, 8), np.float32)
    result = client.infer("mlp", [as_input("x", "FP32", x)], timeout=10_000_000, priority=1)
    assert result.as_numpy("y").shape == (1, 3)
