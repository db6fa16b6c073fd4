"""The model repository over gRPC: index, load and unload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from salver.core.errors import InvalidArgument, SalverError, UnknownName
from salver.server.engine.base import Changed
from salver.server.frontends.base import Method, Services
from salver.server.frontends.grpc.call import Call
from salver.server.frontends.oip.protos import OIP, PREFIX, parser, unary

_Index: Final = OIP.message("inference.RepositoryIndexResponse")
_EMPTY: Final = b""
_FILE: Final = "file:"
_DEPENDENTS: Final = "unload_dependents"


class RepositoryMethods:
    """``RepositoryIndex``, ``RepositoryModelLoad`` and ``RepositoryModelUnload``. There is one repository, whatever its
    name."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._parse_load = parser("RepositoryModelLoadRequest")
        self._parse_unload = parser("RepositoryModelUnloadRequest")

    def methods(self) -> Sequence[Method]:
        """All of them."""
        return (
            unary("RepositoryIndex", self._index, "metadata"),
            Method(f"{PREFIX}RepositoryModelLoad", self._load, "admin"),
            Method(f"{PREFIX}RepositoryModelUnload", self._unload, "admin"),
        )

    def _index(self, request: Any, call: Call) -> Any:
        entries = self._services.engine.repository.index()
        return _Index(
            models=[
                {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
                for entry in entries
                if entry.state == "READY" or not request.ready
            ]
        )

    def _load(self, call: Call) -> None:
        request = self._parse_load(call.message)
        config, files = self._read_load(_plain(request.parameters))
        repository = self._services.engine.repository
        repository.load(request.model_name, _answer(call), config=config, files=files)

    def _read_load(self, parameters: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, bytes] | None]:
        config: dict[str, Any] | None = None
        files: dict[str, bytes] = {}
        for name, value in parameters.items():
            if name == "config" and isinstance(value, str):
                config = self._services.read_json(value.encode(), dict[str, Any], "parameter 'config'")
            elif name.startswith(_FILE) and isinstance(value, bytes):
                files[name.removeprefix(_FILE)] = value
            elif name == "config" or name.startswith(_FILE):
                expected = "a text" if name == "config" else "bytes"
                raise InvalidArgument(f"parameter '{name}' is {type(value).__name__}, expected {expected}")
            else:
                raise UnknownName("parameter of load", name, ["config", "file:<version>/<name>"])
        return config, files or None

    def _unload(self, call: Call) -> None:
        request = self._parse_unload(call.message)
        dependents = _plain(request.parameters).get(_DEPENDENTS, False)
        if not isinstance(dependents, bool):
            raise InvalidArgument(f"parameter '{_DEPENDENTS}' is {dependents!r}, expected true or false")
        self._services.engine.repository.unload(request.model_name, _answer(call), dependents=dependents)


def _plain(parameters: Any) -> dict[str, Any]:
    """A map of ``ModelRepositoryParameter`` as plain values; None for one that has none."""
    choices = {name: parameters[name].WhichOneof("parameter_choice") for name in parameters}
    return {name: choice and getattr(parameters[name], choice) for name, choice in choices.items()}


def _answer(call: Call) -> Changed:
    def done(error: SalverError | None) -> None:
        if error is None:
            call.respond(_EMPTY)
        else:
            call.fail(error)

    return done
