"""What the supervisor and its processes say to each other of the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from salver.core.errors import SalverError
from salver.server.engine.planned import Failure, Plan

CATALOG: Final = "catalog"
FIRST: Final = 0
"""Slot of the worker that runs models with state for all."""
APART: Final = 1000
"""Slots from here on have no sockets for clients: they run models that crashed a worker."""


class Load(msgspec.Struct, frozen=True):
    """A worker asks for a model to be loaded by all, as ``catalog.load``. See `Repository.load`."""

    name: str
    config: dict[str, Any] | None = None
    files: dict[str, bytes] | None = None


class Unload(msgspec.Struct, frozen=True):
    """A worker asks for a model to be unloaded by all, as ``catalog.unload``. See `Repository.unload`."""

    name: str
    dependents: bool = False


class Move(msgspec.Struct, frozen=True):
    """A worker asks for a label to be moved in all, as ``catalog.move``; all are told so, as ``catalog.label``."""

    name: str
    label: str
    version: str | None


class Order(msgspec.Struct, frozen=True):
    """What a process is to do about a model: as it starts, or as ``catalog.prepare``.

    Args:
        name: of the model.
        plan: what is to be served, see `pack`; None for a model that is out of service.
        reason: why it is out of service.
        failed: why there is no plan for it.
        labels: label -> version; None for those of its folder.
        labels_told: of its folder, as they were last applied.
        required: whether the process is ready only when it is.
        owner: slot of the process that runs it for all; None for each its own.
    """

    name: str
    plan: dict[str, Any] | None = None
    reason: str = ""
    failed: Failure | None = None
    labels: dict[str, str] | None = None
    labels_told: dict[str, str] = {}
    required: bool = False
    owner: int | None = None


class Report(msgspec.Struct, frozen=True):
    """What a process serves of a model.

    Args:
        versions: in service.
        failed: versions that are not, and why.
        labels: label -> version.
    """

    versions: tuple[str, ...]
    failed: dict[str, Failure]
    labels: dict[str, str]


class Removal(msgspec.Struct, frozen=True):
    """A process is to take a model out of service, asked as ``catalog.remove``."""

    name: str
    reason: str


class Refusal(msgspec.Struct, frozen=True):
    """No version of a model can be served as things are now, asked as ``catalog.fail``."""

    name: str
    failure: Failure


class Owner(msgspec.Struct, frozen=True):
    """Where the process is to which requests for some models are forwarded, told as ``catalog.owner``.

    Args:
        slot: its place.
        path: of its Unix socket; empty while it is away.
        reason: why it is away.
        retry_after_s: when it may be there again; 0 where that is not known.
        lost: whether it was there, or tried to be, and ended.
    """

    slot: int
    path: str = ""
    reason: str = "the process that runs it has not started yet"
    retry_after_s: float = 0.0
    lost: bool = False


class Greeting(msgspec.Struct, frozen=True):
    """What a process that starts must know of the repository.

    Args:
        orders: its models.
        owners: processes that run models for others.
        path: of the Unix socket on which it answers others; empty where it does not.
        marks: open file in which it notes what runs; see `Marks`.
    """

    orders: list[Order]
    owners: list[Owner]
    path: str
    marks: int


class Sample(msgspec.Struct, frozen=True):
    """A throw-away process is to try a version, asked as ``taste``.

    Args:
        settings: `ServeSettings` as plain data.
        plan: see `pack`.
    """

    name: str
    version: str
    settings: dict[str, Any]
    plan: dict[str, Any]


def pack(plan: Plan) -> dict[str, Any]:
    """A plan as plain data."""
    data: dict[str, Any] = msgspec.to_builtins(plan, enc_hook=str)
    return data


def unpack(data: dict[str, Any]) -> Plan:
    """The plan that was packed."""
    return msgspec.convert(data, Plan, dec_hook=_read)


def _read(kind: type, value: Any) -> Any:
    """Types that plain data has no word for."""
    if kind is Path:
        return Path(value)
    if kind is SalverError:  # of a shelf that has a fault no plan is made
        return None
    raise NotImplementedError(kind)
