"""The Open Inference Protocol over REST, as a client speaks it: binary tensors both ways where the server knows them.

Specification: https://github.com/kserve/open-inference-protocol (inference_rest.md), Triton's binary data extension.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec
import numpy as np

from salver.client.messages import Answer, InferCall, Named, read_tensor
from salver.client.protocol import Incoming, Operation, Outgoing, Protocol
from salver.core.arrays import Array
from salver.core.errors import Code, Internal, InvalidArgument, TooLarge, error_of
from salver.core.tensors import NUMPY_DTYPES
from salver.wire import jsonio
from salver.wire.elements import from_json, to_json

_HEADER_LENGTH: Final = "inference-header-content-length"
_JSON: Final = (("content-type", "application/json"),)
_MAX_HEADS: Final = 64
_CODES: Final = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.ALREADY_EXISTS,
    412: Code.FAILED_PRECONDITION,
    422: Code.INVALID_ARGUMENT,  # FastAPI's, for a body that does not fit
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _PlainOutput(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: Any = msgspec.UNSET


class _Response(msgspec.Struct):
    outputs: list[_Output]
    model_name: str = ""
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, Any] | None = None


class _PlainResponse(msgspec.Struct):
    outputs: list[_PlainOutput]
    model_name: str = ""
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, Any] | None = None


class RestProtocol(Protocol):
    """OIP v2 over HTTP.

    Args:
        binary: whether tensors travel as bytes; as JSON otherwise, for servers without the extension.
    """

    def __init__(self, binary: bool = True) -> None:
        self.binary = binary
        self._heads: dict[Any, Outgoing] = {}

    def infer(self, call: InferCall, left_s: float | None) -> Outgoing:
        key = call.key if self.binary and left_s is None else None
        known = self._heads.get(key) if key is not None else None
        if known is None:
            known = self._describe(call, left_s)
            if key is not None:
                if len(self._heads) >= _MAX_HEADS:
                    self._heads.clear()
                self._heads[key] = known
        if not self.binary:
            return known
        head = known.body if isinstance(known.body, bytes) else b""
        return Outgoing(
            path=known.path, fields=known.fields, body=[head, *(i.data for i in call.inputs)], once=known.once
        )

    def _describe(self, call: InferCall, left_s: float | None) -> Outgoing:
        """The request's JSON, without the bytes that may follow."""
        parameters = dict(call.parameters)
        if left_s is not None:
            parameters.setdefault("timeout", max(1, int(left_s * 1e6)))
        body: dict[str, Any] = {"id": call.id} if call.id else {}
        if self.binary and not call.outputs:
            parameters["binary_data_output"] = True
        if call.outputs:
            own = {"parameters": {"binary_data": True}} if self.binary else {}
            body["outputs"] = [{"name": name, **own} for name in call.outputs]
        if parameters:
            body["parameters"] = parameters
        body["inputs"] = [self._input(i) for i in call.inputs]
        head = _encode(body)
        fields = (("content-type", "application/octet-stream"), (_HEADER_LENGTH, str(len(head))))
        path = f"{_model_path(call.model, call.version)}/infer"
        return Outgoing(path=path, fields=fields if self.binary else _JSON, body=head, once=call.is_step)

    def _input(self, given: Named) -> dict[str, Any]:
        described: dict[str, Any] = {"name": given.name, "shape": given.shape, "datatype": given.datatype}
        if self.binary:
            described["parameters"] = {"binary_data_size": len(given.data)}
        elif given.datatype == "BYTES":
            described["data"] = [_text(v, given.name) for v in given.array.reshape(-1).tolist()]
        else:
            described["data"] = msgspec.Raw(to_json(given.array, given.datatype))
        return described

    def read_infer(self, incoming: Incoming) -> Answer:
        _check(incoming)
        length = incoming.fields.get(_HEADER_LENGTH.encode())
        try:
            head = incoming.body if length is None else incoming.body[: int(length)]
            response = _decode(head)
            return _to_answer(response, incoming.body, len(head))
        except (InvalidArgument, ValueError) as error:
            raise Internal(f"the server's answer cannot be read: {error}") from None

    def ask(self, operation: Operation, arguments: Mapping[str, Any]) -> Outgoing:
        model = _model_path(arguments.get("model", ""), arguments.get("version", ""))
        name = quote(arguments.get("model", ""), safe="")
        match operation:
            case "live" | "ready":
                return Outgoing(path=f"/v2/health/{operation}", method="GET")
            case "model_ready":
                return Outgoing(path=f"{model}/ready", method="GET")
            case "server":
                return Outgoing(path="/v2", method="GET")
            case "model":
                return Outgoing(path=model, method="GET")
            case "config":
                return Outgoing(path=f"{model}/config", method="GET")
            case "statistics":
                return Outgoing(path=f"{model}/stats" if name else "/v2/models/stats", method="GET")
            case "index":
                return Outgoing(path="/v2/repository/index", fields=_JSON, body=b"{}")
            case "load":
                body = _encode({"parameters": _load_parameters(arguments)})
                return Outgoing(path=f"/v2/repository/models/{name}/load", fields=_JSON, body=body, once=True)
            case "unload":
                return Outgoing(path=f"/v2/repository/models/{name}/unload", fields=_JSON, body=b"{}", once=True)

    def read(self, operation: Operation, incoming: Incoming) -> Any:
        if operation in ("live", "ready", "model_ready"):
            if incoming.status in (400, 404, 503):
                return False
            _check(incoming)
            return True
        _check(incoming)
        if operation in ("load", "unload"):
            return None
        return jsonio.decode(incoming.body, Any, "answer")


def _load_parameters(arguments: Mapping[str, Any]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if arguments.get("config") is not None:
        parameters["config"] = _encode(arguments["config"]).decode()
    for name, content in (arguments.get("files") or {}).items():
        parameters[f"file:{name}"] = base64.b64encode(content).decode()
    return parameters


def _model_path(model: str, version: str) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _encode(value: Any) -> bytes:
    return jsonio.ENCODER.encode(value)


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"input '{name}': bytes that are not UTF-8 cannot be sent in JSON") from None


def _decode(head: bytes) -> _Response | _PlainResponse:
    try:
        response: _Response = jsonio.decoder_of(_Response).decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError):
        plain: _PlainResponse = jsonio.decode(head, _PlainResponse, "answer")
        return plain
    return response


def _to_answer(response: _Response | _PlainResponse, body: bytes, position: int) -> Answer:
    outputs: dict[str, Array] = {}
    datatypes: dict[str, str] = {}
    for output in response.outputs:
        where = f"output '{output.name}'"
        size = (output.parameters or {}).get("binary_data_size")
        if isinstance(size, int):
            outputs[output.name] = read_tensor(body[position : position + size], output.datatype, output.shape, where)
            position += size
        else:
            outputs[output.name] = _from_json(output.data, output.datatype, output.shape, where)
        datatypes[output.name] = output.datatype
    return Answer(
        outputs=outputs,
        datatypes=datatypes,
        model=response.model_name,
        version=response.model_version or "",
        id=response.id or "",
        parameters=response.parameters or {},
    )


def _from_json(data: Any, datatype: str, shape: Sequence[int], where: str) -> Array:
    if datatype not in NUMPY_DTYPES:
        raise InvalidArgument(f"{where}: unknown datatype '{datatype}'")
    if data is msgspec.UNSET:
        raise InvalidArgument(f"{where} has neither data nor bytes")
    array = from_json(data, datatype, list(shape), where)
    if datatype == "BYTES":
        texts = np.empty(array.size, dtype=object)
        texts[:] = [value.encode() for value in array.reshape(-1).tolist()]
        return texts.reshape(array.shape)
    return array


def _check(incoming: Incoming) -> None:
    status = incoming.status
    if 200 <= status < 300:
        return
    message = _error_text(incoming)
    if status == 413:
        raise TooLarge(message)
    code = _CODES.get(status, Code.INTERNAL if status >= 500 else Code.INVALID_ARGUMENT)
    raise error_of(code, message, _retry_after_s(incoming))


def _error_text(incoming: Incoming) -> str:
    try:
        said = msgspec.json.decode(incoming.body)
        if isinstance(said, dict) and isinstance(said.get("error"), str):
            return str(said["error"])
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    shown = incoming.body[:200].decode("utf-8", "replace").strip()
    return f"HTTP status {incoming.status}" + (f": {shown}" if shown else "")


def _retry_after_s(incoming: Incoming) -> float | None:
    text = incoming.fields.get(b"retry-after", b"")
    return float(text) if text.isdigit() else None
