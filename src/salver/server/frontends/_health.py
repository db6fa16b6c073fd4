"""The gRPC health checking protocol, ``grpc.health.v1.Health``: what Kubernetes probes and load balancers ask.

Specification: https://github.com/grpc/grpc/blob/master/doc/health-checking.md. Services are the server as a whole (the
empty name), every gRPC service it answers, and every model by its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from google.protobuf.message import DecodeError

from salver.core.errors import InvalidArgument, NotFound, Unavailable
from salver.server.frontends.base import Frontend, Method, Services
from salver.server.frontends.grpc.call import Call
from salver.wire.protos import ProtoSet

_HEALTH: Final = ProtoSet("health")
_PREFIX: Final = "/grpc.health.v1.Health/"
_Request: Final = _HEALTH.message("grpc.health.v1.HealthCheckRequest")
_Response: Final = _HEALTH.message("grpc.health.v1.HealthCheckResponse")
_List: Final = _HEALTH.message("grpc.health.v1.HealthListResponse")
_POLL_S: Final = 0.2


class HealthFrontend(Frontend):
    """``Check``, ``List`` and ``Watch``."""

    name = "health"

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._engine = services.engine
        self._watches: dict[Call, tuple[str, str]] = {}
        """Watching call -> service and the status it was told last."""
        self._timer: asyncio.TimerHandle | None = None

    def methods(self) -> Sequence[Method]:
        return (
            Method(f"{_PREFIX}Check", self._check, "open"),
            Method(f"{_PREFIX}List", self._list, "metadata"),
            Method(f"{_PREFIX}Watch", self._watch, "open", streaming=True),
        )

    def protos(self) -> Sequence[ProtoSet]:
        return (_HEALTH,)

    def _check(self, call: Call) -> None:
        service = _service(call.message)
        status = self._status(service)
        if status == "SERVICE_UNKNOWN":
            raise NotFound(f"no service or model '{service}'; the empty name stands for the server")
        call.respond(_Response(status=status).SerializeToString())

    def _list(self, call: Call) -> None:
        statuses = {name: {"status": self._status(name)} for name in self._names()}
        call.respond(_List(statuses=statuses).SerializeToString())

    def _watch(self, call: Call) -> None:
        call.on_message = lambda message: self._begin(call, message)
        call.cancel = lambda: self._watches.pop(call, None) and None

    def _begin(self, call: Call, message: bytes) -> None:
        service = _service(message)
        if call in self._watches:
            raise InvalidArgument("a watch is for one service; open another for another")
        status = self._status(service)
        self._watches[call] = service, status
        call.send(_Response(status=status).SerializeToString())
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_POLL_S, self._poll)

    def _poll(self) -> None:
        """Tell those who watch what changed; goes on while there are any."""
        self._timer = None
        statuses = {service: self._status(service) for service in {service for service, _ in self._watches.values()}}
        for call, (service, told) in list(self._watches.items()):
            status = statuses[service]
            if call.code:
                self._watches.pop(call, None)
            elif status != told:
                self._watches[call] = service, status
                call.send(_Response(status=status).SerializeToString())
        if self._watches:
            self._timer = asyncio.get_running_loop().call_later(_POLL_S, self._poll)

    def _names(self) -> list[str]:
        sets = [proto for frontend in self.services.frontends for proto in frontend.protos()]
        services = [name for proto in sets for name in proto.services]
        return ["", *services, *dict.fromkeys(model.name for model in self._engine.models())]

    def _status(self, service: str) -> str:
        if service not in self._names():
            return "SERVICE_UNKNOWN"
        if any(model.name == service for model in self._engine.models()):
            try:
                self._engine.find(service)
            except (NotFound, Unavailable):
                return "NOT_SERVING"
            return "SERVING"
        return "SERVING" if self._engine.ready else "NOT_SERVING"


def _service(message: bytes) -> str:
    try:
        return str(_Request.FromString(message).service)
    except DecodeError:
        raise InvalidArgument("not a valid HealthCheckRequest") from None
