"""The Open Inference Protocol over gRPC, as a client speaks it: tensors as raw bytes.

Specification: https://github.com/kserve/open-inference-protocol (open_inference_grpc.proto), Triton's extensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from google.protobuf.message import DecodeError

from salver.client.messages import Answer, InferCall, read_tensor, read_values
from salver.client.protocol import Incoming, Operation, Outgoing, Protocol
from salver.core.arrays import Array
from salver.core.errors import Code, Internal, InvalidArgument, error_of
from salver.wire import jsonio
from salver.wire.grpc import GRPC_STATUS
from salver.wire.protobuf import CONTENTS, varint
from salver.wire.protos import ProtoSet

_SERVICE: Final = "/inference.GRPCInferenceService/"
_RAW_TAG: Final = b"\x3a"  # ModelInferRequest.raw_input_contents: field 7, length-delimited
_MAX_PREFIXES: Final = 64
_CODES: Final = {number: code for code, number in GRPC_STATUS.items()} | {11: Code.INVALID_ARGUMENT}  # OUT_OF_RANGE


class GrpcProtocol(Protocol):
    """OIP v2 over gRPC."""

    def __init__(self) -> None:
        protos = ProtoSet("oip")
        self._message: Callable[[str], Any] = lambda name: protos.message(f"inference.{name}")
        self._request = self._message("ModelInferRequest")
        self._response = self._message("ModelInferResponse")
        self._prefixes: dict[Any, bytes] = {}

    def infer(self, call: InferCall, left_s: float | None) -> Outgoing:
        key = call.key
        prefix = self._prefixes.get(key) if key is not None else None
        if prefix is None:
            prefix = self._describe(call)
            if key is not None:
                if len(self._prefixes) >= _MAX_PREFIXES:
                    self._prefixes.clear()
                self._prefixes[key] = prefix
        body: list[bytes | memoryview] = [prefix]
        for given in call.inputs:
            body += (_RAW_TAG + varint(len(given.data)), given.data)
        return Outgoing(path=_SERVICE + "ModelInfer", fields=_timeout(left_s), body=body, once=call.is_step)

    def _describe(self, call: InferCall) -> bytes:
        request = self._request(model_name=call.model, model_version=call.version, id=call.id)
        _fill(request.parameters, call.parameters)
        for given in call.inputs:
            request.inputs.add(name=given.name, datatype=given.datatype, shape=given.shape)
        for name in call.outputs:
            request.outputs.add(name=name)
        return bytes(request.SerializeToString())

    def read_infer(self, incoming: Incoming) -> Answer:
        _check(incoming)
        response = _parse(self._response, incoming.body)
        outputs: dict[str, Array] = {}
        raw = response.raw_output_contents
        if raw and len(raw) != len(response.outputs):
            raise Internal(f"the server sent {len(raw)} tensors for {len(response.outputs)} outputs")
        for i, output in enumerate(response.outputs):
            try:
                outputs[output.name] = _read_output(output, raw[i] if raw else None)
            except InvalidArgument as error:
                raise Internal(f"the server's answer cannot be read: {error}") from None
        return Answer(
            outputs=outputs,
            datatypes={output.name: output.datatype for output in response.outputs},
            model=response.model_name,
            version=response.model_version,
            id=response.id,
            parameters={name: _value(parameter) for name, parameter in response.parameters.items()},
        )

    def ask(self, operation: Operation, arguments: Mapping[str, Any]) -> Outgoing:
        method, fields = _METHODS[operation]
        request = self._message(f"{method}Request")()
        for argument, field in fields.items():
            if arguments.get(argument):
                setattr(request, field, arguments[argument])
        if operation == "load":
            _fill_load(request.parameters, arguments)
        return Outgoing(path=_SERVICE + method, body=request.SerializeToString(), once=operation in ("load", "unload"))

    def read(self, operation: Operation, incoming: Incoming) -> Any:
        if operation in ("live", "ready", "model_ready") and incoming.status in (5, 14):
            return False
        _check(incoming)
        response = _parse(self._message(f"{_METHODS[operation][0]}Response"), incoming.body)
        if operation in ("live", "ready", "model_ready"):
            return bool(getattr(response, "live" if operation == "live" else "ready"))
        found = _plain(response)
        return _WRAPPED[operation](found) if operation in _WRAPPED else found


_METHODS: Final[dict[Operation, tuple[str, dict[str, str]]]] = {
    "live": ("ServerLive", {}),
    "ready": ("ServerReady", {}),
    "model_ready": ("ModelReady", {"model": "name", "version": "version"}),
    "server": ("ServerMetadata", {}),
    "model": ("ModelMetadata", {"model": "name", "version": "version"}),
    "config": ("ModelConfig", {"model": "name", "version": "version"}),
    "statistics": ("ModelStatistics", {"model": "name", "version": "version"}),
    "index": ("RepositoryIndex", {}),
    "load": ("RepositoryModelLoad", {"model": "model_name"}),
    "unload": ("RepositoryModelUnload", {"model": "model_name"}),
}
_WRAPPED: Final[dict[Operation, Callable[[Any], Any]]] = {
    "config": lambda found: found.get("config", {}),
    "index": lambda found: found["models"],
    "load": lambda _: None,
    "unload": lambda _: None,
}


def _plain(message: Any) -> dict[str, Any]:
    """A message as REST says it: unlike in protobuf's own JSON, 64-bit numbers are numbers."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if isinstance(value, Mapping):
            held = field.message_type.fields_by_name["value"]
            found[field.name] = {key: _plain_one(held, value[key]) for key in value}
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            found[field.name] = [_plain_one(field, item) for item in value]
        else:
            found[field.name] = _plain_one(field, value)
    return found


def _plain_one(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return _plain(value)
    return value if field.enum_type is None else field.enum_type.values_by_number[value].name


def _fill(target: Any, parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        match value:
            case bool():
                target[name].bool_param = value
            case int() if value < 1 << 63:
                target[name].int64_param = value
            case int():
                target[name].uint64_param = value
            case float():
                target[name].double_param = value
            case _:
                target[name].string_param = value


def _fill_load(target: Any, arguments: Mapping[str, Any]) -> None:
    if arguments.get("config") is not None:
        target["config"].string_param = jsonio.ENCODER.encode(arguments["config"]).decode()
    for name, content in (arguments.get("files") or {}).items():
        target[f"file:{name}"].bytes_param = content


def _value(parameter: Any) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, kind) if kind else None


def _read_output(output: Any, raw: bytes | None) -> Array:
    where = f"output '{output.name}'"
    if raw is not None:
        return read_tensor(raw, output.datatype, tuple(output.shape), where)
    field = CONTENTS.get(output.datatype)
    if field is None:
        raise InvalidArgument(f"{where}: {output.datatype} has no typed contents")
    return read_values(list(getattr(output.contents, field)), output.datatype, tuple(output.shape), where)


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise Internal(f"the server's answer is no {kind.DESCRIPTOR.name}: {error}") from None


def _check(incoming: Incoming) -> None:
    if incoming.status == 0:
        return
    message = unquote(incoming.fields.get(b"grpc-message", b"").decode("latin-1")) or f"gRPC status {incoming.status}"
    pushback = incoming.fields.get(b"grpc-retry-pushback-ms", b"")
    retry_after_s = float(pushback) / 1000 if pushback.isdigit() else None
    raise error_of(_CODES.get(incoming.status, Code.INTERNAL), message, retry_after_s)


def _timeout(left_s: float | None) -> tuple[tuple[str, str], ...]:
    """``grpc-timeout``: at most eight digits (PROTOCOL-HTTP2.md)."""
    if left_s is None:
        return ()
    if left_s < 90:
        return (("grpc-timeout", f"{max(1, int(left_s * 1e6))}u"),)
    return (("grpc-timeout", f"{min(int(left_s * 1e3), 99_999_999)}m"),)
