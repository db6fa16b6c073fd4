"""The model repository over REST: index, load, unload, and labels that move (an extension of Salver's)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import msgspec

from salver.core.errors import InvalidArgument, SalverError, UnknownName
from salver.server.engine.base import Changed
from salver.server.frontends.base import Route, Services
from salver.server.frontends.http.exchange import Exchange
from salver.wire import jsonio

_FILE = "file:"


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class _LoadRequest(msgspec.Struct):
    parameters: dict[str, Any] | None = None


class _UnloadParameters(msgspec.Struct):
    unload_dependents: bool = False


class _UnloadRequest(msgspec.Struct):
    parameters: _UnloadParameters | None = None


class _LabelRequest(msgspec.Struct, forbid_unknown_fields=True):
    label: str
    version: str | int | None


class RepositoryRoutes:
    """``/v2/repository/...``: Triton's ``model_repository`` extension, and ``/v2/models/{model}/labels``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> Sequence[Route]:
        """All of them."""
        one = "/v2/repository/models/{model}"
        return (
            Route("POST", "/v2/repository/index", self._index, "metadata"),
            Route("POST", f"{one}/load", self._load, "admin"),
            Route("POST", f"{one}/unload", self._unload, "admin"),
            Route("GET", "/v2/models/{model}/labels", self._labels, "metadata"),
            Route("POST", "/v2/models/{model}/labels", self._move_label, "admin"),
        )

    def _index(self, exchange: Exchange) -> None:
        wanted = self._services.read_json(exchange.body or b"{}", _IndexRequest)
        entries = [
            {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
            for entry in self._services.engine.repository.index()
            if entry.state == "READY" or not wanted.ready
        ]
        exchange.respond(jsonio.encode(entries))

    def _load(self, exchange: Exchange) -> None:
        request = self._services.read_json(exchange.body or b"{}", _LoadRequest)
        config, files = self._read_load(request.parameters or {})
        repository = self._services.engine.repository
        repository.load(exchange.match.params[0], _answer(exchange), config=config, files=files)

    def _read_load(self, parameters: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, bytes] | None]:
        config: dict[str, Any] | None = None
        files: dict[str, bytes] = {}
        for name, value in parameters.items():
            if not isinstance(value, str):
                raise InvalidArgument(f"parameter '{name}' is {type(value).__name__}, expected a text")
            if name == "config":
                where = "parameter 'config'"
                config = self._services.read_json(value.encode(), dict[str, Any], where)
            elif name.startswith(_FILE):
                files[name.removeprefix(_FILE)] = _undo_base64(value, name)
            else:
                raise UnknownName("parameter of load", name, ["config", "file:<version>/<name>"])
        return config, files or None

    def _unload(self, exchange: Exchange) -> None:
        request = self._services.read_json(exchange.body or b"{}", _UnloadRequest)
        dependents = request.parameters is not None and request.parameters.unload_dependents
        repository = self._services.engine.repository
        repository.unload(exchange.match.params[0], _answer(exchange), dependents=dependents)

    def _labels(self, exchange: Exchange) -> None:
        exchange.respond(self._show_labels(exchange.match.params[0]))

    def _move_label(self, exchange: Exchange) -> None:
        name = exchange.match.params[0]
        repository = self._services.engine.repository
        repository.labels(name)  # an unknown model is that, whatever the body says
        request = self._services.read_json(exchange.body, _LabelRequest)
        version = None if request.version is None else str(request.version)

        def done(error: SalverError | None) -> None:
            if error is None:
                exchange.respond(self._show_labels(name))
            else:
                exchange.fail(error)

        repository.move_label(name, request.label, version, done)

    def _show_labels(self, name: str) -> bytes:
        return jsonio.encode({"name": name, "labels": dict(self._services.engine.repository.labels(name))})


def _answer(exchange: Exchange) -> Changed:
    def done(error: SalverError | None) -> None:
        if error is None:
            exchange.respond(b"{}")
        else:
            exchange.fail(error)

    return done


def _undo_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(f"parameter '{name[:200]}' is not base64: {error}") from None
