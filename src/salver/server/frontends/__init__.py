"""Wire protocols: bytes in, engine requests out, and back."""

from __future__ import annotations

from typing import Final

from salver.core.registry import Family
from salver.server.frontends.base import Frontend, HttpSettings, Metrics, Route, Services

BUILTIN: Final = {
    "oip-rest": "salver.server.frontends._oip_rest:OipRestFrontend",
    "oip-grpc": "salver.server.frontends._oip_grpc:OipGrpcFrontend",
    "predict": "salver.server.frontends._predict:PredictFrontend",
    "tfserving-rest": "salver.server.frontends._tfserving_rest:TfservingRestFrontend",
    "tfserving-grpc": "salver.server.frontends._tfserving_grpc:TfservingGrpcFrontend",
    "mlflow": "salver.server.frontends._mlflow:MlflowFrontend",
    "health": "salver.server.frontends._health:HealthFrontend",
    "reflection": "salver.server.frontends._reflection:ReflectionFrontend",
    "metrics": "salver.server.frontends._metrics:MetricsFrontend",
    "docs": "salver.server.frontends._docs:DocsFrontend",
}

GRPC: Final = frozenset({"oip-grpc", "tfserving-grpc", "health", "reflection"})
"""Members that answer over gRPC alone, and need protobuf."""

FRONTENDS: Final[Family[type[Frontend]]] = Family("frontends", BUILTIN)

__all__ = ["BUILTIN", "FRONTENDS", "GRPC", "Frontend", "HttpSettings", "Metrics", "Route", "Services"]
