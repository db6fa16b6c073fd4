"""``HandleReloadConfigRequest``: another list of models, version policies and labels for a server that runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from salver.core.errors import InvalidArgument, NotFound, SalverError, Unimplemented
from salver.server.engine.base import Repository

Ended = Callable[["SalverError | None"], None]
_PLATFORMS: Final = ("", "tensorflow")
"""What clients write; the platform of a model follows from its file."""


class Wanted(msgspec.Struct, frozen=True):
    """How one model is to be served.

    Args:
        policy: as Triton's ``version_policy``; None for the model's own.
        labels: label -> version; those that are not named are taken away.
    """

    name: str
    policy: Mapping[str, Any] | None
    labels: Mapping[str, str]


def read_config(config: Any, repository: Repository) -> list[Wanted]:
    """What a ``ModelServerConfig`` asks for, once it is known to be possible.

    Raises:
        Unimplemented: a configuration of another kind, or a platform of another server.
        InvalidArgument: no models, or one that is named twice.
        NotFound: a model that the server's own folders do not hold.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise Unimplemented("expected config.model_config_list; no other configuration is understood")
    known = {entry.name for entry in repository.index()}
    found: dict[str, Wanted] = {}
    for model in config.model_config_list.config:
        if model.model_platform not in _PLATFORMS:
            raise Unimplemented(f"model '{model.name}': platform '{model.model_platform}' is not served here")
        if model.name in found:
            raise InvalidArgument(f"model '{model.name}' is configured twice")
        if model.name not in known:
            raise NotFound(
                f"no model '{model.name}'; known: {', '.join(sorted(known)) or 'none'}. A model cannot be added by its "
                f"base_path ('{model.base_path}'): put it into a folder that the server was told to serve"
            )
        labels = {label: str(version) for label, version in model.version_labels.items()}
        found[model.name] = Wanted(model.name, _policy(model), labels)
    if not found:
        raise InvalidArgument(
            "the configuration names no model, which would take all out of service; unload them instead"
        )
    return list(found.values())


def _policy(model: Any) -> dict[str, Any] | None:
    policy = model.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind is None:
        return None
    if kind == "latest":
        return {"latest": {"num_versions": policy.latest.num_versions or 1}}
    if kind == "all":
        return {"all": {}}
    if not policy.specific.versions:
        raise InvalidArgument(f"model '{model.name}': the policy 'specific' names no version")
    return {"specific": {"versions": list(policy.specific.versions)}}


class Reload:
    """Loads what is wanted, then moves labels, then unloads the rest. It stops at the first step that fails, and what
    was done so far stands.

    Args:
        ended: called once.
    """

    def __init__(self, repository: Repository, wanted: list[Wanted], ended: Ended) -> None:
        self._repository = repository
        self._wanted = wanted
        self._ended = ended
        self._open = 0
        self._error: SalverError | None = None
        self._next: Callable[[], None] = self._move_labels

    def start(self) -> None:
        """Begin; returns before it is done."""
        self._open = 1 + len(self._wanted)
        for model in self._wanted:
            config = None if model.policy is None else {"version_policy": model.policy}
            try:
                self._repository.load(model.name, self._one_done, config=config)
            except SalverError as error:
                self._one_done(error)
        self._one_done(None)

    def _one_done(self, error: SalverError | None) -> None:
        self._error = self._error or error
        self._open -= 1
        if self._open == 0:
            if self._error is None:
                self._next()
            else:
                self._ended(self._error)

    def _move_labels(self) -> None:
        moves: list[tuple[str, str, str | None]] = []
        for model in self._wanted:
            taken = [label for label in self._repository.labels(model.name) if label not in model.labels]
            moves += [(model.name, label, None) for label in taken]
            moves += [(model.name, label, version) for label, version in model.labels.items()]
        self._open = 1 + len(moves)
        self._next = self._unload
        for move in moves:
            try:
                self._repository.move_label(*move, self._one_done)
            except SalverError as error:
                self._one_done(error)
        self._one_done(None)

    def _unload(self) -> None:
        kept = {model.name for model in self._wanted}
        served = {entry.name for entry in self._repository.index() if entry.state != "UNAVAILABLE"}
        self._open = 1 + len(served - kept)
        self._next = lambda: self._ended(None)
        for name in sorted(served - kept):
            try:
                self._repository.unload(name, self._one_done)
            except SalverError as error:
                self._one_done(error)
        self._one_done(None)
