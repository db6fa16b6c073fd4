"""One data plane behind all protocols: the same arrays reach the engine, the same answers come back, bit for bit."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from salver.core.tensors import NUMPY_DTYPES
from salver.server.frontends import FRONTENDS
from salver.server.frontends.oip.protos import OIP
from salver.server.frontends.tfserving.signatures import DATA_TYPES
from salver.server.frontends.tfserving.tensors import PROTOS as TFS
from salver.testing.frontends import InlineEngine, call, invoke
from salver.wire.elements import from_bf16, to_bf16

TYPED = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class RecordingEngine(InlineEngine):
    """Keeps the inputs of every request."""

    def __init__(self, models):
        super().__init__(models)
        self.seen = []

    def submit(self, model, request):
        self.seen.append(request.arrays())
        super().submit(model, request)


@pytest.fixture
def engine(models):
    return RecordingEngine(models)


def make(datatype, shape, seed=3):
    """Values all over the range, its ends among them. NaN has payloads that text does not carry, and is tried apart."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    if datatype == "BYTES":
        array = np.empty(count, object)
        array[:] = [["", "plain", 'é ü 漢字 🎉 "quoted"\\', "a,b\nc"][i % 4] for i in range(count)]
        return array.reshape(shape)
    dtype = NUMPY_DTYPES[datatype]
    if datatype == "BOOL":
        return rng.integers(0, 2, shape).astype(bool)
    if datatype != "BF16" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
        array.flat[:2] = [limits.min, limits.max]
        return array
    kind = np.dtype(np.float32) if datatype == "BF16" else dtype
    limits = np.finfo(kind)
    array = rng.normal(size=shape).astype(kind)
    array.flat[:6] = [np.inf, -np.inf, -0.0, limits.smallest_subnormal, limits.max / 2, 0.1]
    return to_bf16(array) if datatype == "BF16" else array


def plain(array, datatype):
    return (from_bf16(array) if datatype == "BF16" else array).tolist()


def parse(values, datatype, shape=None):
    if datatype == "BYTES":
        array = np.array(
            [v.decode() if isinstance(v, bytes) else v for v in np.ravel(np.array(values, object))], object
        )
        return array.reshape(shape or np.shape(values))
    kind = np.float32 if datatype == "BF16" else NUMPY_DTYPES[datatype]
    array = np.array(values, kind)
    array = to_bf16(array) if datatype == "BF16" else array
    return array if shape is None else array.reshape(shape)


class Speaker:
    """Says a request in one protocol.

    Args:
        inputs: name -> (datatype, array).
        outputs: name -> datatype.
    """

    def __init__(self, services, model, inputs, outputs):
        self.services = services
        self.model = model
        self.inputs = inputs
        self.outputs = outputs

    def post(self, member, path, value, **fields):
        frontend = FRONTENDS.get(member)(self.services)
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        exchange = call(frontend, "POST", path, body, **fields)
        whole = exchange.answer[1] if exchange.chunks is None else b"".join(exchange.chunks)
        whole = whole if isinstance(whole, bytes) else b"".join(whole)
        assert exchange.status == 200, whole
        return whole, exchange.answer[0]

    def invoke(self, member, path, request, answer):
        frontend = FRONTENDS.get(member)(self.services)
        _, catcher = invoke(frontend, path, request.SerializeToString())
        assert catcher.error is None, catcher.error
        return answer.FromString(catcher.messages[0])

    @property
    def values(self):
        return {name: plain(array, datatype) for name, (datatype, array) in self.inputs.items()}

    @property
    def rows(self):
        columns = self.values
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def parse_all(self, values):
        return {name: parse(values[name], datatype) for name, datatype in self.outputs.items()}

    def parse_rows(self, rows):
        if len(self.outputs) == 1:
            return self.parse_all({next(iter(self.outputs)): rows})
        return self.parse_all({name: [row[name] for row in rows] for name in self.outputs})

    # Open Inference Protocol

    def tensors(self, **more):
        return [
            {"name": name, "datatype": datatype, "shape": list(array.shape), **more}
            for name, (datatype, array) in self.inputs.items()
        ]

    def oip_json(self, nested=False):
        tensors = self.tensors()
        for tensor, (datatype, array) in zip(tensors, self.inputs.values(), strict=True):
            tensor["data"] = plain(array if nested else array.ravel(), datatype)
        body, _ = self.post("oip-rest", f"/v2/models/{self.model}/infer", {"inputs": tensors})
        return {o["name"]: parse(o["data"], o["datatype"], o["shape"]) for o in json.loads(body)["outputs"]}

    def oip_nested(self):
        return self.oip_json(nested=True)

    def oip_binary(self):
        blobs = [wire(array, datatype) for datatype, array in self.inputs.values()]
        tensors = self.tensors()
        for tensor, blob in zip(tensors, blobs, strict=True):
            tensor["parameters"] = {"binary_data_size": len(blob)}
        head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
        path = f"/v2/models/{self.model}/infer"
        length = b"%d" % len(head)
        body, fields = self.post("oip-rest", path, b"".join([head, *blobs]), inference_header_content_length=length)
        size = int(fields.partition(b"content-length: ")[2].split()[0])
        found, position = {}, size
        for output in json.loads(body[:size])["outputs"]:
            end = position + output["parameters"]["binary_data_size"]
            found[output["name"]] = unwire(body[position:end], output["datatype"], output["shape"])
            position = end
        assert position == len(body)
        return found

    def generate(self, verb="generate"):
        body, _ = self.post("oip-rest", f"/v2/models/{self.model}/{verb}", self.values)
        answer = json.loads(body.removeprefix(b"data: "))
        shape = next(iter(self.inputs.values()))[1].shape
        return {name: parse(answer[name], datatype, shape) for name, datatype in self.outputs.items()}

    def generate_stream(self):
        return self.generate("generate_stream")

    def oip_grpc(self, typed=False):
        request = OIP.message("inference.ModelInferRequest")(model_name=self.model)
        for name, (datatype, array) in self.inputs.items():
            tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            if typed:
                values = [v.encode() if datatype == "BYTES" else v for v in array.ravel().tolist()]
                getattr(tensor.contents, TYPED[datatype]).extend(values)
            else:
                request.raw_input_contents.append(wire(array, datatype))
        kind = OIP.message("inference.ModelInferResponse")
        answer = self.invoke("oip-grpc", "/inference.GRPCInferenceService/ModelInfer", request, kind)
        if typed:
            contents = [list(getattr(o.contents, TYPED[o.datatype])) for o in answer.outputs]
            found = zip(answer.outputs, contents, strict=True)
            return {o.name: parse(values, o.datatype, list(o.shape)) for o, values in found}
        found = zip(answer.outputs, answer.raw_output_contents, strict=True)
        return {o.name: unwire(raw, o.datatype, list(o.shape)) for o, raw in found}

    def oip_grpc_typed(self):
        return self.oip_grpc(typed=True)

    # Rows and columns

    def predict(self):
        rows = self.rows if len(self.inputs) > 1 else next(iter(self.values.values()))
        body, _ = self.post("predict", f"/predict/{self.model}", {"instances": rows})
        return self.parse_rows(json.loads(body)["predictions"])

    def mlflow(self, value, **fields):
        body, _ = self.post("mlflow", f"/invocations/{self.model}", value, **fields)
        found = json.loads(body)["predictions"]
        return self.parse_all(found) if isinstance(found, dict) else self.parse_rows(found)

    def mlflow_inputs(self):
        return self.mlflow({"inputs": self.values})

    def mlflow_instances(self):
        return self.mlflow({"instances": self.rows})

    def mlflow_records(self):
        return self.mlflow({"dataframe_records": self.rows})

    def mlflow_split(self):
        rows = [list(row.values()) for row in self.rows]
        return self.mlflow({"dataframe_split": {"columns": list(self.inputs), "data": rows, "index": [0] * len(rows)}})

    def mlflow_csv(self):
        [array] = self.values.values()
        table = io.StringIO()
        csv.writer(table).writerows([[f"c{i}" for i in range(len(array[0]))], *array])
        return self.mlflow(table.getvalue().encode(), content_type=b"text/csv")

    def tfserving_rows(self):
        rows = self.rows if len(self.inputs) > 1 else next(iter(self.values.values()))
        body, _ = self.post("tfserving-rest", f"/v1/models/{self.model}:predict", {"instances": rows})
        return self.parse_rows(json.loads(body)["predictions"])

    def tfserving_columns(self):
        values = self.values if len(self.inputs) > 1 else next(iter(self.values.values()))
        body, _ = self.post("tfserving-rest", f"/v1/models/{self.model}:predict", {"inputs": values})
        found = json.loads(body)["outputs"]
        return self.parse_all(found if len(self.outputs) > 1 else {next(iter(self.outputs)): found})

    def tfserving_grpc(self):
        request = TFS.message("tensorflow.serving.PredictRequest")()
        request.model_spec.name = self.model
        for name, (datatype, array) in self.inputs.items():
            tensor = request.inputs[name]
            tensor.dtype = DATA_TYPES[datatype][1]
            for size in array.shape:
                tensor.tensor_shape.dim.add(size=size)
            if datatype == "BYTES":
                tensor.string_val.extend(value.encode() for value in array.ravel())
            else:
                tensor.tensor_content = array.tobytes()
        kind = TFS.message("tensorflow.serving.PredictResponse")
        answer = self.invoke("tfserving-grpc", "/tensorflow.serving.PredictionService/Predict", request, kind)
        return {name: untensor(answer.outputs[name], datatype) for name, datatype in self.outputs.items()}


def wire(array, datatype):
    if datatype != "BYTES":
        return array.tobytes()
    return b"".join(len(v.encode()).to_bytes(4, "little") + v.encode() for v in array.ravel())


def unwire(raw, datatype, shape):
    if datatype != "BYTES":
        return np.frombuffer(raw, NUMPY_DTYPES[datatype]).reshape(shape)
    values = []
    while raw:
        size = 4 + int.from_bytes(raw[:4], "little")
        values.append(raw[4:size])
        raw = raw[size:]
    return parse(values, "BYTES", shape)


def untensor(tensor, datatype):
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    [(field, values)] = [(f.name, v) for f, v in tensor.ListFields() if f.name.endswith("_val")]
    if field == "half_val":
        return np.array(values, np.uint16).view(NUMPY_DTYPES[datatype]).reshape(shape)
    return parse(list(values), datatype, shape)


PROTOCOLS = (
    "oip_json",
    "oip_nested",
    "oip_binary",
    "oip_grpc",
    "oip_grpc_typed",
    "generate",
    "generate_stream",
    "predict",
    "mlflow_inputs",
    "mlflow_instances",
    "mlflow_records",
    "mlflow_split",
    "mlflow_csv",
    "tfserving_rows",
    "tfserving_columns",
    "tfserving_grpc",
)
PAIRS = [
    (protocol, datatype)
    for protocol in PROTOCOLS
    for datatype in NUMPY_DTYPES
    if protocol != "oip_grpc_typed" or datatype in TYPED  # the protocol has no typed field for halves
]


def check(engine, speaker, protocol, expected):
    got = getattr(speaker, protocol)()
    [seen] = engine.seen
    for name, (_, array) in speaker.inputs.items():
        same(seen[name], array)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        same(got[name], array)


def same(got, expected):
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.tolist() == expected.tolist() if got.dtype.hasobject else got.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("protocol", "datatype"), PAIRS)
def test_every_datatype_in_every_protocol(engine, services, protocol, datatype):
    array = make(datatype, (3, 5))
    speaker = Speaker(services, f"id-{datatype.lower()}", {"x": (datatype, array)}, {"y": datatype})
    check(engine, speaker, protocol, {"y": array})


@pytest.mark.parametrize("protocol", [p for p in PROTOCOLS if p != "mlflow_csv"])
def test_several_inputs_and_outputs_in_every_protocol(engine, services, models, protocol):
    a, b = (np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32) * 100 for seed in (1, 2))
    pair = next(m for m in models if m.name == "pair")
    speaker = Speaker(services, "pair", {"a": ("FP32", a), "b": ("FP32", b)}, {"total": "FP32", "whole": "INT64"})
    check(engine, speaker, protocol, pair.session.run({"a": a, "b": b}))


@pytest.mark.parametrize("protocol", [p for p in PROTOCOLS if p != "predict" and not p.startswith("generate")])
def test_a_network_in_every_protocol(engine, services, models, protocol):
    """But those that flatten its scores or turn them into labels."""
    x = np.random.default_rng(4).normal(size=(7, 4)).astype(np.float32)
    linear = [m for m in models if m.name == "linear"][-1]
    speaker = Speaker(services, "linear", {"x": ("FP32", x)}, {"scores": "FP32"})
    check(engine, speaker, protocol, linear.session.run({"x": x}))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nan_in_every_protocol(engine, services, protocol):
    array = np.array([[1, np.nan, -1]], np.float32)
    got = getattr(Speaker(services, "id-fp32", {"x": ("FP32", array)}, {"y": "FP32"}), protocol)()
    assert np.array_equal(got["y"], array, equal_nan=True)
    assert np.array_equal(engine.seen[0]["x"], array, equal_nan=True)
