"""TensorFlow Serving's REST API, and KServe's protocol v1, which has the same paths.

https://www.tensorflow.org/tfx/serving/api_rest; https://kserve.github.io/website (data plane, V1 protocol)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec

from salver.core.arrays import Array
from salver.core.errors import SalverError, Unimplemented
from salver.core.tensors import Signature
from salver.server.engine.base import ServedModel
from salver.server.frontends.base import Frontend, Route, Services
from salver.server.frontends.http.exchange import Exchange
from salver.server.frontends.instances import example_instance
from salver.server.frontends.oip.messages import CodecLimits
from salver.server.frontends.oip.openapi import operation
from salver.server.frontends.tfserving.examples import to_arrays, to_classes, to_numbers, to_rows
from salver.server.frontends.tfserving.rows import RowCodec, unwrap_rows
from salver.server.frontends.tfserving.signatures import SIGNATURE_NAME, check_signature_name, signature_def
from salver.server.frontends.tfserving.versions import find_model, is_ready, list_statuses
from salver.wire import jsonio

_MODEL: Final = "/v1/models/{model}"
_VERSION: Final = "/v1/models/{model}/versions/{version}"
_LABEL: Final = "/v1/models/{model}/labels/{label}"

Result = Callable[[Mapping[str, Array], Signature, int], Sequence[Any]]


class _Examples(msgspec.Struct):
    examples: list[dict[str, Any]]
    context: dict[str, Any] = {}
    signature_name: str | None = None


class _Memo:
    """What is worked out once for a path: the model it named last, and its codec."""

    __slots__ = ("codec", "model")

    def __init__(self, model: ServedModel, limits: CodecLimits) -> None:
        self.model = model
        self.codec = RowCodec(model.signature, limits)


class TfservingRestFrontend(Frontend):
    """``/v1/models/...``: status, metadata, predict, classify and regress, by version or label."""

    name = "tfserving-rest"

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        settings = services.settings
        self._limits = CodecLimits(max_json_depth=settings.max_json_depth, max_string_bytes=settings.max_string_bytes)

    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", "/v1/models", self._list, "metadata"),
            *self._routes(_MODEL, _plain),
            *self._routes(_VERSION, _by_version),
            *self._routes(_LABEL, _by_label),
        )

    def _routes(self, path: str, named: _Named) -> Sequence[Route]:
        """The same for a path that names the model alone, with a version, or with a label."""
        return (
            Route("GET", path, lambda exchange: self._status(exchange, named), "open"),
            Route("GET", f"{path}/metadata", lambda exchange: self._metadata(exchange, named), "metadata"),
            Route("POST", f"{path}:predict", lambda exchange: self._predict(exchange, named), "infer"),
            Route("POST", f"{path}:classify", lambda exchange: self._examples(exchange, named, to_classes), "infer"),
            Route("POST", f"{path}:regress", lambda exchange: self._examples(exchange, named, to_numbers), "infer"),
            Route("POST", f"{path}:explain", lambda exchange: self._explain(exchange, named), "infer"),
        )

    def openapi(self, models: Sequence[ServedModel]) -> dict[str, Any]:
        paths: dict[str, Any] = {"/v1/models": {"get": operation("Names of the models", "server")}}
        for model in models:
            base = f"/v1/models/{quote(model.name, safe='')}"
            paths[base] = {"get": operation("Versions and their states", model.name)}
            paths[f"{base}/metadata"] = {"get": operation("Inputs and outputs", model.name)}
            example = example_instance(model.signature)
            shown = None if example is None else {"instances": [example]}
            paths[f"{base}:predict"] = {"post": operation("Predict rows or columns", model.name, (_PREDICT, shown))}
        return paths

    # Status and metadata

    def _list(self, exchange: Exchange) -> None:
        names = {model.name for model in self.services.engine.models()}
        exchange.respond(jsonio.encode({"models": sorted(names)}))

    def _status(self, exchange: Exchange, named: _Named) -> None:
        """TensorFlow Serving's answer and KServe's in one object, with KServe's status: 503 while nothing is ready."""
        params = named(exchange)
        statuses = list_statuses(self.services.engine, *params)
        ready = is_ready(statuses)
        answer = {
            "model_version_status": [
                {"version": s.version, "state": s.state, "status": {"error_code": s.code, "error_message": s.message}}
                for s in statuses
            ],
            "name": params[0],
            "ready": ready,
        }
        if ready:
            exchange.respond(jsonio.encode(answer))
        else:
            exchange.respond(jsonio.encode(answer), status=503, code="UNAVAILABLE")

    def _metadata(self, exchange: Exchange, named: _Named) -> None:
        model = find_model(self.services.engine, *named(exchange))
        described = {
            "model_spec": {"name": model.name, "signature_name": "", "version": model.version},
            "metadata": {"signature_def": {"signature_def": {SIGNATURE_NAME: signature_def(model.signature)}}},
        }
        exchange.respond(jsonio.encode(described))

    # Inference

    def _predict(self, exchange: Exchange, named: _Named) -> None:
        started_s = exchange.started_s
        match = exchange.match
        model = find_model(self.services.engine, *named(exchange))
        memo = match.memo
        if memo is None or memo.model is not model:
            memo = match.memo = _Memo(model, self._limits)
        codec: RowCodec = memo.codec
        dataplane = self.services.dataplane
        try:
            decoded = codec.decode(exchange.body)
        except SalverError as error:
            dataplane.refuse(model, error, started_s)
            raise
        exchange.body = b""

        def encode(outputs: dict[str, Array]) -> None:
            exchange.respond(codec.encode(decoded, outputs))

        dataplane.infer(exchange, model, decoded.inputs, decoded.rows, encode, started_s)

    def _examples(self, exchange: Exchange, named: _Named, result: Result) -> None:
        started_s = exchange.started_s
        model = find_model(self.services.engine, *named(exchange))
        signature = model.signature
        dataplane = self.services.dataplane
        try:
            request: _Examples = self.services.read_json(exchange.body, _Examples)
            exchange.body = b""
            check_signature_name(request.signature_name)
            rows = unwrap_rows(to_rows(request.examples, request.context, signature), signature)
            inputs, size = to_arrays(rows, signature, self._limits.max_string_bytes)
        except SalverError as error:
            dataplane.refuse(model, error, started_s)
            raise

        def encode(outputs: dict[str, Array]) -> None:
            exchange.respond(jsonio.encode({"results": result(outputs, signature, size)}))

        dataplane.infer(exchange, model, inputs, size, encode, started_s)

    def _explain(self, exchange: Exchange, named: _Named) -> None:
        model = find_model(self.services.engine, *named(exchange))
        raise Unimplemented(f"model '{model.name}' has no explainer; ask for predictions with :predict")


_Params = tuple[str, str | None, str | None]
_Named = Callable[[Exchange], _Params]


def _plain(exchange: Exchange) -> _Params:
    return exchange.match.params[0], None, None


def _by_version(exchange: Exchange) -> _Params:
    name, version = exchange.match.params
    return name, version, None


def _by_label(exchange: Exchange) -> _Params:
    name, label = exchange.match.params
    return name, None, label


_PREDICT: Final = {
    "type": "object",
    "description": "one of instances (rows) and inputs (columns)",
    "properties": {
        "instances": {"type": "array", "minItems": 1, "items": {}},
        "inputs": {},
        "signature_name": {"const": SIGNATURE_NAME},
    },
}
