"""The contract between a supervisor, its workers, and the services that are one for all of them.

The supervisor starts processes, watches them and replaces them; it loads no model and answers no client. Whatever must
be one in a server of several processes (the state of the repository, labels, shared-memory registrations, counters of
workers that are gone) is a `Service` in the supervisor, and workers ask it over their `Channel`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from salver.server.processes.channel import Channel

WorkerState = Literal["STARTING", "READY", "DRAINING", "GONE"]


class Listen(msgspec.Struct, frozen=True):
    """A listening socket that a worker inherits.

    Args:
        address: as it was asked for, ``127.0.0.1:8080`` or ``unix:/path``.
        fd: of the inherited socket.
    """

    address: str
    fd: int


class Start(msgspec.Struct, frozen=True):
    """First message to a process, told as ``start``.

    Args:
        settings: `ServeSettings` as plain data.
        slot: the worker's place, 0 upwards; its replacement has the same.
        generation: counts the processes that had the slot.
        listen: its sockets, ``http`` first.
        services: what each `Service` hands to a process that starts, by its name.
    """

    settings: dict[str, Any]
    slot: int
    generation: int
    listen: tuple[Listen, ...]
    services: dict[str, Any]


class Beat(msgspec.Struct, frozen=True):
    """News from a worker once a second, told as ``beat``: its event loop turns.

    Args:
        memory_bytes: resident, without what files back.
        running_s: age of the oldest batch that runs now, by ``model/version``.
    """

    memory_bytes: int
    running_s: dict[str, float]


class Worker(abc.ABC):
    """A worker as the supervisor and its services see it. Lives on the supervisor's event loop."""

    slot: int
    generation: int
    pid: int
    channel: Channel
    state: WorkerState

    @abc.abstractmethod
    def replace(self, reason: str) -> None:
        """Let a fresh process take this one's place: started first, then this one drains and ends."""


class Service(abc.ABC):
    """Something that is one for all workers. Lives on the supervisor's event loop.

    The supervisor calls `greeting` when a process starts, then `attach` once its channel is open, before it loads
    anything; `ready` when it takes requests; `gone` when it has ended, whatever the cause.
    """

    name: str

    def greeting(self, slot: int) -> Any:
        """What a process that starts must know, as plain data; it comes in `Start.services`."""
        return None

    @abc.abstractmethod
    def attach(self, worker: Worker) -> None:
        """Answer this process's questions: ``worker.channel.on(...)``."""

    def ready(self, worker: Worker) -> None:  # noqa: B027  # most need not know
        """It takes requests from now on."""

    def gone(self, worker: Worker) -> None:  # noqa: B027  # most need not know
        """It has ended."""


class Supervision(abc.ABC):
    """What services may ask of the supervisor."""

    @abc.abstractmethod
    def workers(self) -> Mapping[int, Worker]:
        """Those that take requests or are about to, by slot."""
