"""MLflow's scoring protocol, version 2 and later: ``/invocations`` and the health checks around it.

Source: https://mlflow.org/docs/latest/deployment/deploy-model-locally (``mlflow.pyfunc.scoring_server``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec

from salver import __version__
from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, SalverError, Unavailable
from salver.core.tensors import Signature
from salver.server.engine.base import ServedModel
from salver.server.frontends.base import Frontend, Route, find_only
from salver.server.frontends.codes import HttpError
from salver.server.frontends.frames import SplitTable, read_csv, read_records, read_split, to_instances
from salver.server.frontends.http.exchange import Exchange
from salver.server.frontends.instances import example_instance, to_inputs, to_plain, to_rows, to_tensors
from salver.server.frontends.oip.openapi import operation
from salver.wire import jsonio

_TEXT: Final = b"content-type: text/plain; charset=utf-8\r\n"
_JSON_TYPES: Final = (b"", b"application/json", b"application/x-www-form-urlencoded")  # the last is what curl -d says


class _Request(msgspec.Struct):
    """One of the four forms. ``params`` are those of a model written in Python, which a graph has none of; other keys
    are left aside, as MLflow does."""

    dataframe_split: SplitTable | None = None
    dataframe_records: list[dict[str, Any]] | None = None
    instances: list[Any] | None = None
    inputs: dict[str, Any] | list[Any] | None = None
    params: dict[str, Any] | None = None


class MlflowFrontend(Frontend):
    """``/invocations`` where one model is served, ``/invocations/{model}`` where there are several."""

    name = "mlflow"

    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", "/ping", self._ping, "open"),
            Route("GET", "/health", self._ping, "open"),
            Route("GET", "/version", self._version, "open"),
            Route("POST", "/invocations", self._invoke, "infer"),
            Route("POST", "/invocations/{model}", self._invoke, "infer"),
        )

    def openapi(self, models: Sequence[ServedModel]) -> dict[str, Any]:
        paths = {f"/invocations/{quote(m.name, safe='')}": {"post": _describe(m)} for m in models}
        if len({m.name for m in models}) == 1:
            paths["/invocations"] = next(iter(paths.values()))
        return paths

    def _ping(self, exchange: Exchange) -> None:
        if not self.services.engine.ready:
            raise Unavailable("the server is not ready")
        exchange.respond(b"\n")

    def _version(self, exchange: Exchange) -> None:
        exchange.respond(__version__.encode(), _TEXT)

    def _invoke(self, exchange: Exchange) -> None:
        started_s = exchange.started_s
        engine, dataplane = self.services.engine, self.services.dataplane
        params = exchange.match.params
        model = engine.find(params[0]) if params else find_only(engine, "/invocations")
        try:
            inputs, is_table = self._read(exchange, model.signature)
            exchange.body = b""
            rows = model.signature.check(inputs)
        except SalverError as error:
            dataplane.refuse(model, error, started_s)
            raise

        def encode(outputs: dict[str, Array]) -> None:
            predictions = to_answer(outputs, model.signature, rows if is_table else None)
            exchange.respond(jsonio.encode({"predictions": predictions}))

        dataplane.infer(exchange, model, inputs, rows, encode, started_s)

    def _read(self, exchange: Exchange, signature: Signature) -> tuple[dict[str, Array], bool]:
        """The arrays, and whether they came as a table."""
        max_bytes = self.services.settings.max_string_bytes
        if _is_csv(exchange.fields.get(b"content-type", b"")):
            return to_inputs(to_instances(read_csv(exchange.body), signature), signature, max_bytes), True
        request = self.services.read_json(exchange.body, _Request)
        forms = [name for name in _Request.__struct_fields__ if name != "params" and getattr(request, name) is not None]
        if len(forms) != 1:
            raise InvalidArgument(
                f"got {' and '.join(forms) or 'no input'}, expected one of dataframe_split, dataframe_records, "
                "instances and inputs"
            )
        if request.instances is not None:
            return to_inputs(request.instances, signature, max_bytes), False
        if isinstance(request.inputs, list) and request.inputs and isinstance(request.inputs[0], dict):
            return to_inputs(request.inputs, signature, max_bytes), False
        if request.inputs is not None:
            return to_tensors(_named(request.inputs, signature), signature, max_bytes), False
        if request.dataframe_split is not None:
            frame = read_split(request.dataframe_split)
        else:
            frame = read_records(request.dataframe_records or [])
        return to_inputs(to_instances(frame, signature), signature, max_bytes), True


def _is_csv(content_type: bytes) -> bool:
    kind, *parameters = (part.strip().lower() for part in content_type.split(b";"))
    charset = next((p.partition(b"=")[2].strip(b'"') for p in parameters if p.startswith(b"charset=")), b"utf-8")
    if charset not in (b"utf-8", b"utf8"):
        raise HttpError(415, f"charset '{charset.decode('latin-1')[:50]}' is not known; send UTF-8")
    if kind != b"text/csv" and kind not in _JSON_TYPES:
        raise HttpError(415, f"Content-Type '{kind.decode('latin-1')[:50]}': expected application/json or text/csv")
    return kind == b"text/csv"


def _named(inputs: dict[str, Any] | list[Any], signature: Signature) -> dict[str, Any]:
    if isinstance(inputs, dict):
        return inputs
    if len(signature.inputs) != 1:
        names = ", ".join(f"'{spec.name}'" for spec in signature.inputs)
        raise InvalidArgument(f"'inputs' is a list, expected an object with the inputs {names}")
    return {signature.inputs[0].name: inputs}


def to_answer(outputs: dict[str, Array], signature: Signature, rows: int | None) -> Any:
    """Predictions in the shapes that MLflow gives: the only output as it is; of several, a record for each row of a
    table, or an object of whole outputs for tensors.

    Args:
        rows: of the table; None where the request was none.

    Raises:
        FailedPrecondition: an output has no value for each row.
    """
    specs = signature.outputs
    if len(specs) == 1:
        return to_plain(outputs[specs[0].name], specs[0])
    if rows is None:
        return {spec.name: to_plain(outputs[spec.name], spec) for spec in specs}
    columns = [to_rows(outputs[spec.name], spec, rows) for spec in specs]
    return [dict(zip(signature.output_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _describe(model: ServedModel) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {
            "dataframe_split": {"type": "object", "required": ["data"]},
            "dataframe_records": {"type": "array", "items": {"type": "object"}},
            "instances": {"type": "array", "items": {}},
            "inputs": {},
            "params": {"type": "object"},
        },
    }
    example = example_instance(model.signature)
    answer = {"type": "object", "properties": {"predictions": {}}}
    shown = None if example is None else {"instances": [example]}
    return operation("Predict, as MLflow's scoring server", model.name, (schema, shown), (answer, None))
