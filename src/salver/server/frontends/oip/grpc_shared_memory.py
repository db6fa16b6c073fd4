"""Shared memory over gRPC: the ``SystemSharedMemory`` methods, and what is said of ``CudaSharedMemory``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from salver.core.errors import NotFound, Unimplemented
from salver.server.frontends.base import Method, Services
from salver.server.frontends.grpc.call import Call
from salver.server.frontends.oip.protos import OIP, unary

_Status: Final = OIP.message("inference.SystemSharedMemoryStatusResponse")
_Registered: Final = OIP.message("inference.SystemSharedMemoryRegisterResponse")
_Unregistered: Final = OIP.message("inference.SystemSharedMemoryUnregisterResponse")
_CudaStatus: Final = OIP.message("inference.CudaSharedMemoryStatusResponse")
_CudaUnregistered: Final = OIP.message("inference.CudaSharedMemoryUnregisterResponse")


class SharedMemoryMethods:
    """Status, register and unregister, twice. Who may is decided by the shared memory itself: a client of the same
    user, on a Unix socket."""

    def __init__(self, services: Services) -> None:
        self._memory = services.shared_memory

    def methods(self) -> Sequence[Method]:
        """All of them."""
        return (
            unary("SystemSharedMemoryStatus", self._status, "infer"),
            unary("SystemSharedMemoryRegister", self._register, "infer"),
            unary("SystemSharedMemoryUnregister", self._unregister, "infer"),
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

    def _register(self, request: Any, call: Call) -> Any:
        self._memory.register(request.name, request.key, request.offset, request.byte_size, call.peer)
        return _Registered()

    def _unregister(self, request: Any, call: Call) -> Any:
        self._memory.unregister(request.name or None, call.peer)
        return _Unregistered()

    def _cuda_status(self, request: Any, call: Call) -> Any:
        if request.name:
            raise NotFound(f"no CUDA shared memory region '{request.name}' is registered")
        return _CudaStatus()

    def _cuda_register(self, request: Any, call: Call) -> Any:
        raise Unimplemented("CUDA shared memory is not supported; use system shared memory, or send data in messages")

    def _cuda_unregister(self, request: Any, call: Call) -> Any:
        return _CudaUnregistered()  # none is registered
