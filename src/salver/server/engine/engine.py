"""The engine in real time: models by name and version, each with its own scheduler and lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from salver.core.errors import AlreadyExists, NotFound, Unavailable
from salver.server.engine.base import Engine, InferRequest, ServedModel
from salver.server.engine.marks import Marks
from salver.server.engine.memory import give_back
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
        self._models: dict[tuple[str, str], Servable] = {}
        self._found: dict[tuple[str, str | None], Servable] = {}
        self.revision = object()
        self._retiring: set[Servable] = set()
        self.labels: dict[str, dict[str, str]] = {}
        """Model -> label -> version; who changes it calls `refresh`."""
        self.absent: dict[str, str] = {}
        """Models that are known and of which no version is loaded, and why."""
        self.marks: Marks | None = None
        """Where it is noted what runs; None for nowhere."""
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
        model = LoadedModel(name, version, self.metrics, self.refresh)
        self._models[name, version] = model
        self.refresh()
        return model

    def put(self, model: Servable) -> Servable | None:
        """Let a model stand for its name and version from now on.

        Returns:
            The one that did so far, for the caller to `retire`; None where there was none.
        """
        key = model.name, model.version
        old = self._models.get(key)
        self._models[key] = model
        self.refresh()
        if old is None or old is model:
            return None
        self._retiring.add(old)
        return old

    async def retire(self, model: Servable, timeout_s: float) -> None:
        """Take a model out of service: what it has taken is answered, within ``timeout_s``; then it is freed."""
        model.required = False
        self._retiring.add(model)
        if self._models.get((model.name, model.version)) is model:
            model.state, model.reason = "UNLOADING", "unloading"
            self.refresh()
        model.drain()
        await wait_idle((model,), timeout_s)
        model.close()
        self._retiring.discard(model)
        if self._models.get((model.name, model.version)) is model:
            del self._models[model.name, model.version]
        self.metrics.forget(model)
        self.refresh()
        await asyncio.to_thread(give_back)

    def refresh(self) -> None:
        """Models, their states or labels have changed."""
        self._found.clear()
        self.revision = object()
        for model in tuple(self._models.values()):
            model.follow()

    def find(self, name: str, version: str | None = None) -> Servable:
        model = self._found.get((name, version))
        if model is None:
            model = self._found[name, version] = self._choose(name, version)
        return model

    def _choose(self, name: str, version: str | None) -> Servable:
        versions = [model for model in self._models.values() if model.name == name]
        if not versions:
            if name in self.absent:
                raise Unavailable(f"model '{name}' is not loaded: {self.absent[name]}")
            names = ", ".join(sorted({f"'{model.name}'" for model in self._models.values()})) or "none"
            raise NotFound(f"no model '{name}'; served: {names}")
        labels = self.labels.get(name, {})
        number = labels.get(version, version) if version else version
        fitting = [model for model in versions if number in (None, "", model.version)]
        if not fitting:
            served = ", ".join(sorted((model.version for model in versions), key=_order))
            more = f"; labels: {', '.join(sorted(labels))}" if labels else ""
            raise NotFound(f"model '{name}' has no version '{version}'; served: {served}{more}")
        ready = [model for model in fitting if model.state == "READY"]
        if not ready:
            raise max(fitting, key=lambda model: _order(model.version)).unavailable()
        return max(ready, key=lambda model: _order(model.version))

    def models(self) -> Sequence[ServedModel]:
        return tuple(self._models.values())

    def submit(self, model: ServedModel, request: InferRequest) -> None:
        model.submit(request)

    def cancel(self, model: ServedModel, request: InferRequest) -> None:
        model.cancel(request)

    @property
    def ready(self) -> bool:
        needed = (model for model in self._models.values() if model.required)
        return not self.loading and not self._draining and all(model.state == "READY" for model in needed)

    def announce_drain(self) -> None:
        """Not ready any more, so that balancers look elsewhere; requests are still taken."""
        self._draining = True

    async def drain(self, timeout_s: float) -> bool:
        """Take no new requests, and wait until all that were taken have been answered.

        Returns:
            False when some were still open after ``timeout_s``.
        """
        self._draining = True
        until = asyncio.get_running_loop().time() + timeout_s
        models = self._all()
        for depth in sorted({model.depth for model in models}, reverse=True):  # pipelines before their steps
            level = [model for model in models if model.depth == depth]
            for model in level:
                model.drain()
            if not await wait_idle(level, until - asyncio.get_running_loop().time()):
                return False
        return True

    def close(self) -> bool:
        """Refuse what is still open and free all models.

        Returns:
            False when a run still goes on, which cannot be interrupted: the process must end without waiting for it.
        """
        self._draining = True
        ended = [model.close() for model in self._all()]
        return all(ended)

    def _all(self) -> list[Servable]:
        return list({*self._models.values(), *self._retiring})


async def wait_idle(models: Sequence[Servable], timeout_s: float) -> bool:
    """Wait until nothing waits or runs; False when something still did after ``timeout_s``."""
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    while not all(model.idle for model in models):
        if loop.time() >= until:
            return False
        await asyncio.sleep(_POLL_S)
    return True


def _order(version: str) -> tuple[int, str]:
    """Versions are numbers; anything else sorts before them."""
    return (int(version), "") if version.isdecimal() else (-1, version)


def unready(models: Iterable[ServedModel]) -> list[str]:
    """One line for each model that is not ready, saying why."""
    return [f"'{m.name}' version {m.version}: {m.reason}" for m in models if m.state != "READY"]
