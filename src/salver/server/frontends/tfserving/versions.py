"""Which model is meant, and in which state its versions are, as TensorFlow Serving says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from salver.core.errors import Code, NotFound
from salver.server.engine.base import Engine, ModelState, ServedModel

STATES: Final[dict[ModelState, str]] = {
    "LOADING": "LOADING",
    "READY": "AVAILABLE",
    "UNLOADING": "UNLOADING",
    "UNAVAILABLE": "END",
}
"""Salver's states -> TensorFlow Serving's. ``START`` is never seen: a version is known when its loading begins."""

_MAX_VERSION: Final = (1 << 63) - 1


class VersionStatus(msgspec.Struct, frozen=True):
    """The state of one version; ``code`` is ``OK`` or a canonical error code."""

    version: str
    state: str
    code: str
    message: str


def find_model(engine: Engine, name: str, version: str | None = None, label: str | None = None) -> ServedModel:
    """The model that answers.

    Args:
        version: a number; 0 means none, as clients of other servers say it, unless there is a version 0.
        label: in place of a version.

    Raises:
        NotFound: no such model, version or label.
        Unavailable: it is loading, unloading or broken.
    """
    if label is not None:
        _check_label(name, label)
        return engine.find(name, label)
    if version is not None and not version.isdecimal():
        raise NotFound(f"Servable not found for request: Specific({name}, {version}); a version is a number")
    if version == "0" and not any(m.name == name and m.version == "0" for m in engine.models()):
        version = None
    return engine.find(name, version)


def list_statuses(
    engine: Engine, name: str, version: str | None = None, label: str | None = None
) -> list[VersionStatus]:
    """The states of a model's versions, or of one, whatever they are.

    Raises:
        NotFound: no such model, version or label.
    """
    known = [model for model in engine.models() if model.name == name]
    if label is not None:
        _check_label(name, label)
        version = engine.repository.labels(name).get(label)
        if version is None:
            raise NotFound(f"Servable not found for request: {name} has no version labelled '{label}'")
    chosen = known if version in (None, "0") else []
    chosen = [model for model in known if model.version == version] or chosen
    if not chosen:
        if version is None and any(entry.name == name for entry in engine.repository.index()):
            return []
        which = f"version {version} of model {name}" if known else f"any versions of model {name}"
        raise NotFound(f"Could not find {which}")
    return [_status_of(model) for model in chosen]


def is_ready(statuses: Sequence[VersionStatus]) -> bool:
    """Whether one of them answers requests."""
    return any(status.state == STATES["READY"] for status in statuses)


def number_of(version: str) -> int | None:
    """A version as protobuf carries it; None where it is no number that fits."""
    if version.isdecimal() and len(version) < 20 and int(version) <= _MAX_VERSION:
        return int(version)
    return None


def _status_of(model: ServedModel) -> VersionStatus:
    if model.state != "UNAVAILABLE":
        return VersionStatus(model.version, STATES[model.state], "OK", "")
    message = f"version {model.version} is not served; the repository index says why"  # which is not for everybody
    return VersionStatus(model.version, STATES[model.state], Code.UNAVAILABLE.value, message)


def _check_label(name: str, label: str) -> None:
    if label.isdecimal():
        raise NotFound(f"Servable not found for request: {name} has no version labelled '{label}'; a label is a word")
