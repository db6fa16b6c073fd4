"""TensorFlow Serving's Predict, over REST and gRPC, as a load generator speaks it. Loaded only for these.

Interface: https://www.tensorflow.org/tfx/serving/api_rest, prediction_service.proto.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec
import numpy as np
from google.protobuf.message import DecodeError

from salver.client.blocking import Connection, Http1Connection
from salver.client.endpoint import Endpoint
from salver.client.load.plan import LoadPlan
from salver.client.load.requests import TensorInfo, WireFormat
from salver.client.messages import Tensor
from salver.client.protocol import Incoming, Outgoing
from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition, Internal, InvalidArgument, Unavailable
from salver.core.registry import load
from salver.core.tensors import NUMPY_DTYPES, to_datatype
from salver.wire import jsonio
from salver.wire.protos import ProtoSet
from salver.wire.tensorflow import DATA_TYPES, VALUE_FIELDS

_SIGNATURE: Final = "serving_default"
_SERVICE: Final = "/tensorflow.serving.PredictionService/"
_JSON: Final = (("content-type", "application/json"),)
_BLOCKING_GRPC: Final = "salver.client.http2:BlockingHttp2"
_OF_NAME: Final = {name: datatype for datatype, (name, _) in DATA_TYPES.items()}
_OF_NUMBER: Final = {number: datatype for datatype, (_, number) in DATA_TYPES.items()}


def make_wire(plan: LoadPlan, endpoint: Endpoint) -> WireFormat:
    """The wire that the plan names."""
    made = _Grpc(plan, endpoint) if endpoint.is_grpc else _Rest(plan, endpoint)
    return WireFormat(made.describe, made.write, made.read)


def _ask(endpoint: Endpoint, request: Outgoing, patience_s: float) -> Incoming:
    """One exchange on a connection of its own."""
    kind: Callable[[Endpoint, float | None], Connection] = load(_BLOCKING_GRPC) if endpoint.is_grpc else Http1Connection
    until_s = time.monotonic() + patience_s
    connection = kind(endpoint, until_s)
    try:
        return connection.exchange(request, until_s)
    finally:
        connection.close()


def _check_plain(parameters: Mapping[str, Any]) -> None:
    if parameters:
        raise InvalidArgument(f"TensorFlow Serving's protocol carries no {' and no '.join(parameters)}")


class _Rest:
    """``POST /v1/models/M:predict`` in columns."""

    def __init__(self, plan: LoadPlan, endpoint: Endpoint) -> None:
        self._plan = plan
        self._endpoint = endpoint

    def describe(self, model: str, version: str) -> list[TensorInfo]:
        """The inputs of the model's only signature."""
        request = Outgoing(path=f"{_path(model, version)}/metadata", method="GET", fields=self._plan.fields)
        said = _ask(self._endpoint, request, self._plan.patience_s)
        if said.status != 200:
            raise Unavailable(f"no metadata of '{model}': HTTP status {said.status}: {said.body[:200].decode()}")
        try:
            signatures = msgspec.json.decode(said.body)["metadata"]["signature_def"]["signature_def"]
            inputs = signatures[_SIGNATURE]["inputs"]
            return [
                TensorInfo(
                    name, _OF_NAME[info["dtype"]], tuple(int(d["size"]) for d in info["tensor_shape"].get("dim", ()))
                )
                for name, info in inputs.items()
            ]
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise Internal(f"the server's metadata of '{model}' cannot be read: {error!r}") from None

    def write(
        self, model: str, version: str, inputs: Mapping[str, Any], parameters: dict[str, Any], timeout_s: float | None
    ) -> Outgoing:
        """A request. The protocol has no time out."""
        _check_plain(parameters)
        columns = {name: _nested(value, name) for name, value in inputs.items()}
        body = jsonio.ENCODER.encode({"signature_name": _SIGNATURE, "inputs": columns})
        return Outgoing(path=f"{_path(model, version)}:predict", fields=_JSON, body=body)

    def read(self, incoming: Incoming) -> Mapping[str, Array]:
        """Its answer; an only output has the name of the only one that is expected."""
        said = jsonio.decode(incoming.body, dict[str, Any], "answer")
        outputs = said.get("outputs")
        if outputs is None:
            raise Internal(f"no outputs in the server's answer: {incoming.body[:200].decode(errors='replace')}")
        if not isinstance(outputs, dict):
            outputs = {next(iter(self._plan.expected), ""): outputs}
        return {name: np.array(value) for name, value in outputs.items()}


def _path(model: str, version: str) -> str:
    path = f"/v1/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _nested(value: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        raise InvalidArgument(f"input '{name}': BF16 cannot be written as JSON")
    array = np.asarray(value)
    return _texts(array.tolist()) if array.dtype.kind in "OS" else array.tolist()


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(each) for each in value]
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


class _Grpc:
    """``PredictionService/Predict``."""

    def __init__(self, plan: LoadPlan, endpoint: Endpoint) -> None:
        self._plan = plan
        self._endpoint = endpoint
        protos = ProtoSet("tfserving")
        self._request = protos.message("tensorflow.serving.PredictRequest")
        self._response = protos.message("tensorflow.serving.PredictResponse")
        self._ask_metadata = protos.message("tensorflow.serving.GetModelMetadataRequest")
        self._metadata = protos.message("tensorflow.serving.GetModelMetadataResponse")
        self._signatures = protos.message("tensorflow.serving.SignatureDefMap")

    def describe(self, model: str, version: str) -> list[TensorInfo]:
        """The inputs of the model's only signature."""
        asked = self._ask_metadata(metadata_field=["signature_def"])
        _name(asked.model_spec, model, version)
        request = Outgoing(path=f"{_SERVICE}GetModelMetadata", fields=self._plan.fields, body=asked.SerializeToString())
        said = _ask(self._endpoint, request, self._plan.patience_s)
        if said.status:
            message = said.fields.get(b"grpc-message", b"").decode()
            raise Unavailable(f"no metadata of '{model}': gRPC status {said.status}: {message}")
        packed = self._metadata.FromString(said.body).metadata["signature_def"]
        found = self._signatures.FromString(packed.value).signature_def[_SIGNATURE].inputs
        return [
            TensorInfo(name, _OF_NUMBER[info.dtype], tuple(dim.size for dim in info.tensor_shape.dim))
            for name, info in sorted(found.items())
        ]

    def write(
        self, model: str, version: str, inputs: Mapping[str, Any], parameters: dict[str, Any], timeout_s: float | None
    ) -> Outgoing:
        """A request."""
        _check_plain(parameters)
        request = self._request()
        _name(request.model_spec, model, version)
        for name, value in inputs.items():
            _fill(request.inputs[name], value)
        fields = () if timeout_s is None else (("grpc-timeout", f"{max(1, int(timeout_s * 1e3))}m"),)
        return Outgoing(path=f"{_SERVICE}Predict", fields=fields, body=request.SerializeToString())

    def read(self, incoming: Incoming) -> Mapping[str, Array]:
        """Its answer."""
        try:
            outputs = self._response.FromString(incoming.body).outputs
        except DecodeError as error:
            raise Internal(f"the server's answer is no PredictResponse: {error}") from None
        return {name: _array(outputs[name], name) for name in outputs}


def _name(spec: Any, model: str, version: str) -> None:
    spec.name = model
    spec.signature_name = _SIGNATURE
    if version.isdigit():
        spec.version.value = int(version)
    elif version:
        spec.version_label = version


def _fill(target: Any, value: Any) -> None:
    array, datatype = (value.array, value.datatype) if isinstance(value, Tensor) else (np.asarray(value), "")
    datatype = datatype or to_datatype(array.dtype)
    target.dtype = DATA_TYPES[datatype][1]
    for size in array.shape:
        target.tensor_shape.dim.add(size=size)
    if datatype == "BYTES":
        target.string_val.extend(v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist())
    else:
        target.tensor_content = array.tobytes()


def _array(tensor: Any, name: str) -> Array:
    """The array of an output; the last of too few values stands for those left out (tensor.cc, `FromProtoField`)."""
    datatype = _OF_NUMBER.get(tensor.dtype)
    if datatype is None:
        raise FailedPrecondition(f"output '{name}': unknown data type {tensor.dtype}")
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    dtype = NUMPY_DTYPES[datatype]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    values = list(getattr(tensor, VALUE_FIELDS[datatype]))
    count = int(np.prod(shape, dtype=np.int64))
    values += (values[-1:] or [b"" if datatype == "BYTES" else 0]) * (count - len(values))
    if datatype == "FP16":
        return np.array(values, np.uint16).view(np.float16).reshape(shape)
    return np.array(values, dtype).reshape(shape)
