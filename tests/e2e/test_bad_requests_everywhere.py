"""The same bad request gets the same code, and text that says the same, whatever protocol it comes in."""

from __future__ import annotations

import http.client
import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from salver.core.tensors import NUMPY_DTYPES
from salver.server import Server, ServeSettings
from salver.server.frontends.oip.protos import OIP
from salver.server.frontends.tfserving.signatures import DATA_TYPES
from salver.server.frontends.tfserving.tensors import PROTOS as TFS
from salver.wire.protobuf import CONTENTS

MAX_STRING = 1000
MAX_BODY = 1 << 20
CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",  # gRPC has no code for what is too large for ever: RESOURCE_EXHAUSTED is tried again
    504: "DEADLINE_EXCEEDED",
}
Reply = tuple[str, str]
"""Code and message."""


class Tensor(NamedTuple):
    name: str
    datatype: str
    shape: list[int]
    values: list[Any]

    @property
    def blob(self) -> bytes:
        if self.datatype == "BYTES":
            raw = [v if isinstance(v, bytes) else v.encode() for v in self.values]
            return b"".join(struct.pack("<I", len(v)) + v for v in raw)
        return np.array(self.values, NUMPY_DTYPES[self.datatype]).tobytes()

    @property
    def nested(self) -> Any:
        array = np.empty(len(self.values), object)
        array[:] = self.values
        return array.reshape(self.shape).tolist()


class Ask(NamedTuple):
    model: str
    inputs: tuple[Tensor, ...]
    version: str = ""
    label: str = ""
    outputs: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}


def save(folder: Path, name: str, kind: int, inputs: tuple[str, ...], shape: list[Any]) -> None:
    path = folder / name / "1"
    path.mkdir(parents=True)
    node = helper.make_node("Identity" if len(inputs) == 1 else "Add", list(inputs), ["y"])
    graph = helper.make_graph(
        [node],
        name,
        [helper.make_tensor_value_info(given, kind, shape) for given in inputs],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path / "model.onnx")


class World:
    """A server, and a connection of each kind to it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.channel = grpc.insecure_channel(server.grpc_address)

    def post(self, path: str, body: Any, **fields: str) -> Reply:
        connection = http.client.HTTPConnection(self.server.url.removeprefix("http://"), timeout=20)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {name.replace("_", "-"): value for name, value in fields.items()})
        answer = connection.getresponse()
        said = json.loads(answer.read())
        connection.close()
        if answer.status == 200:
            return "OK", ""
        assert list(said) == ["error"]
        return CODES[answer.status], said["error"]

    def call(self, path: str, request: Any) -> Reply:
        try:
            self.channel.unary_unary(path)(request.SerializeToString(), timeout=20)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return "OK", ""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """``rows`` and ``pair`` (FP32), ``small`` (INT8), ``whole`` (INT64) and ``text``."""
    folder = tmp_path_factory.mktemp("models")
    for name, kind, inputs in (
        ("rows", TensorProto.FLOAT, ("x",)),
        ("pair", TensorProto.FLOAT, ("a", "b")),
        ("small", TensorProto.INT8, ("x",)),
        ("whole", TensorProto.INT64, ("x",)),
        ("text", TensorProto.STRING, ("x",)),
    ):
        save(folder, name, kind, inputs, ["batch", 2])
    settings = ServeSettings(
        sources=(str(folder),),
        http="127.0.0.1:0",
        grpc="127.0.0.1:0",
        log_level="error",
        max_string_bytes=MAX_STRING,
        max_body_bytes=MAX_BODY,
    )
    with Server(settings) as server:
        world = World(server)
        yield world
        world.channel.close()


def v2(ask: Ask, verb: str) -> str:
    version = ask.version or ask.label
    return f"/v2/models/{ask.model}" + (f"/versions/{version}" if version else "") + f"/{verb}"


def v1(ask: Ask) -> str:
    version = f"/versions/{ask.version}" if ask.version else f"/labels/{ask.label}" if ask.label else ""
    return f"/v1/models/{ask.model}{version}:predict"


def wishes(ask: Ask) -> dict[str, Any]:
    said: dict[str, Any] = {"parameters": ask.parameters} if ask.parameters else {}
    return said | ({"outputs": [{"name": name} for name in ask.outputs]} if ask.outputs else {})


def rest(world: World, ask: Ask) -> Reply:
    inputs = [{"name": t.name, "datatype": t.datatype, "shape": t.shape, "data": t.values} for t in ask.inputs]
    return world.post(v2(ask, "infer"), {"inputs": inputs, **wishes(ask)})


def binary(world: World, ask: Ask) -> Reply:
    blobs = [t.blob for t in ask.inputs]
    inputs = [
        {"name": t.name, "datatype": t.datatype, "shape": t.shape, "parameters": {"binary_data_size": len(blob)}}
        for t, blob in zip(ask.inputs, blobs, strict=True)
    ]
    head = json.dumps({"inputs": inputs, **wishes(ask)}).encode()
    return world.post(v2(ask, "infer"), head + b"".join(blobs), Inference_Header_Content_Length=str(len(head)))


def generate(world: World, ask: Ask) -> Reply:
    return world.post(v2(ask, "generate"), {**{t.name: t.nested for t in ask.inputs}, **ask.parameters})


def infer_request(ask: Ask) -> Any:
    request = OIP.message("inference.ModelInferRequest")(
        model_name=ask.model, model_version=ask.version or ask.label, outputs=[{"name": name} for name in ask.outputs]
    )
    for name, value in ask.parameters.items():
        if isinstance(value, str):
            request.parameters[name].string_param = value
        else:
            request.parameters[name].int64_param = value
    for t in ask.inputs:
        request.inputs.add(name=t.name, datatype=t.datatype, shape=t.shape)
    return request


def raw(world: World, ask: Ask) -> Reply:
    request = infer_request(ask)
    request.raw_input_contents.extend(t.blob for t in ask.inputs)
    return world.call("/inference.GRPCInferenceService/ModelInfer", request)


def typed(world: World, ask: Ask) -> Reply:
    request = infer_request(ask)
    for held, t in zip(request.inputs, ask.inputs, strict=True):
        values = [v.encode() if isinstance(v, str) else v for v in t.values]
        getattr(held.contents, CONTENTS[t.datatype]).extend(values)
    return world.call("/inference.GRPCInferenceService/ModelInfer", request)


def instances(ask: Ask) -> list[Any]:
    rows = max((len(t.nested) for t in ask.inputs), default=0)
    if len(ask.inputs) == 1 and ask.model != "pair":
        return list(ask.inputs[0].nested)
    return [{t.name: t.nested[i] for t in ask.inputs} for i in range(rows)]


def tfs_rows(world: World, ask: Ask) -> Reply:
    return world.post(v1(ask), {"instances": instances(ask)})


def tfs_columns(world: World, ask: Ask) -> Reply:
    return world.post(v1(ask), {"inputs": {t.name: t.nested for t in ask.inputs}})


def tfs_grpc(world: World, ask: Ask) -> Reply:
    request = TFS.message("tensorflow.serving.PredictRequest")(output_filter=ask.outputs)
    request.model_spec.name = ask.model
    if ask.version:
        request.model_spec.version.value = int(ask.version)
    if ask.label:
        request.model_spec.version_label = ask.label
    fields = {"FP32": "float_val", "FP64": "double_val", "INT8": "int_val", "INT64": "int64_val", "BYTES": "string_val"}
    for t in ask.inputs:
        values = [v.encode() if isinstance(v, str) else v for v in t.values]
        dims = {"dim": [{"size": size} for size in t.shape]}
        tensor = TFS.message("tensorflow.TensorProto")(dtype=DATA_TYPES[t.datatype][1], tensor_shape=dims)
        getattr(tensor, fields[t.datatype]).extend(values)
        request.inputs[t.name].CopyFrom(tensor)
    return world.call("/tensorflow.serving.PredictionService/Predict", request)


def mlflow_rows(world: World, ask: Ask) -> Reply:
    return world.post(f"/invocations/{ask.model}", {"instances": instances(ask)}, Content_Type="application/json")


def mlflow_tensors(world: World, ask: Ask) -> Reply:
    body = {"inputs": {t.name: t.nested for t in ask.inputs}}
    return world.post(f"/invocations/{ask.model}", body, Content_Type="application/json")


def predict(world: World, ask: Ask) -> Reply:
    return world.post(f"/predict/{ask.model}", {"instances": instances(ask)})


Speak = Callable[[World, Ask], Reply]
JSON_TENSORS: tuple[Speak, ...] = (generate, tfs_columns, mlflow_tensors)
ROWS: tuple[Speak, ...] = (tfs_rows, mlflow_rows, predict)
WITH_SHAPES: tuple[Speak, ...] = (rest, binary, raw, typed)
VERSIONED: tuple[Speak, ...] = (*WITH_SHAPES, generate, tfs_rows, tfs_columns, tfs_grpc)
EVERYBODY: tuple[Speak, ...] = (*WITH_SHAPES, tfs_grpc, *JSON_TENSORS, *ROWS)
STRICT: tuple[Speak, ...] = tuple(speak for speak in EVERYBODY if speak is not generate)
"""Those to whom a key that names no input is not a parameter."""

X = Tensor("x", "FP32", [1, 2], [1.0, 2.0])
A, B, C = (X._replace(name=name) for name in "abc")
GOOD = Ask("rows", (X,))
BAD = "INVALID_ARGUMENT"

CASES: dict[str, tuple[tuple[Speak, ...], Ask, str, tuple[str, ...]]] = {
    "model": (EVERYBODY, GOOD._replace(model="none"), "NOT_FOUND", ("no model 'none'", "served: 'pair'")),
    "version": (VERSIONED, GOOD._replace(version="7"), "NOT_FOUND", ("has no version '7'", "served: 1")),
    "label": (VERSIONED, GOOD._replace(label="blue"), "NOT_FOUND", ("has no version 'blue'", "served: 1")),
    "name": (STRICT, Ask("pair", (A, C)), BAD, ("'c'", "'b'")),
    "missing": (EVERYBODY, Ask("pair", (A,)), BAD, ("'b'",)),
    "extra": (STRICT, Ask("pair", (A, B, C)), BAD, ("'c'", "'a'", "'b'")),
    "datatype": (
        (*WITH_SHAPES, tfs_grpc),
        Ask("rows", (X._replace(datatype="FP64"),)),
        BAD,
        ("input 'x': got ", ", expected "),
    ),
    "text for a number": (
        (rest, *JSON_TENSORS, *ROWS),
        Ask("rows", (X._replace(values=["a", "b"]),)),
        BAD,
        ("input 'x'", "Expected `float`, got `str`"),
    ),
    "shape": (
        EVERYBODY,
        Ask("rows", (Tensor("x", "FP32", [1, 3], [1.0, 2.0, 3.0]),)),
        BAD,
        ("input 'x'", "got shape [", "3], expected ["),
    ),
    "rank": (
        EVERYBODY,
        Ask("rows", (Tensor("x", "FP32", [1, 2, 2], [1.0, 2.0, 3.0, 4.0]),)),
        BAD,
        ("input 'x'", "got shape [", "2, 2], expected ["),
    ),
    "no rows": (EVERYBODY, Ask("rows", (Tensor("x", "FP32", [0, 2], []),)), BAD, ()),
    "count": (
        (rest, typed, binary, raw),
        Ask("rows", (Tensor("x", "FP32", [2, 2], [1.0, 2.0]),)),
        BAD,
        ("input 'x'", "expected", "shape [2, 2]"),
    ),
    "NaN for a whole number": (
        (rest, *JSON_TENSORS, *ROWS),
        Ask("whole", (Tensor("x", "INT64", [1, 2], [math.nan, 1]),)),
        BAD,
        ("input 'x'", "Expected `int`, got `float`"),
    ),
    "too large a number": (
        (rest, typed, tfs_grpc, *JSON_TENSORS, *ROWS),
        Ask("small", (Tensor("x", "INT8", [1, 2], [1, 300]),)),
        BAD,
        ("input 'x'", "INT8"),
    ),
    "no UTF-8": (
        (binary, raw, typed, tfs_grpc),
        Ask("text", (Tensor("x", "BYTES", [1, 2], [b"a", b"\xff"]),)),
        BAD,
        ("input 'x'", "element 1 is not UTF-8: byte 0xff"),
    ),
    "no base64": (
        (tfs_rows, tfs_columns),
        Ask("text", (Tensor("x", "BYTES", [1, 2], ["a", {"b64": "?"}]),)),
        BAD,
        ("is not base64",),
    ),
    "output": (
        (*WITH_SHAPES, tfs_grpc),
        GOOD._replace(outputs=("z",)),
        BAD,
        ("unknown output 'z'", "Valid: y"),
    ),
    "parameter": (
        (*WITH_SHAPES, generate),
        GOOD._replace(parameters={"timeout": "soon"}),
        BAD,
        ("parameter 'timeout' is 'soon', expected a whole number",),
    ),
    "deadline": (
        (*WITH_SHAPES, generate),
        GOOD._replace(parameters={"timeout": 1}),
        "DEADLINE_EXCEEDED",
        ("deadline",),
    ),
    "too long a string": (
        EVERYBODY,
        Ask("text", (Tensor("x", "BYTES", [1, 2], ["a", "b" * (MAX_STRING + 1)]),)),
        BAD,
        ("input 'x'", f"element 1 has {MAX_STRING + 1} bytes", "max_string_bytes"),
    ),
    "too large a body": (
        EVERYBODY,
        Ask("text", (Tensor("x", "BYTES", [1, 2], ["a", "b" * MAX_BODY]),)),
        BAD,
        (f"over the limit of {MAX_BODY} bytes (max_body_bytes)",),
    ),
}


@pytest.mark.parametrize("speak", EVERYBODY)
def test_a_good_request(world: World, speak: Speak) -> None:
    assert speak(world, GOOD) == ("OK", "")
    assert speak(world, Ask("pair", (A, B))) == ("OK", "")


@pytest.mark.parametrize(
    ("case", "speak"),
    [pytest.param(case, speak, id=f"{case}-{speak.__name__}") for case in CASES for speak in CASES[case][0]],
)
def test_a_bad_request(world: World, case: str, speak: Speak) -> None:
    _, ask, code, parts = CASES[case]
    got, message = speak(world, ask)
    assert (got, [part for part in parts if part not in message]) == (code, []), message
    assert "Traceback" not in message
    assert "/" not in message or "/v2/" in message  # no path of the server's
