"""Triton's ``generate`` extension: a flat JSON object in and out, whole or as server-sent events.

Keys that name inputs are inputs; all others are parameters of the request, as are the members of ``parameters``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, SalverError
from salver.core.tensors import Signature
from salver.server.engine.base import ServedModel
from salver.server.frontends.base import Route, Services
from salver.server.frontends.http.exchange import Exchange
from salver.server.frontends.instances import to_plain, to_tensors
from salver.wire import jsonio

EVENTS: Final = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"


class GenerateRoutes:
    """``/v2/models/{model}[/versions/{version}]/generate`` and ``/generate_stream``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> Sequence[Route]:
        """All of them."""
        handlers = {"generate": _respond, "generate_stream": _stream}
        return tuple(
            Route("POST", f"/v2/models/{{model}}{version}/{name}", partial(self._generate, answer), "infer")
            for name, answer in handlers.items()
            for version in ("", "/versions/{version}")
        )

    def _generate(self, answer: Callable[[Exchange, bytes], None], exchange: Exchange) -> None:
        started_s = exchange.started_s
        dataplane = self._services.dataplane
        model = self._services.engine.find(*exchange.match.params)
        try:
            request = self._services.read_json(exchange.body, dict[str, Any])
            exchange.body = b""
            values, parameters, id = split_request(request, model.signature)
            inputs = to_tensors(values, model.signature, self._services.settings.max_string_bytes)
            rows = model.signature.check(inputs)
        except SalverError as error:
            dataplane.refuse(model, error, started_s)
            raise

        def encode(outputs: dict[str, Array]) -> None:
            answer(exchange, jsonio.encode(flatten_answer(model, id, outputs)))

        dataplane.infer(exchange, model, inputs, rows, encode, started_s, parameters=parameters)


def _respond(exchange: Exchange, body: bytes) -> None:
    exchange.respond(body)


def _stream(exchange: Exchange, body: bytes) -> None:
    """One event for each answer of the engine, which gives one. As Triton's, an error before the first event is an
    HTTP error."""
    exchange.begin(EVENTS)
    exchange.send(b"data: %b\n\n" % body)
    exchange.end()


def split_request(
    request: Mapping[str, Any], signature: Signature
) -> tuple[dict[str, Any], dict[str, Any], str | int | None]:
    """Inputs, parameters and id of a request.

    Raises:
        InvalidArgument: ``parameters`` is no object, or ``id`` no text, or a key comes twice.
    """
    names = {spec.name for spec in signature.inputs}
    nested = {} if "parameters" in names else request.get("parameters")
    if nested is None:
        nested = {}
    if not isinstance(nested, dict):
        raise InvalidArgument(f"'parameters' is {type(nested).__name__}, expected an object")
    flat = {name: value for name, value in request.items() if name in names or name not in ("id", "parameters")}
    for name in nested:
        if name in flat:
            raise InvalidArgument(f"'{name}' is given twice: in the request and in its 'parameters'")
    flat |= nested
    id = None if "id" in names else request.get("id")
    if not isinstance(id, str | int | None) or isinstance(id, bool):
        raise InvalidArgument(f"'id' is {type(id).__name__}, expected a text or a whole number")
    values = {name: value for name, value in flat.items() if name in names}
    return values, {name: value for name, value in flat.items() if name not in names}, id


def flatten_answer(model: ServedModel, id: str | int | None, outputs: Mapping[str, Array]) -> dict[str, Any]:
    """The answer: an output of one element is that element, another a flat list."""
    answer: dict[str, Any] = {} if id is None else {"id": id}
    answer |= {"model_name": model.name, "model_version": model.version}
    for spec in model.signature.outputs:
        flat = to_plain(outputs[spec.name].reshape(-1), spec)
        answer[spec.name] = flat[0] if len(flat) == 1 else flat
    return answer
