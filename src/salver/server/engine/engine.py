"""The engine in real time: models by name and version, each with its own scheduler and lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from salver.core.errors import AlreadyExists, NotFound, Unavailable
from salver.server.engine.base import Engine, InferRequest, ServedModel
from salver.server.engine.servable import Servable
from salver.server.engine.served import LoadedModel
from salver.server.monitoring.metrics import Metrics

_POLL_S = 0.005


class RealTimeEngine(Engine):
    """Serves `LoadedModel`s on the running event loop.

    Args:
        metrics: where requests are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        metrics.models = self.models
        self._models: dict[tuple[str, str], LoadedModel] = {}
        self._found: dict[tuple[str, str | None], LoadedModel] = {}
        self._draining = False
        self.loading = False
        """Whether more models are on their way, which perhaps have no name yet; not ready before they are there."""

    def add(self, name: str, version: str) -> LoadedModel:
        """Announce a model, in state LOADING.

        Raises:
            AlreadyExists: the name and version are taken.
        """
        if (name, version) in self._models:
            raise AlreadyExists(f"model '{name}' version {version} is served already; give one another name or version")
        model = LoadedModel(name, version, self.metrics, self._found.clear)
        self._models[name, version] = model
        return model

    def find(self, name: str, version: str | None = None) -> ServedModel:
        model = self._found.get((name, version))
        if model is None:
            model = self._found[name, version] = self._choose(name, version)
        return model

    def _choose(self, name: str, version: str | None) -> LoadedModel:
        versions = [model for model in self._models.values() if model.name == name]
        if not versions:
            names = ", ".join(sorted({f"'{model.name}'" for model in self._models.values()})) or "none"
            raise NotFound(f"no model '{name}'; served: {names}")
        fitting = [model for model in versions if version in (None, "", model.version)]
        if not fitting:
            served = ", ".join(sorted((model.version for model in versions), key=_order))
            raise NotFound(f"model '{name}' has no version '{version}'; served: {served}")
        ready = [model for model in fitting if model.state == "READY"]
        if not ready:
            raise max(fitting, key=lambda model: _order(model.version)).unavailable()
        return max(ready, key=lambda model: _order(model.version))

    def models(self) -> Sequence[ServedModel]:
        return tuple(self._models.values())

    def submit(self, model: ServedModel, request: InferRequest) -> None:
        self._own(model).submit(request)

    def cancel(self, model: ServedModel, request: InferRequest) -> None:
        self._own(model).cancel(request)

    @staticmethod
    def _own(model: ServedModel) -> Servable:
        if not isinstance(model, Servable):
            raise Unavailable(f"model '{model.name}' belongs to another engine")
        return model

    @property
    def ready(self) -> bool:
        models = self._models.values()
        return (
            bool(models) and not self.loading and not self._draining and all(model.state == "READY" for model in models)
        )

    def announce_drain(self) -> None:
        """Not ready any more, so that balancers look elsewhere; requests are still taken."""
        self._draining = True

    async def drain(self, timeout_s: float) -> bool:
        """Take no new requests, and wait until all that were taken have been answered.

        Returns:
            False when some were still open after ``timeout_s``.
        """
        self._draining = True
        for model in self._models.values():
            model.drain()
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while not all(model.idle for model in self._models.values()):
            if loop.time() >= until:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def close(self) -> bool:
        """Refuse what is still open and free all models.

        Returns:
            False when a run still goes on, which cannot be interrupted: the process must end without waiting for it.
        """
        self._draining = True
        ended = [model.close() for model in self._models.values()]
        return all(ended)


def _order(version: str) -> tuple[int, str]:
    """Versions are numbers; anything else sorts before them."""
    return (int(version), "") if version.isdecimal() else (-1, version)


def unready(models: Iterable[ServedModel]) -> list[str]:
    """One line for each model that is not ready, saying why."""
    return [f"'{m.name}' version {m.version}: {m.reason}" for m in models if m.state != "READY"]
