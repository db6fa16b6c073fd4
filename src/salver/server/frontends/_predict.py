"""``POST /predict``: rows in, predictions out, for people with curl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec

from salver.core.arrays import Array
from salver.core.errors import SalverError
from salver.server.engine.base import ServedModel
from salver.server.frontends.base import Frontend, Route, find_only
from salver.server.frontends.http.exchange import Exchange
from salver.server.frontends.instances import example_instance, to_inputs, to_predictions
from salver.server.frontends.oip.openapi import operation
from salver.wire import jsonio
from salver.wire.elements import decode_text

_FILES: Final = (b"image/", b"application/octet-stream")


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

    def _read(self, exchange: Exchange, model: ServedModel) -> list[Any]:
        """The rows of a request; a file, for a model that takes one, is a row itself."""
        inputs = model.signature.inputs
        is_file = exchange.fields.get(b"content-type", b"").lower().startswith(_FILES)
        if is_file and len(inputs) == 1 and inputs[0].binary:
            return [decode_text(exchange.body, 0, "request", binary=True)]
        request: _Request = self.services.read_json(exchange.body, _Request)
        return request.instances

    def _predict(self, exchange: Exchange) -> None:
        started_s = exchange.started_s
        engine, dataplane = self.services.engine, self.services.dataplane
        params = exchange.match.params
        model = engine.find(params[0]) if params else find_only(engine, "/predict")
        try:
            rows = self._read(exchange, model)
            exchange.body = b""
            inputs = to_inputs(rows, model.signature, self.services.settings.max_string_bytes)
            size = model.signature.check(inputs)
        except SalverError as error:
            dataplane.refuse(model, error, started_s)
            raise

        def encode(result: dict[str, Array]) -> None:
            predictions = to_predictions(result, model.signature, len(rows))
            exchange.respond(jsonio.encode({"predictions": predictions}))

        dataplane.infer(exchange, model, inputs, size, encode, started_s)


def _describe(model: ServedModel) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["instances"],
        "properties": {"instances": {"type": "array", "minItems": 1, "items": {}}},
    }
    answer = {"type": "object", "properties": {"predictions": {"type": "array", "items": {}}}}
    example = example_instance(model.signature)
    shown = None if example is None else {"instances": [example]}
    return operation("Predict rows", model.name, (schema, shown), (answer, None))
