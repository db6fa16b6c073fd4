"""The server's log and trace settings over REST: Triton's ``logging`` and ``trace`` extensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from salver.server.frontends.base import Route, Services, find_any
from salver.server.frontends.http.exchange import Exchange
from salver.server.frontends.oip.server_settings import (
    change_log_settings,
    change_trace_settings,
    log_settings,
    trace_settings,
)
from salver.wire import jsonio


class SettingsRoutes:
    """``/v2/logging`` and ``/v2[/models/{model}]/trace/setting``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> Sequence[Route]:
        """All of them."""
        traces = ("/v2/trace/setting", "/v2/models/{model}/trace/setting")
        return (
            Route("GET", "/v2/logging", self._log, "metadata"),
            Route("POST", "/v2/logging", self._change_log, "admin"),
            *(Route("GET", path, self._trace, "metadata") for path in traces),
            *(Route("POST", path, self._change_trace, "admin") for path in traces),
        )

    def _log(self, exchange: Exchange) -> None:
        exchange.respond(jsonio.encode(log_settings()))

    def _change_log(self, exchange: Exchange) -> None:
        changes = self._services.read_json(exchange.body, dict[str, Any])
        exchange.respond(jsonio.encode(change_log_settings(changes)))

    def _trace(self, exchange: Exchange) -> None:
        self._check_model(exchange)
        exchange.respond(jsonio.encode(trace_settings()))

    def _change_trace(self, exchange: Exchange) -> None:
        self._check_model(exchange)
        changes = self._services.read_json(exchange.body, dict[str, Any])
        exchange.respond(jsonio.encode(change_trace_settings(changes)))

    def _check_model(self, exchange: Exchange) -> None:
        for name in exchange.match.params:
            find_any(self._services.engine, name, None)
