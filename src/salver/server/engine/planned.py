"""One model of the repository, whoever serves it: what its files and its administrator want, and what follows."""

from __future__ import annotations

import abc
import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import msgspec

from salver.core.errors import Code, InvalidArgument, NotFound, SalverError, error_of
from salver.server.engine.base import ModelState
from salver.server.engine.config import ModelConfig
from salver.server.engine.folder import Told, read_folder
from salver.server.engine.repository import FIRST_VERSION, Shelf, shelve
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


class Failure(msgspec.Struct, frozen=True):
    """An error as plain data."""

    code: Code
    message: str

    @classmethod
    def of(cls, error: SalverError) -> Failure:
        """What an error says."""
        return cls(error.code, error.message)

    @property
    def error(self) -> SalverError:
        """The error that says so."""
        return error_of(self.code, self.message)


class Plan(msgspec.Struct, frozen=True):
    """What is to be served of a model: decided once, for all processes that serve it.

    Args:
        shelf: its files.
        told: what its folder says.
        chosen: versions that the policy wants, there or not.
        wanted: those, and the versions that labels name; lowest first.
        lower: versions to fall back to, highest first, where none of those can be served and nothing is in service.
        failed: versions that are not to be tried: they were, elsewhere, and failed so.
    """

    shelf: Shelf
    told: Told
    chosen: tuple[str, ...]
    wanted: tuple[str, ...]
    lower: tuple[str, ...] = ()
    failed: dict[str, Failure] = {}

    def source(self, version: str) -> object:
        """What a version is made from; equal while neither its files nor its configuration changed."""
        return self.shelf.stamps.get(version), self.told

    def holds(self, version: str) -> bool:
        """Whether the version is there to be loaded."""
        return version in versions_of(self.shelf, self.told.config)


class PlannedModel(abc.ABC):
    """What a `Keeper` knows of a model. Lives on the event loop; `refresh` and `take_out` are called with `lock` held.

    Args:
        name: under which it is served.
        settings: of the server.
    """

    def __init__(self, name: str, settings: ServeSettings) -> None:
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
        self.versions: dict[str, object] = {}
        """Version in service -> what it was made from."""
        self.kept: dict[str, str] = {}
        """Label -> version, of a model that was unloaded: they hold again when it is loaded."""
        self.labels_told: dict[str, str] = {}
        """Of its folder, as they were last applied."""
        self._settings = settings

    @property
    @abc.abstractmethod
    def states(self) -> Mapping[str, ModelState]:
        """Its versions, in any state."""

    @property
    @abc.abstractmethod
    def steps(self) -> set[str]:
        """Models that it is made of, where it is a pipeline."""

    @property
    @abc.abstractmethod
    def labels(self) -> dict[str, str]:
        """Label -> version."""

    @abc.abstractmethod
    async def refresh(self, origin: Origin, *, again: bool) -> None:
        """Bring what is served in line with the files and the policy. Versions in service answer until their successors
        are ready; where one of those fails, all stay.

        Args:
            origin: where it comes from.
            again: whether versions that failed are tried again though their files did not change.

        Raises:
            SalverError: why a version is not served; the first of them.
        """

    @abc.abstractmethod
    async def fail(self, error: SalverError) -> None:
        """No version can be served as things are now; those in service stay."""

    @abc.abstractmethod
    async def take_out(self, reason: str) -> None:
        """Unload all versions; what they have taken is answered first."""

    @abc.abstractmethod
    def forget(self) -> None:
        """It is in no source and not in service: drop what is left of it."""

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
        return steps_of(told)

    async def plan(self, origin: Origin) -> Plan:
        """What is to be served now.

        Raises:
            SalverError: it cannot be served.
        """
        shelf, told = await self.read(origin)
        chosen = self._choose(shelf, told)
        wanted = sorted({*chosen, *self._labelled(shelf, told.config)}, key=int)
        named = self._settings.versions_of(self.name, told.config, told.asked).specific
        lower = [] if named else [version for version in shelf.files if int(version) < int(wanted[0])]
        return Plan(shelf, told, tuple(chosen), tuple(wanted), tuple(reversed(lower)))

    def _choose(self, shelf: Shelf, told: Told) -> list[str]:
        """The versions that the policy wants, there or not."""
        if told.config.pipeline is not None and shelf.files:
            raise InvalidArgument(f"'{shelf.origin}' is a pipeline and holds a model; a pipeline has only steps")
        there = versions_of(shelf, told.config)
        policy = self._settings.versions_of(self.name, told.config, told.asked)
        chosen = [*policy.choose(there), *(version for version in policy.specific if version not in there)]
        if not chosen:
            raise NotFound(f"'{shelf.origin}' holds no version; expected {shelf.origin}/<number>/model.onnx")
        return chosen

    def _labelled(self, shelf: Shelf, config: ModelConfig) -> set[str]:
        """The versions that a label names, or is about to."""
        versions = set(self.labels.values())
        told = config.labels.items() if config.labels != self.labels_told else ()
        for label, version in (*self.kept.items(), *told):
            if version in versions_of(shelf, config) or version in self.states:
                versions.add(version)
            else:
                _LOG.warning("model '%s': label '%s' names version %s, which is not there", self.name, label, version)
        return versions

    def settle_labels(self, config: ModelConfig) -> dict[str, str]:
        """The labels that are to be moved now that versions were loaded: those that the model had when it was unloaded,
        and its folder's where that says something else than it did."""
        told = config.labels if config.labels != self.labels_told else {}
        moves = {**self.kept, **told}
        self.kept, self.labels_told = {}, config.labels
        return {label: version for label, version in moves.items() if version in self.versions}

    def take_origin(self, origin: Origin) -> None:
        """Come from there from now on; what was uploaded before is removed."""
        if origin is not self.origin:
            self.origin.close()
        self.origin = origin


def versions_of(shelf: Shelf, config: ModelConfig) -> list[str]:
    """Those that are there; a pipeline has no files, and needs no folder."""
    if config.pipeline is not None:
        return list(shelf.empty) or [FIRST_VERSION]
    return list(shelf.files)


def steps_of(told: Told) -> list[str]:
    """Models that a pipeline is made of, each once; none for a model."""
    pipeline = told.config.pipeline
    return [] if pipeline is None else list(dict.fromkeys(step.model for step in pipeline.steps))
