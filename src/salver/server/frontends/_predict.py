"""``POST /predict``: rows in, predictions out, for people with curl."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final
from urllib.parse import quote

import msgspec

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, NotFound, SalverError
from salver.core.tensors import TensorSpec
from salver.server.engine.base import InferRequest, ServedModel, Timing, merge_key
from salver.server.frontends import jsonio
from salver.server.frontends.base import Frontend, Route
from salver.server.frontends.http.exchange import Exchange
from salver.server.frontends.instances import to_inputs, to_predictions
from salver.server.frontends.oip.openapi import operation, sample

_MAX_SHOWN: Final = 4096


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    instances: list[Any]


class PredictFrontend(Frontend):
    """``/predict`` where one model is served, ``/predict/{model}`` where there are several."""

    name = "predict"

    def routes(self) -> Sequence[Route]:
        return (Route("POST", "/predict", self._predict), Route("POST", "/predict/{model}", self._predict))

    def openapi(self, models: Sequence[ServedModel]) -> dict[str, Any]:
        names = sorted({m.name for m in models})
        paths = {f"/predict/{quote(m.name, safe='')}": {"post": _describe(m)} for m in models}
        if len(names) == 1:
            paths["/predict"] = next(iter(paths.values()))
        return paths

    def _predict(self, exchange: Exchange) -> None:
        started_s = perf_counter()
        engine, metrics = self.services.engine, self.services.metrics
        model = engine.find(exchange.match.params[0] if exchange.match.params else self._only_name())
        try:
            rows = jsonio.decode(exchange.body, _Request).instances
            exchange.body = b""
            inputs = to_inputs(rows, model.signature)
            size = model.signature.check(inputs)

            def answer(result: dict[str, Array]) -> None:
                predictions = to_predictions(result, model.signature, len(rows))
                exchange.respond(jsonio.encode({"predictions": predictions}))

            def done(result: dict[str, Array] | SalverError, timing: Timing | None) -> None:
                encode_from_s = perf_counter()
                if isinstance(result, SalverError):
                    exchange.fail(result)
                else:
                    exchange.attempt(answer, result)
                now_s = perf_counter()
                metrics.record(model, exchange.code, timing, now_s - started_s, now_s - encode_from_s)

            request = InferRequest(inputs, size, done, key=merge_key(inputs, None, model.signature))
            exchange.cancel = lambda: engine.cancel(model, request)
            engine.submit(model, request)
        except SalverError as error:
            metrics.record(model, error.code.value, None, perf_counter() - started_s, 0.0)
            raise

    def _only_name(self) -> str:
        names = sorted({model.name for model in self.services.engine.models()})
        if not names:
            raise NotFound("no model is served")
        if len(names) > 1:
            raise InvalidArgument(f"several models are served; use one of {', '.join(f'/predict/{n}' for n in names)}")
        return names[0]


def _describe(model: ServedModel) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["instances"],
        "properties": {"instances": {"type": "array", "minItems": 1, "items": {}}},
    }
    answer = {"type": "object", "properties": {"predictions": {"type": "array", "items": {}}}}
    return operation("Predict rows", model.name, (schema, _example(model)), (answer, None))


def _example(model: ServedModel) -> dict[str, Any] | None:
    rows = {spec.name: _row(spec) for spec in model.signature.inputs}
    if any(row is None for row in rows.values()):
        return None
    return {"instances": [next(iter(rows.values())) if len(rows) == 1 else rows]}


def _row(spec: TensorSpec) -> Any:
    shape = [d if isinstance(d, int) else 1 for d in spec.shape[1:]]
    value = sample(spec)
    count = 1
    for size in reversed([size for size in shape if size != 1]):
        value = [value] * size
        count *= size
    return value if count <= _MAX_SHOWN else None
