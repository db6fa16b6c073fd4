"""What there is, and how it does, over gRPC: health, metadata, configuration and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf import json_format

from salver import __version__
from salver.core.errors import NotFound, SalverError, Unavailable
from salver.core.tensors import TensorSpec
from salver.server.frontends.base import Method, Observed, Services, find_all, find_any
from salver.server.frontends.grpc.call import Call
from salver.server.frontends.oip.extensions import list_extensions
from salver.server.frontends.oip.model_config import describe_config
from salver.server.frontends.oip.protos import OIP, PREFIX, parser, unary

_ServerLive: Final = OIP.message("inference.ServerLiveResponse")
_ServerReady: Final = OIP.message("inference.ServerReadyResponse")
_ModelReady: Final = OIP.message("inference.ModelReadyResponse")
_ServerMetadata: Final = OIP.message("inference.ServerMetadataResponse")
_ModelMetadata: Final = OIP.message("inference.ModelMetadataResponse")
_ModelConfig: Final = OIP.message("inference.ModelConfigResponse")
_ModelStatistics: Final = OIP.message("inference.ModelStatisticsResponse")


class MetadataMethods:
    """``ServerLive`` to ``ModelStatistics``."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._metrics = services.metrics
        self._parse_statistics = parser("ModelStatisticsRequest")
        self._extensions = list_extensions(services.settings.shared_memory)

    def methods(self) -> Sequence[Method]:
        """All of them."""
        return (
            unary("ServerLive", self._live, "open"),
            unary("ServerReady", self._ready, "open"),
            unary("ModelReady", self._model_ready, "open"),
            unary("ServerMetadata", self._server, "open"),
            unary("ModelMetadata", self._model, "metadata"),
            unary("ModelConfig", self._config, "metadata"),
            Method(f"{PREFIX}ModelStatistics", self._statistics, "metadata"),
        )

    def _live(self, request: Any, call: Call) -> Any:
        return _ServerLive(live=True)

    def _ready(self, request: Any, call: Call) -> Any:
        return _ServerReady(ready=self._engine.ready)

    def _model_ready(self, request: Any, call: Call) -> Any:
        """As Triton's: a model that is not there is not ready, which is no error."""
        try:
            self._engine.find(request.name, request.version or None)
        except (NotFound, Unavailable):
            return _ModelReady(ready=False)
        return _ModelReady(ready=True)

    def _server(self, request: Any, call: Call) -> Any:
        return _ServerMetadata(name="salver", version=__version__, extensions=self._extensions)

    def _model(self, request: Any, call: Call) -> Any:
        model = find_any(self._engine, request.name, request.version or None)
        return _ModelMetadata(
            name=model.name,
            versions=[other.version for other in self._engine.models() if other.name == model.name],
            platform=model.platform,
            inputs=[_tensor(spec) for spec in model.signature.inputs],
            outputs=[_tensor(spec) for spec in model.signature.outputs],
        )

    def _config(self, request: Any, call: Call) -> Any:
        model = find_any(self._engine, request.name, request.version or None)
        return json_format.ParseDict({"config": describe_config(model)}, _ModelConfig(), descriptor_pool=OIP.pool)

    def _statistics(self, call: Call) -> None:
        request = self._parse_statistics(call.message)
        named = request.name, request.version or None
        models = find_all(self._engine, *named) if request.name else self._engine.models()

        def show(observed: Observed | SalverError) -> None:
            if isinstance(observed, SalverError):
                raise observed
            entries = [observed.statistics(model) for model in models]
            for entry in entries:
                del entry["salver"]  # the message has no place for it
            described = {"model_stats": entries}
            answer = json_format.ParseDict(described, _ModelStatistics(), descriptor_pool=OIP.pool)
            call.respond(answer.SerializeToString())

        self._metrics.collect(lambda observed: call.attempt(show, observed))


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.wire_shape}
