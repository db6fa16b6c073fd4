"""One model of the repository: its versions in service, and how others take their place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Set
from typing import Any, Final

import msgspec

from salver.core.errors import Internal, InvalidArgument, NotFound, SalverError
from salver.server.engine.config import ModelConfig
from salver.server.engine.declared import check_declared
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.folder import Told, read_folder
from salver.server.engine.loading import describe, taste
from salver.server.engine.pipeline import PipelineModel
from salver.server.engine.repository import FIRST_VERSION, Shelf, shelve
from salver.server.engine.servable import Servable
from salver.server.engine.served import LoadedModel
from salver.server.engine.upload import Upload
from salver.server.settings import ServeSettings

_LOG = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None]], object]
"""Begins work that nobody waits for."""


class Origin(msgspec.Struct, frozen=True, eq=False):
    """Where a model comes from when an administrator said so: another configuration, other files."""

    config: Mapping[str, Any] | None = None
    upload: Upload | None = None

    def close(self) -> None:
        """Remove what was uploaded."""
        if self.upload is not None:
            self.upload.close()


FROM_DISK: Final = Origin()


class _Version(msgspec.Struct, frozen=True, eq=False):
    """A version in service, and what it was made from."""

    model: Servable
    source: object


class ManagedModel:
    """Lives on the event loop. `refresh` and `take_out` are called with `lock` held.

    Args:
        name: under which it is served.
        engine: that serves it.
        settings: of the server.
        slots: how many models may be loaded at the same time.
        spawn: for draining what was replaced.
    """

    def __init__(
        self, name: str, engine: RealTimeEngine, settings: ServeSettings, slots: asyncio.Semaphore, spawn: Spawn
    ) -> None:
        self.name = name
        self.lock = asyncio.Lock()
        self.operations = 0
        """Under way, or waiting for the lock."""
        self.shelf: Shelf | None = None
        """What the sources hold of it; None where they do not."""
        self.seen: object = None
        """The shelf's stamp at the last look of the watch."""
        self.applied: object = None
        """The shelf's stamp when versions were last chosen from it."""
        self.wanted = True
        """False once an administrator has unloaded it."""
        self.required = False
        """Whether it was named at start and has not been ready yet."""
        self.origin = FROM_DISK
        self.versions: dict[str, _Version] = {}
        self.failed: dict[str, tuple[object, SalverError]] = {}
        """Version (empty: all) -> what it would have been made from, and why it is not served."""
        self._labels_told: dict[str, str] = {}
        self._engine = engine
        self._settings = settings
        self._slots = slots
        self._spawn = spawn

    @property
    def loaded(self) -> list[Servable]:
        """Its versions in the engine, in any state."""
        return [m for m in self._engine.models() if m.name == self.name and isinstance(m, Servable)]

    @property
    def steps(self) -> set[str]:
        """Models that it is made of, where it is a pipeline."""
        pipelines = [model.config.pipeline for model in self.loaded if model.config.pipeline is not None]
        return {step.model for pipeline in pipelines for step in pipeline.steps}

    @property
    def labels(self) -> dict[str, str]:
        """Label -> version."""
        return self._engine.labels.get(self.name, {})

    def move_label(self, label: str, version: str | None) -> None:
        """Let a label name another version, or none."""
        labels = self._engine.labels.setdefault(self.name, {})
        if version is None:
            labels.pop(label, None)
        else:
            labels[label] = version
        self._engine.refresh()

    async def read(self, origin: Origin) -> tuple[Shelf, Told]:
        """What is to be served now, and what its folder says.

        Raises:
            SalverError: it cannot be served.
        """
        shelf = self.shelf
        if origin.upload is not None:
            shelf = await asyncio.to_thread(shelve, origin.upload.path, self.name)
        if shelf is None:
            raise NotFound(f"model '{self.name}' is in no source any more")
        if shelf.fault is not None:
            raise shelf.fault
        return shelf, await asyncio.to_thread(read_folder, shelf.origin, self.name, origin.config)

    async def read_steps(self, origin: Origin) -> list[str]:
        """Models that it is to be made of; none where it is no pipeline, or cannot be read."""
        try:
            _, told = await self.read(origin)
        except SalverError:  # `refresh` will meet it too, and say so in its state
            return []
        pipeline = told.config.pipeline
        return [] if pipeline is None else list(dict.fromkeys(step.model for step in pipeline.steps))

    async def refresh(self, origin: Origin, *, again: bool) -> None:
        """Bring what is served in line with the files and the policy. Versions in service answer until their successors
        are ready; where one of those fails, all stay.

        Args:
            origin: where it comes from.
            again: whether versions that failed are tried again though their files did not change.

        Raises:
            SalverError: why a version is not served; the first of them.
        """
        self.wanted = True
        self.applied = None if self.shelf is None else self.shelf.stamp
        try:
            shelf, told = await self.read(origin)
            chosen = self._choose(shelf, told)
        except SalverError as error:
            self.fail(error)
            raise
        self.failed.pop("", None)
        wanted = sorted({*chosen, *self._labelled(shelf, told.config)}, key=int)
        results = [await self._bring(version, shelf, told, again) for version in wanted]
        errors = [result for result in results if result is not None]
        if any(version in self.versions for version in wanted):
            self._take_origin(origin, told.config)
        if errors:
            raise errors[0]
        self.required = False
        self._retire_all_but({*chosen, *self.labels.values()})

    def fail(self, error: SalverError) -> None:
        """No version can be served as things are now; those in service stay."""
        self.failed[""] = (None, error)
        _LOG.error("model '%s' cannot be served: %s", self.name, error.message)
        if not self.versions:
            self._refuse(FIRST_VERSION, error)

    async def take_out(self, reason: str) -> None:
        """Unload all versions; what they have taken is answered first."""
        self.wanted = False
        self.applied = None
        self.required = False
        self.versions.clear()
        self.failed.clear()
        self._engine.absent[self.name] = reason
        self._engine.labels.pop(self.name, None)
        self._labels_told = {}
        await asyncio.gather(*(self._engine.retire(model, self._settings.drain_s) for model in self.loaded))
        self._take_origin(FROM_DISK, ModelConfig())
        _LOG.info("model '%s' is out of service: %s", self.name, reason)

    def _choose(self, shelf: Shelf, told: Told) -> list[str]:
        """The versions that the policy wants, there or not."""
        if told.config.pipeline is not None and shelf.files:
            raise InvalidArgument(f"'{shelf.origin}' is a pipeline and holds a model; a pipeline has only steps")
        there = _versions(shelf, told.config)
        policy = self._settings.versions_of(self.name, told.config, told.asked)
        chosen = [*policy.choose(there), *(version for version in policy.specific if version not in there)]
        if not chosen:
            raise NotFound(f"'{shelf.origin}' holds no version; expected {shelf.origin}/<number>/model.onnx")
        return chosen

    def _labelled(self, shelf: Shelf, config: ModelConfig) -> set[str]:
        """The versions that a label names, or is about to."""
        versions = set(self.labels.values())
        for label, version in config.labels.items() if config.labels != self._labels_told else ():
            if version in _versions(shelf, config) or version in self.versions:
                versions.add(version)
            else:
                _LOG.warning("model '%s': label '%s' names version %s, which is not there", self.name, label, version)
        return versions

    async def _bring(self, version: str, shelf: Shelf, told: Told, again: bool) -> SalverError | None:
        """Serve a version as it is now, unless it is served so already.

        Returns:
            Why it is not served; it is what its state says too, or the index where an older one is in service.
        """
        source = (shelf.stamps.get(version), told)
        held = self.versions.get(version)
        known = self.failed.get(version)
        gone = version not in _versions(shelf, told.config)
        if held is not None and (held.source == source or gone):
            self.failed.pop(version, None)
            return None
        if known is not None and known[0] == source and not again:
            return known[1]
        try:
            model = await self._make(version, shelf, told, announce=held is None)
        except SalverError as error:
            self.failed[version] = (source, error)
            _LOG.error("model '%s' version %s cannot be served: %s", self.name, version, error.message)
            return error
        self.failed.pop(version, None)
        self.versions[version] = _Version(model, source)
        self._put(model)
        for field in told.config.ignored:
            _LOG.warning("model '%s': '%s' of its configuration has no meaning here", self.name, field)
        return None

    async def _make(self, version: str, shelf: Shelf, told: Told, *, announce: bool) -> Servable:
        """A version that is ready.

        Args:
            announce: whether it is shown, in whatever state, before it is ready and where it fails.

        Raises:
            SalverError: it cannot be served.
        """
        if told.config.pipeline is not None:
            return self._make_pipeline(version, told, announce=announce)
        model = LoadedModel(self.name, version, self._engine.metrics, self._engine.refresh)
        model.required = self.required
        if announce:
            self._put(model)
        try:
            await self._open(model, shelf, told)
        except SalverError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  # the load boundary: one bad model must not take the others down
            _LOG.exception("loading '%s' failed", shelf.origin)
            failure = Internal(f"{type(error).__name__}: {error}")
        else:
            return model
        model.refuse(failure.message)
        raise failure

    def _make_pipeline(self, version: str, told: Told, *, announce: bool) -> Servable:
        try:
            settings = self._settings.for_model(self.name, {}, told.config, told.asked)
            model = PipelineModel(self.name, version, self._settled(told), self._engine, settings)
            if model.state == "READY":
                check_declared(told.config, model.signature)
        except SalverError as error:
            if announce:
                self._refuse(version, error)
            raise
        model.required = self.required
        if announce:
            self._put(model)  # where a step is missing, it becomes ready when that does
        if model.state != "READY":
            raise model.unavailable()
        return model

    async def _open(self, model: LoadedModel, shelf: Shelf, told: Told) -> None:
        path = shelf.files.get(model.version)
        if path is None:
            there = ", ".join(shelf.files) or "none"
            raise NotFound(f"model '{self.name}' has no version {model.version}; there are {there}")
        async with self._slots:
            tasted = await asyncio.to_thread(taste, path, self.name, told, self._settings)
        bundle, loaded, settings = tasted.bundle, tasted.loaded, tasted.settings
        model.tested = bundle.tested
        model.platform = f"{bundle.model.format}_{bundle.model.format}v1"
        model.metadata = describe(bundle, loaded, settings, told.config)
        model.open(
            loaded.session,
            settings,
            merge=loaded.merge,
            cost=loaded.cost,
            inline=loaded.inline,
            config=self._settled(told),
        )
        _report(model)

    def _settled(self, told: Told) -> ModelConfig:
        """What the folder says, with the policy that holds."""
        policy = self._settings.versions_of(self.name, told.config, told.asked)
        return msgspec.structs.replace(told.config, versions=policy)

    def _refuse(self, version: str, error: SalverError) -> None:
        model = LoadedModel(self.name, version, self._engine.metrics, self._engine.refresh)
        model.required = self.required
        model.refuse(error.message)
        self._put(model)

    def _put(self, model: Servable) -> None:
        old = self._engine.put(model)
        if old is not None:
            self._spawn(self._engine.retire(old, self._settings.drain_s))

    def _take_origin(self, origin: Origin, config: ModelConfig) -> None:
        if origin is not self.origin:
            self.origin.close()
        self.origin = origin
        labels = config.labels
        if labels != self._labels_told:
            for label, version in labels.items():
                if version in self.versions:
                    self.move_label(label, version)
            self._labels_told = labels

    def _retire_all_but(self, chosen: Set[str]) -> None:
        for model in self.loaded:
            if model.version not in chosen:
                self.versions.pop(model.version, None)
                self.failed.pop(model.version, None)
                self._spawn(self._engine.retire(model, self._settings.drain_s))


def _versions(shelf: Shelf, config: ModelConfig) -> list[str]:
    """Those that are there; a pipeline has no files, and needs no folder."""
    if config.pipeline is not None:
        return list(shelf.empty) or [FIRST_VERSION]
    return list(shelf.files)


def _report(model: LoadedModel) -> None:
    facts = model.metadata
    _LOG.info(
        "model '%s' version %s is ready: %s, %d golden requests, merge=%s (%s), threads=%d lanes=%d batch=%d",
        model.name,
        model.version,
        "tested" if model.tested else "UNTESTED",
        facts["golden_requests"],
        facts["merge"],
        facts["merge_reason"],
        facts["threads"],
        facts["lanes"],
        facts["max_batch"],
    )
