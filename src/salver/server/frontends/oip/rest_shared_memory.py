"""Shared memory over REST: Triton's ``system_shared_memory`` extension, and what is said of ``cuda_shared_memory``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from salver.core.errors import NotFound, SalverError, Unimplemented
from salver.server.engine.base import Changed
from salver.server.frontends.base import Route, Services
from salver.server.frontends.http.exchange import Exchange
from salver.wire import jsonio


class _Register(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


class _CudaRegister(msgspec.Struct):
    raw_handle: dict[str, Any]
    device_id: int
    byte_size: int


class SharedMemoryRoutes:
    """``/v2/systemsharedmemory/...`` and ``/v2/cudasharedmemory/...``."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._memory = services.shared_memory

    def routes(self) -> Sequence[Route]:
        """All of them. Who may is decided by the shared memory itself: a client of the same user, on a Unix socket."""
        system, cuda, region = "/v2/systemsharedmemory", "/v2/cudasharedmemory", "/region/{region}"
        return (
            *(Route("GET", f"{system}{part}/status", self._status, "infer") for part in ("", region)),
            *(Route("POST", f"{system}{part}/unregister", self._unregister, "infer") for part in ("", region)),
            Route("POST", f"{system}{region}/register", self._register, "infer"),
            *(Route("GET", f"{cuda}{part}/status", self._cuda_status, "infer") for part in ("", region)),
            *(Route("POST", f"{cuda}{part}/unregister", self._cuda_unregister, "infer") for part in ("", region)),
            Route("POST", f"{cuda}{region}/register", self._cuda_register, "infer"),
        )

    def _status(self, exchange: Exchange) -> None:
        regions = self._memory.status(_region(exchange), exchange.peer)
        exchange.respond(jsonio.ENCODER.encode(regions))

    def _register(self, exchange: Exchange) -> None:
        wanted = self._services.read_json(exchange.body, _Register)
        name = exchange.match.params[0]
        self._memory.register(name, wanted.key, wanted.offset, wanted.byte_size, exchange.peer, _answer(exchange))

    def _unregister(self, exchange: Exchange) -> None:
        self._memory.unregister(_region(exchange), exchange.peer, _answer(exchange))

    def _cuda_status(self, exchange: Exchange) -> None:
        name = _region(exchange)
        if name is not None:
            raise NotFound(f"no CUDA shared memory region '{name}' is registered")
        exchange.respond(b"[]")

    def _cuda_unregister(self, exchange: Exchange) -> None:
        exchange.respond(b"{}")  # none is registered

    def _cuda_register(self, exchange: Exchange) -> None:
        self._services.read_json(exchange.body, _CudaRegister)
        raise Unimplemented("CUDA shared memory is not supported; use system shared memory, or send data in the body")


def _answer(exchange: Exchange) -> Changed:
    def done(error: SalverError | None) -> None:
        if error is None:
            exchange.respond(b"{}")
        else:
            exchange.fail(error)

    return done


def _region(exchange: Exchange) -> str | None:
    return exchange.match.params[0] if exchange.match.params else None
