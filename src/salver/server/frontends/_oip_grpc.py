"""Open Inference Protocol v2 over gRPC: ``inference.GRPCInferenceService``, with Triton's extensions. The methods stand
in ``oip/grpc_*.py``. Specification: https://github.com/kserve/open-inference-protocol (inference_grpc.md)."""

from __future__ import annotations

from collections.abc import Sequence

from salver.server.frontends.base import Frontend, Method, Services
from salver.server.frontends.oip.grpc_infer import InferMethods
from salver.server.frontends.oip.grpc_metadata import MetadataMethods
from salver.server.frontends.oip.grpc_repository import RepositoryMethods
from salver.server.frontends.oip.grpc_settings import SettingsMethods
from salver.server.frontends.oip.grpc_shared_memory import SharedMemoryMethods
from salver.server.frontends.oip.protos import OIP
from salver.wire.protos import ProtoSet


class OipGrpcFrontend(Frontend):
    """Health, metadata, inference, streams, configuration, statistics, repository, shared memory and settings."""

    name = "oip-grpc"

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._parts = (
            InferMethods(services),
            MetadataMethods(services),
            RepositoryMethods(services),
            SharedMemoryMethods(services),
            SettingsMethods(services),
        )

    def methods(self) -> Sequence[Method]:
        return tuple(method for part in self._parts for method in part.methods())

    def protos(self) -> Sequence[ProtoSet]:
        return (OIP,)
