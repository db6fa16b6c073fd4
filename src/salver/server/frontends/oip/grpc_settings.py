"""The server's log and trace settings over gRPC: Triton's ``logging`` and ``trace`` extensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from salver.core.errors import InvalidArgument
from salver.server.frontends.base import Method, Services, find_any
from salver.server.frontends.grpc.call import Call
from salver.server.frontends.oip.protos import OIP, unary
from salver.server.frontends.oip.server_settings import (
    change_log_settings,
    change_trace_settings,
    log_settings,
    trace_settings,
)

_Log: Final = OIP.message("inference.LogSettingsResponse")
_Trace: Final = OIP.message("inference.TraceSettingResponse")


class SettingsMethods:
    """``LogSettings`` and ``TraceSetting``: each reads, and changes what the request names."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine

    def methods(self) -> Sequence[Method]:
        """All of them."""
        return (
            unary("LogSettings", self._log, "admin"),
            unary("TraceSetting", self._trace, "admin"),
        )

    def _log(self, request: Any, call: Call) -> Any:
        changes = {}
        for name in request.settings:
            choice = request.settings[name].WhichOneof("parameter_choice")
            if choice is None:
                raise InvalidArgument(f"log setting '{name}' has no value")
            changes[name] = getattr(request.settings[name], choice)
        response = _Log()
        for name, value in (change_log_settings(changes) if changes else log_settings()).items():
            kind = "bool_param" if type(value) is bool else "uint32_param" if type(value) is int else "string_param"
            setattr(response.settings[name], kind, value)
        return response

    def _trace(self, request: Any, call: Call) -> Any:
        if request.model_name:
            find_any(self._engine, request.model_name, None)
        changes = {name: _trace_value(list(request.settings[name].value)) for name in request.settings}
        response = _Trace()
        for name, value in (change_trace_settings(changes) if changes else trace_settings()).items():
            response.settings[name].value.extend([value] if isinstance(value, str) else value)
        return response


def _trace_value(values: list[str]) -> str | list[str] | None:
    """A setting as REST has it: one text, a list of levels, or None to reset it."""
    if not values:
        return None
    return values[0] if len(values) == 1 and values != ["OFF"] else values
