"""gRPC server reflection, v1 and v1alpha: what grpcurl, Postman and grpcui ask to learn services and their messages.

Specification: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from google.protobuf.message import DecodeError

from salver.core.errors import InvalidArgument
from salver.server.frontends.base import Frontend, Method, Services
from salver.server.frontends.grpc.call import Call
from salver.wire.protos import ProtoSet

_SETS: Final = {version: ProtoSet(f"reflection_{version}") for version in ("v1", "v1alpha")}
_NOT_FOUND: Final = 5
_INVALID_ARGUMENT: Final = 3


class ReflectionFrontend(Frontend):
    """``ServerReflectionInfo``: services by name, and files by name or by what they define. Proto3 has no extensions,
    so that none is ever found."""

    name = "reflection"

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._index: _Index | None = None

    def methods(self) -> Sequence[Method]:
        return tuple(
            Method(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                partial(self._answer, version),
                "metadata",
                streaming=True,
            )
            for version in _SETS
        )

    def protos(self) -> Sequence[ProtoSet]:
        return tuple(_SETS.values())

    def _answer(self, version: str, call: Call) -> None:
        messages = _SETS[version]
        request_type = messages.message(f"grpc.reflection.{version}.ServerReflectionRequest")
        response_type = messages.message(f"grpc.reflection.{version}.ServerReflectionResponse")

        def take(data: bytes) -> None:
            try:
                request = request_type.FromString(data)
            except DecodeError:
                raise InvalidArgument("not a valid ServerReflectionRequest") from None
            response = response_type(valid_host=request.host, original_request=request, **self._find(request))
            call.send(response.SerializeToString())

        call.on_message = take
        call.on_end = call.finish

    def _find(self, request: Any) -> dict[str, Any]:
        """The field of the response that answers, and what is in it."""
        if self._index is None:
            self._index = _Index([proto for frontend in self.services.frontends for proto in frontend.protos()])
        index = self._index
        kind = request.WhichOneof("message_request")
        if kind == "list_services":
            services = [{"name": name} for name in index.services]
            return {"list_services_response": {"service": services}}
        if kind == "file_by_filename":
            return index.describe("file", request.file_by_filename, index.by_name)
        if kind == "file_containing_symbol":
            return index.describe("symbol", request.file_containing_symbol, index.by_symbol)
        if kind == "file_containing_extension":
            wanted = request.file_containing_extension
            return _error(_NOT_FOUND, f"no extension {wanted.extension_number} of '{wanted.containing_type}'")
        if kind == "all_extension_numbers_of_type":
            name = request.all_extension_numbers_of_type
            if name in index.by_symbol:
                return {"all_extension_numbers_response": {"base_type_name": name}}
            return _error(_NOT_FOUND, f"no message '{name}'")
        return _error(_INVALID_ARGUMENT, "the request asks for nothing")


class _Index:
    """Files of several sets, by their names and by what they define, each followed by all it imports, and each of
    those before what it imports itself."""

    def __init__(self, sets: Sequence[ProtoSet]) -> None:
        self.services = sorted({name for proto in sets for name in proto.services})
        self.by_name: dict[str, list[bytes]] = {}
        self.by_symbol: dict[str, list[bytes]] = {}
        for proto in sets:
            for file in proto.files:
                names = _imports(file, {other.name: other for other in proto.files})
                needed = [other.SerializeToString() for other in reversed(proto.files) if other.name in names]
                self.by_name.setdefault(file.name, needed)
                for symbol in _symbols(file):
                    self.by_symbol.setdefault(symbol, needed)

    def describe(self, what: str, name: str, files: dict[str, list[bytes]]) -> dict[str, Any]:
        """A response with a file and those it imports."""
        if name not in files:
            return _error(_NOT_FOUND, f"no {what} '{name}'")
        return {"file_descriptor_response": {"file_descriptor_proto": files[name]}}


def _error(code: int, message: str) -> dict[str, Any]:
    return {"error_response": {"error_code": code, "error_message": message}}


def _imports(file: Any, files: dict[str, Any]) -> list[str]:
    """Names of a file and of all it imports."""
    names = [file.name]
    for name in names:
        names += [other for other in files[name].dependency if other not in names]
    return names


def _symbols(file: Any) -> list[str]:
    """Full names of all that a file defines: messages, fields, oneofs, enums and their values, services and methods."""
    prefix = f"{file.package}." if file.package else ""
    found = []
    for service in file.service:
        found.append(prefix + service.name)
        found += [f"{prefix}{service.name}.{method.name}" for method in service.method]
    messages = [(prefix, message) for message in file.message_type]
    enums = [(prefix, enum) for enum in file.enum_type]
    for scope, message in messages:
        name = scope + message.name
        found.append(name)
        found += [f"{name}.{part.name}" for part in (*message.field, *message.oneof_decl)]
        messages += [(f"{name}.", nested) for nested in message.nested_type]
        enums += [(f"{name}.", enum) for enum in message.enum_type]
    for scope, enum in enums:
        found.append(scope + enum.name)
        found += [scope + value.name for value in enum.value]
    return found
