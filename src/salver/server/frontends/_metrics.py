"""``GET /metrics``: what the server counted, for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from salver.core.errors import SalverError
from salver.server.engine.base import ServedModel
from salver.server.frontends.base import Frontend, Observed, Route
from salver.server.frontends.http.exchange import Exchange

_TEXT: Final = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"


class MetricsFrontend(Frontend):
    """The Prometheus text format, version 0.0.4."""

    name = "metrics"

    def routes(self) -> Sequence[Route]:
        return (Route("GET", "/metrics", self._render, "metrics"),)

    def openapi(self, models: Sequence[ServedModel]) -> dict[str, Any]:
        ok = {"description": "Prometheus text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
        return {"/metrics": {"get": {"summary": "Metrics", "tags": ["server"], "responses": {"200": ok}}}}

    def _render(self, exchange: Exchange) -> None:
        def show(observed: Observed | SalverError) -> None:
            if isinstance(observed, SalverError):
                raise observed
            exchange.respond(observed.render(), _TEXT)

        self.services.metrics.collect(lambda observed: exchange.attempt(show, observed))
