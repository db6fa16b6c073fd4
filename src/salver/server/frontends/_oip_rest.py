"""Open Inference Protocol v2 over REST, with Triton's extensions; those with routes of their own stand in
``oip/rest_*.py``. Specification: https://github.com/kserve/open-inference-protocol (inference_rest.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from salver import __version__
from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, NotFound, SalverError, Unavailable
from salver.core.tensors import TensorSpec
from salver.server.engine.base import ServedModel
from salver.server.frontends.access import Peer
from salver.server.frontends.base import Frontend, Observed, Route, Services, find_all, find_any
from salver.server.frontends.http.exchange import BINARY, JSON, Exchange, Match
from salver.server.frontends.lookup import Lookup
from salver.server.frontends.oip.codec import ModelCodec
from salver.server.frontends.oip.extensions import list_extensions
from salver.server.frontends.oip.messages import CodecLimits
from salver.server.frontends.oip.model_config import describe_config
from salver.server.frontends.oip.openapi import describe_model, describe_server
from salver.server.frontends.oip.rest_generate import GenerateRoutes
from salver.server.frontends.oip.rest_repository import RepositoryRoutes
from salver.server.frontends.oip.rest_settings import SettingsRoutes
from salver.server.frontends.oip.rest_shared_memory import SharedMemoryRoutes
from salver.wire import jsonio

_LIVE: Final = b'{"live":true}'
_READY: Final = b'{"ready":true}'
_NOBODY: Final = Peer()
_HEADER_LENGTH: Final = b"inference-header-content-length"
_UNTOLD: Final = object()
"""The revision of an engine that tells none: it equals no other, so that a model is found anew each time."""

_MAX_LENGTHS: Final = 256
"""Lengths of a request's or answer's JSON that are worked out once."""


class _Memo:
    """What is worked out once for a path: the model it named last, at which revision of the engine, and its codec."""

    __slots__ = ("codec", "model", "revision")

    def __init__(self, model: ServedModel, codec: ModelCodec) -> None:
        self.model = model
        self.codec = codec
        self.revision: object = None


class OipRestFrontend(Frontend):
    """``/v2/...``: health, metadata, infer, statistics, configuration, and the extensions with routes of their own."""

    name = "oip-rest"

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._engine = services.engine
        self._metrics = services.metrics
        self._dataplane = services.dataplane
        self._shares_memory = bool(services.settings.shared_memory)
        self._limits = CodecLimits(
            max_json_depth=services.settings.max_json_depth, max_string_bytes=services.settings.max_string_bytes
        )
        extensions = list_extensions(services.settings.shared_memory)
        self._about = jsonio.encode({"name": "salver", "version": __version__, "extensions": extensions})
        self._parts = (
            RepositoryRoutes(services),
            GenerateRoutes(services),
            SettingsRoutes(services),
            SharedMemoryRoutes(services),
        )

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
            *(Route("GET", f"{path}/config", self._config, "metadata") for path in (one, version)),
            *(Route("POST", f"{path}/infer", self._infer, "infer") for path in (one, version)),
            *(route for part in self._parts for route in part.routes()),
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
            states = Counter(model.state for model in self._engine.models() if model.state != "READY")
            waiting = ", ".join(f"models {state}: {count}" for state, count in sorted(states.items()))
            raise Unavailable(f"the server is not ready: {waiting or 'it is starting or draining'}")
        exchange.respond(_READY)

    def _server(self, exchange: Exchange) -> None:
        exchange.respond(self._about)

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
        name, version = _named(exchange)
        which = f"model '{name}' version '{version}'" if version else f"model '{name}'"
        try:
            self._engine.find(name, version)
        except NotFound:  # what else there is, and why this is not ready, is not for everybody
            raise NotFound(f"{which} is not served") from None
        except Unavailable:
            raise Unavailable(f"{which} is not ready; /v2/repository/index says why") from None
        exchange.respond(jsonio.encode({"name": name, "ready": True}))

    def _config(self, exchange: Exchange) -> None:
        exchange.respond(jsonio.encode(describe_config(find_any(self._engine, *_named(exchange)))))

    def _all_stats(self, exchange: Exchange) -> None:
        self._answer_stats(exchange, self._engine.models())

    def _stats(self, exchange: Exchange) -> None:
        self._answer_stats(exchange, find_all(self._engine, *_named(exchange)))

    def _answer_stats(self, exchange: Exchange, models: Sequence[ServedModel]) -> None:
        def show(observed: Observed | SalverError) -> None:
            if isinstance(observed, SalverError):
                raise observed
            exchange.respond(msgspec.json.encode({"model_stats": [observed.statistics(m) for m in models]}))

        self._metrics.collect(lambda observed: exchange.attempt(show, observed))

    # Inference

    def _infer(self, exchange: Exchange) -> None:
        started_s = exchange.started_s
        memo = exchange.match.memo
        if memo is None or memo.revision is not self._engine.revision:
            memo = self._find(exchange.match)
        model, codec = memo.model, memo.codec
        peer = exchange.peer if self._shares_memory else _NOBODY
        try:
            header_length = _HEADER_LENGTHS[exchange.fields.get(_HEADER_LENGTH)]
            decoded = codec.decode(exchange.body, header_length, peer)
            exchange.body = b""
            wishes = decoded.wishes
            outputs = None if wishes is None or wishes is codec.all_binary else codec.output_names(wishes)
        except SalverError as error:
            self._dataplane.refuse(model, error, started_s)
            raise

        def encode(result: dict[str, Array]) -> None:
            body, header_length = codec.encode(decoded, result, peer)
            exchange.respond(body, _FIELDS[header_length])

        self._dataplane.infer(
            exchange, model, decoded.inputs, decoded.rows, encode, started_s, outputs, decoded.parameters
        )

    def _find(self, match: Match) -> _Memo:
        model = self._engine.find(*match.params)
        memo: _Memo | None = match.memo
        if memo is None or memo.model is not model:
            memory = self.services.shared_memory
            codec = ModelCodec(model.name, model.version, model.signature, memory, self._limits)
            memo = match.memo = _Memo(model, codec)
        memo.revision = self._engine.revision or _UNTOLD
        return memo


def _named(exchange: Exchange) -> tuple[str, str | None]:
    name, version = (*exchange.match.params, None)[:2]
    return str(name), version


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    described: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": spec.wire_shape}
    if spec.labels:
        described["parameters"] = {"labels": spec.labels}
    return described


def answer_fields(header_length: int | None) -> bytes:
    """Header lines of an answer, given the size of the JSON before its tensors; None where all is JSON."""
    if header_length is None:
        return JSON
    return b"%binference-header-content-length: %d\r\n" % (BINARY, header_length)


def read_header_length(text: bytes | None) -> int | None:
    """The value of ``Inference-Header-Content-Length``; None where a request has no such field."""
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        shown = text[:50].decode("latin-1")
        raise InvalidArgument(f"Inference-Header-Content-Length is '{shown}', expected a number of bytes")
    return int(text)


_FIELDS: Final = Lookup(answer_fields, _MAX_LENGTHS)
_HEADER_LENGTHS: Final = Lookup(read_header_length, _MAX_LENGTHS)
