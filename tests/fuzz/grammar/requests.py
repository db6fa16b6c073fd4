"""Requests that are right: for every model and protocol, as JSON trees and protobuf messages."""

from __future__ import annotations

import base64
import functools
import json
from random import Random
from typing import Any

import numpy as np

from salver.core.tensors import TensorSpec
from salver.server.frontends.oip.protos import OIP
from salver.server.frontends.tfserving.signatures import DATA_TYPES
from salver.server.frontends.tfserving.tensors import PROTOS
from salver.wire.elements import pack, to_bf16, to_bytes
from tests.fuzz.world import load_models

_TEXTS = ("a", "", "é😀", "long " * 8)
_TYPED = {"BOOL": "bool", "INT8": "int", "INT16": "int", "INT32": "int", "INT64": "int64", "UINT8": "uint",
          "UINT16": "uint", "UINT32": "uint", "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64"}  # fmt: skip


def _shape(spec: TensorSpec, rows: int) -> list[int]:
    return [rows, *(d if isinstance(d, int) else 3 for d in spec.shape[1:])]


def _values(spec: TensorSpec, count: int) -> list[Any]:
    kind = spec.datatype
    if kind == "BYTES":
        return [_TEXTS[i % len(_TEXTS)] for i in range(count)]
    if kind == "BOOL":
        return [i % 2 == 0 for i in range(count)]
    if kind.startswith(("FP", "BF")):
        return [i * 0.5 - 1 for i in range(count)]
    return list(range(count))


def _blob(spec: TensorSpec, count: int) -> bytes:
    values = _values(spec, count)
    array = to_bf16(np.array(values, np.float32)) if spec.datatype == "BF16" else pack(values, spec.datatype, [count])
    return bytes(to_bytes(array, spec.datatype))


def _nested(values: list[Any], shape: list[int]) -> Any:
    for size in reversed(shape[1:]):
        values = [values[at : at + size] for at in range(0, len(values), size)]
    return values


@functools.cache
def oip_json(model: str) -> tuple[bytes, ...]:
    """Requests of OIP REST without blobs."""
    made = []
    specs = _signature(model).inputs
    for rows, nested in ((1, False), (2, True), (3, False)):
        tensors = []
        for spec in specs:
            shape = _shape(spec, rows)
            flat = _values(spec, int(np.prod(shape)))
            data = _nested(flat, shape) if nested else flat
            tensors.append({"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": data})
        tree: dict[str, Any] = {"inputs": tensors}
        made.append(tree)
        made.append({"id": "7", "parameters": {"priority": 1, "timeout": 10_000_000, "own": "x"}, **tree})
        outputs = [{"name": spec.name} for spec in _signature(model).outputs]
        made.append({**tree, "outputs": [{**outputs[0], "parameters": {"binary_data": True}}, *outputs[1:]]})
        made.append({**tree, "outputs": [{**outputs[0], "parameters": {"classification": 2}}]})
        made.append({**tree, "parameters": {"binary_data_output": True}})
    return tuple(json.dumps(tree).encode() for tree in made)


@functools.cache
def oip_binary(model: str) -> tuple[tuple[bytes, bytes], ...]:
    """Requests of OIP REST with blobs: the JSON, and what follows it."""
    made = []
    for rows in (1, 2):
        tensors, blobs = [], []
        for spec in _signature(model).inputs:
            shape = _shape(spec, rows)
            blob = _blob(spec, int(np.prod(shape)))
            parameters = {"binary_data_size": len(blob)}
            tensors.append({"name": spec.name, "shape": shape, "datatype": spec.datatype, "parameters": parameters})
            blobs.append(blob)
        made.append((json.dumps({"inputs": tensors}).encode(), b"".join(blobs)))
        made.append((json.dumps({"id": 1, "inputs": tensors, "outputs": []}).encode(), b"".join(blobs)))
    return tuple(made)


@functools.cache
def rows_json(model: str) -> tuple[bytes, ...]:
    """Requests of TensorFlow Serving's and KServe v1's REST."""
    made: list[Any] = []
    specs = _signature(model).inputs
    for rows in (1, 2):
        columns = {s.name: _nested(_values(s, rows * _shape(s, 1)[1]), [rows, _shape(s, 1)[1]]) for s in specs}
        records = [{name: column[i] for name, column in columns.items()} for i in range(rows)]
        made += [{"instances": records}, {"inputs": columns, "signature_name": "serving_default"}]
        if len(specs) == 1:
            made += [{"instances": columns[specs[0].name]}, {"inputs": columns[specs[0].name]}]
        made.append({"examples": records, "context": {}})
    made.append({"instances": [{"b64": base64.b64encode(b"text").decode()}]})
    return tuple(json.dumps(tree).encode() for tree in made)


@functools.cache
def mlflow_json(model: str) -> tuple[bytes, ...]:
    """Requests of MLflow's scoring server."""
    specs = _signature(model).inputs
    tensors = {s.name: _nested(_values(s, _shape(s, 1)[1]), [1, _shape(s, 1)[1]]) for s in specs}
    row = [value for spec in specs for value in _values(spec, _shape(spec, 1)[1])]
    names = [f"{s.name}{i}" for s in specs for i in range(_shape(s, 1)[1])]
    made = [
        {"inputs": tensors},
        {"instances": [{name: value[0] for name, value in tensors.items()}], "params": {}},
        {"dataframe_split": {"columns": names, "index": [0], "data": [row]}},
        {"dataframe_records": [dict(zip(names, row, strict=True))]},
    ]
    return tuple(json.dumps(tree).encode() for tree in made)


@functools.cache
def generate_json(model: str) -> tuple[bytes, ...]:
    """Requests of Triton's generate extension, and of ``/predict``."""
    specs = _signature(model).inputs
    tree = {s.name: _values(s, _shape(s, 1)[1]) for s in specs}
    return tuple(json.dumps(made).encode() for made in (tree, {"id": "1", "parameters": {"timeout": 5}, **tree}))


ADMIN_JSON = (
    b'{"parameters":{"config":"{\\"max_batch_size\\":8,\\"parameters\\":{}}"}}',
    b'{"parameters":{"config":"{}","file:1/model.onnx":"YWJj"}}',
    b'{"parameters":{"unload_dependents":true}}',
    b'{"label":"stable","version":"1"}',
    b'{"label":"stable","version":null}',
    b'{"ready":true}',
    b"{}",
)
CSV = (b"x0,x1,x2,x3\n1,2,3,4\n", b'"x"\n"a,b"\n', b"x0,x1,x2\n1,,3\n4,5,6\n", b"x\n1\n\n")


@functools.cache
def oip_message(model: str) -> tuple[bytes, ...]:
    """``ModelInferRequest``s: raw and typed."""
    message = OIP.message("inference.ModelInferRequest")
    made = []
    for rows in (1, 2):
        for form in ("raw", "typed", "wishes"):
            request = message(model_name=model, id="" if rows == 1 else "i7")
            for spec in _signature(model).inputs:
                shape = _shape(spec, rows)
                count = int(np.prod(shape))
                tensor = request.inputs.add(name=spec.name, datatype=spec.datatype, shape=shape)
                if form == "typed" and spec.datatype in (*_TYPED, "BYTES"):
                    if spec.datatype == "BYTES":
                        tensor.contents.bytes_contents.extend(v.encode() for v in _values(spec, count))
                    else:
                        field = f"{_TYPED[spec.datatype]}_contents"
                        getattr(tensor.contents, field).extend(_values(spec, count))
                else:
                    request.raw_input_contents.append(_blob(spec, count))
            if form == "wishes":
                request.outputs.add(name=_signature(model).outputs[0].name).parameters["classification"].int64_param = 2
                request.parameters["priority"].int64_param = 1
                request.parameters["own"].string_param = "x"
            made.append(request.SerializeToString())
    return tuple(made)


_HALVES = ("FP16", "BF16")


@functools.cache
def predict_message(model: str) -> tuple[bytes, ...]:
    """``PredictRequest``s: elements as bytes and as values."""
    message = PROTOS.message("tensorflow.serving.PredictRequest")
    made = []
    for rows in (1, 2):
        for form in ("content", "values", "repeat"):
            request = message(model_spec={"name": model})
            for spec in _signature(model).inputs:
                shape = _shape(spec, rows)
                count = int(np.prod(shape))
                tensor = request.inputs[spec.name]
                tensor.dtype = DATA_TYPES[spec.datatype][1]
                for size in shape:
                    tensor.tensor_shape.dim.add(size=size)
                values = _values(spec, 1 if form == "repeat" else count)
                if spec.datatype == "BYTES":
                    tensor.string_val.extend(v.encode() for v in values)
                elif form == "content" or spec.datatype in _HALVES:
                    tensor.tensor_content = _blob(spec, count)
                else:
                    getattr(tensor, _VALUE_FIELDS[spec.datatype]).extend(values)
            if form == "repeat":
                request.output_filter.append(_signature(model).outputs[0].name)
            made.append(request.SerializeToString())
    return tuple(made)


_VALUE_FIELDS = {"BOOL": "bool_val", "INT8": "int_val", "INT16": "int_val", "INT32": "int_val", "INT64": "int64_val",
                 "UINT8": "int_val", "UINT16": "int_val", "UINT32": "uint32_val", "UINT64": "uint64_val",
                 "FP32": "float_val", "FP64": "double_val"}  # fmt: skip


@functools.cache
def example_messages() -> tuple[tuple[str, bytes], ...]:
    """Requests of TensorFlow Serving's other methods."""
    make = lambda kind, **fields: PROTOS.message(f"tensorflow.serving.{kind}")(**fields).SerializeToString()  # noqa: E731
    spec = {"name": "linear", "version": {"value": 1}}
    features = {"feature": {"x": {"float_list": {"value": [1, 2, 3, 4]}}}}
    examples = {"example_list": {"examples": [{"features": features}]}}
    service = "/tensorflow.serving.PredictionService/"
    task = {"model_spec": spec, "method_name": "tensorflow/serving/classify"}
    return (
        (f"{service}Classify", make("ClassificationRequest", model_spec=spec, input=examples)),
        (f"{service}Regress", make("RegressionRequest", model_spec={"name": "row-fp32"}, input=examples)),
        (f"{service}MultiInference", make("MultiInferenceRequest", tasks=[task], input=examples)),
        (f"{service}GetModelMetadata",
         make("GetModelMetadataRequest", model_spec=spec, metadata_field=["signature_def"])),
        ("/tensorflow.serving.ModelService/GetModelStatus", make("GetModelStatusRequest", model_spec=spec)),
        ("/tensorflow.serving.ModelService/HandleReloadConfigRequest", make(
            "ReloadConfigRequest",
            config={"model_config_list": {"config": [{"name": "linear", "model_version_policy": {"all": {}},
                                                      "version_labels": {"stable": 1}}]}},
        )),
    )  # fmt: skip


@functools.cache
def oip_messages() -> tuple[tuple[str, bytes], ...]:
    """Requests of OIP's other methods, of health and of reflection."""
    make = lambda kind, **fields: OIP.message(f"inference.{kind}")(**fields).SerializeToString()  # noqa: E731
    service = "/inference.GRPCInferenceService/"
    load = {"config": {"string_param": '{"max_batch_size": 8}'}, "file:1/model.onnx": {"bytes_param": b"abc"}}
    return (
        (f"{service}ServerLive", b""),
        (f"{service}ServerReady", b""),
        (f"{service}ModelReady", make("ModelReadyRequest", name="linear", version="1")),
        (f"{service}ServerMetadata", b""),
        (f"{service}ModelMetadata", make("ModelMetadataRequest", name="pair")),
        (f"{service}ModelConfig", make("ModelConfigRequest", name="linear", version="2")),
        (f"{service}ModelStatistics", make("ModelStatisticsRequest", name="linear")),
        (f"{service}RepositoryIndex", make("RepositoryIndexRequest", ready=True)),
        (f"{service}RepositoryModelLoad", make("RepositoryModelLoadRequest", model_name="pair", parameters=load)),
        (f"{service}RepositoryModelUnload", make("RepositoryModelUnloadRequest", model_name="pair")),
        (f"{service}SystemSharedMemoryStatus", b""),
        ("/grpc.health.v1.Health/Check", b"\x0a\x06linear"),
        ("/grpc.health.v1.Health/Watch", b""),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", b"\x3a\x00"),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", b"\x22\x1einference.GRPCInferenceService"),
    )


@functools.cache
def all_messages() -> tuple[tuple[str, bytes], ...]:
    """Every method with a request that is right."""
    infer = [(f"/inference.GRPCInferenceService/{method}", message)
             for method in ("ModelInfer", "ModelStreamInfer")
             for model in MODELS for message in oip_message(model)]  # fmt: skip
    predict = [("/tensorflow.serving.PredictionService/Predict", m) for model in MODELS for m in predict_message(model)]
    return (*infer, *predict, *example_messages() * 8, *oip_messages() * 4)


CONFIGS = (
    {"name": "linear", "platform": "onnxruntime_onnx", "max_batch_size": 8,
     "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
     "output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": ["3"], "label_filename": "labels.txt"}],
     "instance_group": [{"count": 2, "kind": "KIND_CPU"}], "version_policy": {"latest": {"num_versions": 2}},
     "dynamic_batching": {"default_queue_policy": {"max_queue_size": 5, "default_timeout_microseconds": "10"}},
     "response_cache": {"enable": True}, "model_warmup": [{"name": "w", "batch_size": 2, "count": 1}]},
    {"sequence_batching": {"max_sequence_idle_microseconds": 5000000, "oldest": {"max_candidate_sequences": 4},
     "control_input": [{"name": "START", "control": [{"kind": "CONTROL_SEQUENCE_START", "fp32_false_true": [0, 1]}]}],
     "state": [{"input_name": "s", "output_name": "t", "initial_state": {"zero_data": True}}]}},
    {"ensemble_scheduling": {"step": [{"model_name": "a", "model_version": -1, "input_map": {"x": "X"},
     "output_map": {"y": "Y"}}]}, "input": [{"name": "X"}], "output": [{"name": "Y"}],
     "version_policy": {"specific": {"versions": ["1"]}}},
)  # fmt: skip
"""Configurations of Triton's, as a load request may bring them."""

MODELS = tuple(dict.fromkeys(model.name for model in load_models()))


def _signature(name: str) -> Any:
    return next(model for model in load_models() if model.name == name).signature


def pick_model(random: Random) -> str:
    """A model, the common kinds more often."""
    return random.choice(("linear", "pair", "id-bytes", "row-fp32")) if random.random() < 0.4 else random.choice(MODELS)


def http_request(random: Random) -> tuple[str, str, bytes, dict[str, str]]:
    """Method, target, body and header fields of an HTTP request that is right."""
    model = pick_model(random)
    kind = random.randrange(20)
    if kind < 5:
        return "POST", f"/v2/models/{model}/infer", random.choice(oip_json(model)), {}
    if kind < 8:
        head, blobs = random.choice(oip_binary(model))
        return "POST", f"/v2/models/{model}/infer", head + blobs, {"inference-header-content-length": str(len(head))}
    if kind < 11:
        verb = random.choice(("predict", "predict", "predict", "classify", "regress", "explain"))
        path = f"/v1/models/{model}{random.choice(('', '', '/versions/1', '/labels/stable'))}:{verb}"
        return "POST", path, random.choice(rows_json(model)), {}
    if kind < 12:
        return "POST", f"/invocations/{model}", random.choice(mlflow_json(model)), {"content-type": "application/json"}
    if kind < 13:
        return "POST", f"/invocations/{model}", random.choice(CSV), {"content-type": "text/csv"}
    if kind < 15:
        path = random.choice(("/v2/models/{}/generate", "/v2/models/{}/generate_stream", "/predict/{}"))
        return "POST", path.format(model), random.choice(generate_json(model)), {}
    if kind < 17:
        path = random.choice(("/v2/repository/index", "/v2/repository/models/{}/load", "/v2/models/{}/labels",
                              "/v2/repository/models/{}/unload"))  # fmt: skip
        return "POST", path.format(model), random.choice(ADMIN_JSON), {}
    path = random.choice(("/v2", "/v2/health/live", "/v2/models/{}", "/v2/models/{}/config", "/v2/models/{}/stats",
                          "/v1/models/{}", "/v1/models/{}/metadata", "/ping", "/v2/models/{}/versions/1/ready",
                          "/nothing"))  # fmt: skip
    return random.choice(("GET", "GET", "GET", "HEAD", "OPTIONS", "DELETE")), path.format(model), b"", {}
