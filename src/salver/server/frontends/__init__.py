"""Wire protocols: bytes in, engine requests out, and back."""

from __future__ import annotations

from typing import Final

from salver.core.registry import Family
from salver.server.frontends.base import Frontend, HttpSettings, Metrics, Route, Services

BUILTIN: Final = {
    "oip-rest": "salver.server.frontends._oip_rest:OipRestFrontend",
    "predict": "salver.server.frontends._predict:PredictFrontend",
    "metrics": "salver.server.frontends._metrics:MetricsFrontend",
    "docs": "salver.server.frontends._docs:DocsFrontend",
}

FRONTENDS: Final[Family[type[Frontend]]] = Family("frontends", BUILTIN)

__all__ = ["BUILTIN", "FRONTENDS", "Frontend", "HttpSettings", "Metrics", "Route", "Services"]
