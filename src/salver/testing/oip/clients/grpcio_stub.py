"""Plain ``grpcio`` with the stub that protoc makes of the public protos (as tritonclient ships it): no client library
between the suite and the wire. Health and reflection come from grpcio's own packages."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import harness
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
WAIT_S = 10


def connect(settings: dict[str, Any]) -> GrpcioStub:
    """One channel; messages of any size may come back."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    if not settings["ca"]:
        return GrpcioStub(grpc.insecure_channel(settings["grpc"], options), settings["headers"])
    credentials = grpc.ssl_channel_credentials(
        *(_read(settings[name]) if settings[name] else None for name in ("ca", "key", "cert"))
    )
    return GrpcioStub(grpc.secure_channel(settings["grpc"], credentials, options), settings["headers"])


class GrpcioStub:
    """The calls of the suite, message by message."""

    def __init__(self, channel: Any, headers: dict[str, str]) -> None:
        self._channel = channel
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._metadata = tuple(headers.items())

    def infer(
        self,
        model: str,
        inputs: list[dict[str, Any]],
        encoding: str,
        version: str = "",
        outputs: list[dict[str, Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> Any:
        """Ask a model, with ``raw`` or ``typed`` contents, or with raw ones over a ``stream``. Answers are read in the
        form in which they come.

        Args:
            options: ``request_id``, ``parameters``, ``timeout_s``, ``compression``.
        """
        given = options or {}
        if encoding == "stream":
            [answer] = self.stream([{"model": model, "inputs": inputs, "options": given}])
            if "error" in answer:
                raise harness.Refused("", answer["error"])
            return answer
        request = _request(model, inputs, encoding, version, outputs, given)
        return _result(
            self._stub.ModelInfer(
                request,
                timeout=given.get("timeout_s", WAIT_S),
                metadata=self._metadata,
                compression=getattr(grpc.Compression, given.get("compression", "NoCompression")),
            )
        )

    def together(self, requests: list[dict[str, Any]]) -> Any:
        """Many requests at once on one connection; the answers in the order of the requests."""
        calls = [
            self._stub.ModelInfer.future(
                _request(r["model"], r["inputs"], "raw", "", None, {}), timeout=WAIT_S, metadata=self._metadata
            )
            for r in requests
        ]
        return [_result(call.result()) for call in calls]

    def cancelled(self, request: dict[str, Any]) -> Any:
        """Cancel a request under way, then ask whether the server is alive."""
        call = self._stub.ModelInfer.future(_request(request["model"], request["inputs"], "raw", "", None, {}))
        call.cancel()
        return {"cancelled": call.cancelled(), "live": self.call("ServerLive", {})["live"]}

    def call(self, method: str, request: dict[str, Any]) -> Any:
        """Any unary method, its messages as protobuf's JSON with the names of the proto."""
        message = json_format.ParseDict(request, getattr(service_pb2, f"{method}Request")())
        answer = getattr(self._stub, method)(message, timeout=WAIT_S, metadata=self._metadata)
        return json_format.MessageToDict(
            answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    def stream(self, requests: list[dict[str, Any]]) -> Any:
        """ModelStreamInfer: all requests, then half-close, then every answer until the server ends the stream."""

        def feed() -> Iterator[Any]:
            for r in requests:
                yield _request(r["model"], r["inputs"], "raw", "", None, r.get("options") or {})

        answers = self._stub.ModelStreamInfer(feed(), timeout=WAIT_S, metadata=self._metadata)
        return [{"error": a.error_message} if a.error_message else _result(a.infer_response) for a in answers]

    def bytes_call(self, path: str, data: str) -> Any:
        """A method by its path and a message of any bytes (base64)."""
        method = self._channel.unary_unary(path)
        return base64.b64encode(method(base64.b64decode(data), timeout=WAIT_S, metadata=self._metadata)).decode("ascii")

    def health(self, service: str = "") -> Any:
        """grpc.health.v1.Health/Check."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S, metadata=self._metadata)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def watch(self, service: str = "") -> Any:
        """The first status of grpc.health.v1.Health/Watch."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        answers = stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S, metadata=self._metadata)
        status = next(answers).status
        answers.cancel()
        return health_pb2.HealthCheckResponse.ServingStatus.Name(status)

    def services(self) -> Any:
        """Names of services, by reflection."""
        stub = reflection_pb2_grpc.ServerReflectionStub(self._channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        answers = list(stub.ServerReflectionInfo(asked, timeout=WAIT_S, metadata=self._metadata))
        return [s.name for a in answers for s in a.list_services_response.service]


def _request(
    model: str,
    inputs: list[dict[str, Any]],
    encoding: str,
    version: str,
    outputs: list[dict[str, Any]] | None,
    options: dict[str, Any],
) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=options.get("request_id", ""))
    for name, value in options.get("parameters", {}).items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    for tensor in inputs:
        added = request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        if encoding == "raw":
            request.raw_input_contents.append(base64.b64decode(tensor["data"]))
        else:
            values = harness.to_array(tensor).ravel().tolist()
            getattr(added.contents, FIELDS[tensor["datatype"]]).extend(values)
    for output in outputs or []:
        wanted = request.outputs.add(name=output["name"])
        if "class_count" in output:
            wanted.parameters["classification"].int64_param = output["class_count"]
    return request


def _result(got: Any) -> dict[str, Any]:
    outputs = []
    for position, output in enumerate(got.outputs):
        if got.raw_output_contents:
            data = got.raw_output_contents[position]
            outputs.append(harness.raw_tensor(output.name, output.datatype, output.shape, data))
        else:
            dtype = harness.DTYPES.get(output.datatype, object)
            values = list(getattr(output.contents, FIELDS[output.datatype]))
            array = harness.np.array(values, dtype=dtype).reshape(output.shape)
            outputs.append(harness.to_tensor(output.name, output.datatype, array))
    return {
        "model": got.model_name,
        "version": got.model_version,
        "id": got.id,
        "raw": bool(got.raw_output_contents),
        "outputs": outputs,
    }


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


harness.serve(connect, "grpcio " + version("grpcio"))
