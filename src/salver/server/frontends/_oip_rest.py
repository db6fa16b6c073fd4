"""Open Inference Protocol v2 over REST, with the binary tensor, classification, statistics and repository index
extensions. Specification: https://github.com/kserve/open-inference-protocol (inference_rest.md)."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final

import msgspec

from salver import __version__
from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, NotFound, SalverError, Unavailable
from salver.core.tensors import TensorSpec
from salver.server.engine.base import ServedModel
from salver.server.frontends.base import Frontend, Route, Services, find_any
from salver.server.frontends.http.exchange import BINARY, JSON, Exchange
from salver.server.frontends.oip.codec import ModelCodec
from salver.server.frontends.oip.openapi import describe_model, describe_server
from salver.wire import jsonio

EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_repository",
    "model_repository_extension",  # Triton's documents use both names
    "statistics",
)
_LIVE: Final = b'{"live":true}'
_READY: Final = b'{"ready":true}'
_HEADER_LENGTH: Final = b"inference-header-content-length"


class _Memo:
    """What is worked out once for a path: the model it named last, and its codec."""

    __slots__ = ("codec", "model")

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.codec = ModelCodec(model.name, model.version, model.signature)


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class OipRestFrontend(Frontend):
    """``/v2/...``: health, metadata, infer, statistics and the repository's index (read-only)."""

    name = "oip-rest"

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._engine = services.engine
        self._metrics = services.metrics
        self._dataplane = services.dataplane

    def routes(self) -> Sequence[Route]:
        one, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        return (
            Route("GET", "/v2", self._server, "open"),
            Route("GET", "/v2/health/live", self._live, "open"),
            Route("GET", "/v2/health/ready", self._ready, "open"),
            Route("GET", "/v2/models/stats", self._all_stats, "metadata"),
            *(Route("GET", path, self._model, "metadata") for path in (one, version)),
            *(Route("GET", f"{path}/ready", self._model_ready, "open") for path in (one, version)),
            *(Route("GET", f"{path}/stats", self._stats, "metadata") for path in (one, version)),
            *(Route("POST", f"{path}/infer", self._infer, "infer") for path in (one, version)),
            Route("POST", "/v2/repository/index", self._index, "metadata"),
        )

    def openapi(self, models: Sequence[ServedModel]) -> dict[str, Any]:
        paths = describe_server()
        for model in models:
            paths |= describe_model(model)
        return paths

    # Health and metadata

    def _live(self, exchange: Exchange) -> None:
        exchange.respond(_LIVE)

    def _ready(self, exchange: Exchange) -> None:
        if not self._engine.ready:
            waiting = [f"'{m.name}' is {m.state}" for m in self._engine.models() if m.state != "READY"]
            raise Unavailable("the server is not ready: " + (", ".join(waiting) or "it is starting or draining"))
        exchange.respond(_READY)

    def _server(self, exchange: Exchange) -> None:
        exchange.respond(jsonio.encode({"name": "salver", "version": __version__, "extensions": EXTENSIONS}))

    def _model(self, exchange: Exchange) -> None:
        model = find_any(self._engine, *_named(exchange))
        versions = [m.version for m in self._engine.models() if m.name == model.name]
        described = {
            "name": model.name,
            "versions": versions,
            "platform": model.platform,
            "inputs": [_tensor(spec) for spec in model.signature.inputs],
            "outputs": [_tensor(spec) for spec in model.signature.outputs],
            "parameters": {"tested": model.tested, "state": model.state, **model.metadata},
        }
        exchange.respond(msgspec.json.encode(described))

    def _model_ready(self, exchange: Exchange) -> None:
        model = self._engine.find(*_named(exchange))
        exchange.respond(jsonio.encode({"name": model.name, "ready": True}))

    def _index(self, exchange: Exchange) -> None:
        wanted = jsonio.decode(exchange.body, _IndexRequest) if exchange.body else _IndexRequest()
        entries = [
            {"name": m.name, "version": m.version, "state": m.state, "reason": m.reason}
            for m in self._engine.models()
            if m.state == "READY" or not wanted.ready
        ]
        exchange.respond(jsonio.encode(entries))

    def _all_stats(self, exchange: Exchange) -> None:
        self._answer_stats(exchange, self._engine.models())

    def _stats(self, exchange: Exchange) -> None:
        name, version = _named(exchange)
        models = [m for m in self._engine.models() if m.name == name and version in (None, m.version)]
        if not models:
            find_any(self._engine, name, version)
            raise NotFound(f"model '{name}' is not served")
        self._answer_stats(exchange, models)

    def _answer_stats(self, exchange: Exchange, models: Sequence[ServedModel]) -> None:
        exchange.respond(jsonio.encode({"model_stats": [self._metrics.statistics(m) for m in models]}))

    # Inference

    def _infer(self, exchange: Exchange) -> None:
        started_s = perf_counter()
        match = exchange.match
        model = self._engine.find(*match.params)
        memo = match.memo
        if memo is None or memo.model is not model:
            memo = match.memo = _Memo(model)
        codec = memo.codec
        try:
            text = exchange.fields.get(_HEADER_LENGTH)
            decoded = codec.decode(exchange.body, None if text is None else _header_length(text))
            exchange.body = b""
            outputs = None if decoded.wishes is None else codec.output_names(decoded.wishes)
        except SalverError as error:
            self._dataplane.refuse(model, error, started_s)
            raise

        def encode(result: dict[str, Array]) -> None:
            body, header_length = codec.encode(decoded, result)
            if header_length is None:
                exchange.respond(body, JSON)
            else:
                exchange.respond(body, b"%binference-header-content-length: %d\r\n" % (BINARY, header_length))

        self._dataplane.infer(
            exchange,
            model,
            decoded.inputs,
            decoded.rows,
            encode,
            started_s,
            outputs=outputs,
            parameters=decoded.parameters,
        )


def _named(exchange: Exchange) -> tuple[str, str | None]:
    name, version = (*exchange.match.params, None)[:2]
    return str(name), version


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    described: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": spec.wire_shape}
    if spec.labels:
        described["parameters"] = {"labels": spec.labels}
    return described


def _header_length(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        shown = text[:50].decode("latin-1")
        raise InvalidArgument(f"Inference-Header-Content-Length is '{shown}', expected a number of bytes")
    return int(text)
