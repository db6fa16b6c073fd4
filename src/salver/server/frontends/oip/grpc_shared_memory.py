"""Shared memory over gRPC: the ``SystemSharedMemory`` methods, and what is said of ``CudaSharedMemory``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from salver.core.errors import NotFound, SalverError, Unimplemented
from salver.server.engine.base import Changed
from salver.server.frontends.base import Method, Services
from salver.server.frontends.grpc.call import Call
from salver.server.frontends.oip.protos import OIP, PREFIX, parser, unary

_Status: Final = OIP.message("inference.SystemSharedMemoryStatusResponse")
_CudaStatus: Final = OIP.message("inference.CudaSharedMemoryStatusResponse")
_CudaUnregistered: Final = OIP.message("inference.CudaSharedMemoryUnregisterResponse")


class SharedMemoryMethods:
    """Status, register and unregister, twice. Who may is decided by the shared memory itself: a client of the same
    user, on a Unix socket."""

    def __init__(self, services: Services) -> None:
        self._memory = services.shared_memory
        self._parse_register = parser("SystemSharedMemoryRegisterRequest")
        self._parse_unregister = parser("SystemSharedMemoryUnregisterRequest")

    def methods(self) -> Sequence[Method]:
        """All of them."""
        return (
            unary("SystemSharedMemoryStatus", self._status, "infer"),
            Method(f"{PREFIX}SystemSharedMemoryRegister", self._register, "infer"),
            Method(f"{PREFIX}SystemSharedMemoryUnregister", self._unregister, "infer"),
            unary("CudaSharedMemoryStatus", self._cuda_status, "infer"),
            unary("CudaSharedMemoryRegister", self._cuda_register, "infer"),
            unary("CudaSharedMemoryUnregister", self._cuda_unregister, "infer"),
        )

    def _status(self, request: Any, call: Call) -> Any:
        status = _Status()
        for region in self._memory.status(request.name or None, call.peer):
            described = status.regions[region.name]
            for name, value in msgspec.structs.asdict(region).items():
                setattr(described, name, value)
        return status

    def _register(self, call: Call) -> None:
        asked = self._parse_register(call.message)
        self._memory.register(asked.name, asked.key, asked.offset, asked.byte_size, call.peer, _answer(call))

    def _unregister(self, call: Call) -> None:
        asked = self._parse_unregister(call.message)
        self._memory.unregister(asked.name or None, call.peer, _answer(call))

    def _cuda_status(self, request: Any, call: Call) -> Any:
        if request.name:
            raise NotFound(f"no CUDA shared memory region '{request.name}' is registered")
        return _CudaStatus()

    def _cuda_register(self, request: Any, call: Call) -> Any:
        raise Unimplemented("CUDA shared memory is not supported; use system shared memory, or send data in messages")

    def _cuda_unregister(self, request: Any, call: Call) -> Any:
        return _CudaUnregistered()  # none is registered


def _answer(call: Call) -> Changed:
    def done(error: SalverError | None) -> None:
        if error is None:
            call.respond(b"")  # a message without fields
        else:
            call.fail(error)

    return done
