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
from salver.server.engine.base import ServedModel
from salver.server.frontends.base import Frontend, Route
from salver.server.frontends.http.exchange import Exchange
from salver.server.frontends.instances import to_inputs, to_predictions
from salver.server.frontends.oip.openapi import operation, sample
from salver.wire import jsonio

_MAX_SHOWN: Final = 4096


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    instances: list[Any]


class PredictFrontend(Frontend):
    """``/predict`` where one model is served, ``/predict/{model}`` where there are several."""

    name = "predict"

    def routes(self) -> Sequence[Route]:
        return tuple(Route("POST", path, self._predict, "infer") for path in ("/predict", "/predict/{model}"))

    def openapi(self, models: Sequence[ServedModel]) -> dict[str, Any]:
        names = sorted({m.name for m in models})
        paths = {f"/predict/{quote(m.name, safe='')}": {"post": _describe(m)} for m in models}
        if len(names) == 1:
            paths["/predict"] = next(iter(paths.values()))
        return paths

    def _predict(self, exchange: Exchange) -> None:
        started_s = perf_counter()
        engine, dataplane = self.services.engine, self.services.dataplane
        model = engine.find(exchange.match.params[0] if exchange.match.params else self._only_name())
        try:
            rows = jsonio.decode(exchange.body, _Request).instances
            exchange.body = b""
            inputs = to_inputs(rows, model.signature)
            size = model.signature.check(inputs)
        except SalverError as error:
            dataplane.refuse(model, error, started_s)
            raise

        def encode(result: dict[str, Array]) -> None:
            predictions = to_predictions(result, model.signature, len(rows))
            exchange.respond(jsonio.encode({"predictions": predictions}))

        dataplane.infer(exchange, model, inputs, size, encode, started_s)

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
