"""The contract between a supervisor, its workers, and the services that are one for all of them.

The supervisor starts processes, watches them and replaces them; it loads no model and answers no client. Whatever must
be one in a server of several processes (the state of the repository, labels, shared-memory registrations, counters of
workers that are gone) is a `Service` in the supervisor, and workers ask it over their `Channel`.
"""

from __future__ import annotations

import abc
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

import msgspec

from salver.core.errors import Code
from salver.server.processes.balance import IDLE, Load
from salver.server.processes.channel import Channel
from salver.server.settings import ServeSettings

WorkerState = Literal["STARTING", "READY", "DRAINING", "GONE"]

Reason = Literal["exit", "signal", "hang", "slow", "memory", "settings", "repository"]
"""Why a worker was replaced: it ended, was killed by a signal, its event loop stood still, a batch ran for too long,
its memory did not come back, the settings changed, or it could not follow a change of the repository."""
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)

Fault = Literal["", "crash", "hang"]

STACKS: Final = signal.SIGUSR2
"""At which a worker writes to standard error where its threads are."""

EVERYONE: Final = -1
"""The slot of a socket on which all workers accept."""


class Listen(msgspec.Struct, frozen=True):
    """A listening socket that a worker inherits. It inherits those of all slots, to stand in for one that is gone.

    Args:
        role: which of the server's addresses it is: ``http`` or ``grpc``.
        slot: whose socket it is, or `EVERYONE`.
        fd: of the inherited socket.
    """

    role: str
    slot: int
    fd: int


class Start(msgspec.Struct, frozen=True):
    """What a process asks for first, as ``start``.

    Args:
        settings: `ServeSettings` as plain data; addresses are those that were bound.
        slot: the worker's place, 0 upwards; its replacement has the same.
        generation: counts the processes that had the slot.
        listen: the sockets of all slots.
        accept: whether it accepts connections while it loads, because nobody else does.
        services: what each `Service` hands to a process that starts, by its name.
    """

    settings: dict[str, Any]
    slot: int
    generation: int
    listen: tuple[Listen, ...]
    accept: bool
    services: dict[str, Any]


class Ready(msgspec.Struct, frozen=True):
    """A worker has loaded its models, told as ``ready``.

    Args:
        missing: models that it does not serve, and why.
    """

    missing: tuple[str, ...]


class Failure(msgspec.Struct, frozen=True):
    """A worker cannot serve, told as ``failed``; then it ends."""

    code: Code
    message: str


class Leave(msgspec.Struct, frozen=True):
    """A worker is to answer what it has taken and end, told as ``leave``.

    Args:
        delay_s: first it says for that long that it is not ready, and still takes requests.
        drain_s: then requests that are open have that long.
        last: whether nobody follows, so that its sockets are to be closed.
    """

    delay_s: float
    drain_s: float
    last: bool


class Beat(msgspec.Struct, frozen=True):
    """News from a worker once a second, told as ``beat``: its event loop turns.

    Args:
        memory_bytes: resident, without what files back.
        running_s: age of the oldest batch that runs now, by ``model/version``.
        loading: whether models are being loaded, which may keep the event loop for longer.
        served: stands for the set of models that are served now; empty while it changes.
        load: what it had to do since the last.
    """

    memory_bytes: int
    running_s: dict[str, float]
    loading: bool = False
    served: str = ""
    load: Load = IDLE


class Link:
    """What a worker holds of its supervisor.

    Questions and news that the supervisor's services send must find their handlers: whoever takes some registers them
    (``link.channel.on(...)``) when the worker's `Server` is made, before anything is awaited.
    """

    __slots__ = ("channel", "start")

    def __init__(self, channel: Channel, start: Start) -> None:
        self.channel = channel
        self.start = start


class Worker(abc.ABC):
    """A worker as the supervisor and its services see it. Lives on the supervisor's event loop."""

    slot: int
    generation: int
    settings: ServeSettings
    """With which it was started."""
    channel: Channel
    state: WorkerState

    @property
    @abc.abstractmethod
    def pid(self) -> int:
        """Number of its process."""

    @property
    @abc.abstractmethod
    def fault(self) -> Fault:
        """Of what it ran or loaded, by which it ended or had to: a crash, a run that hung, or none."""

    @abc.abstractmethod
    def replace(self, reason: Reason, why: str) -> None:
        """Let a fresh process take this one's place: started first, then this one drains and ends.

        Args:
            reason: under which it is counted.
            why: for the log.
        """


class Service(abc.ABC):
    """Something that is one for all workers. Lives on the supervisor's event loop.

    For every process the supervisor calls `inherits` and `attach` before it is started, `greeting` when it asks for its
    `Start`, `ready` when it takes requests, and `gone` when it has ended, whatever the cause. From `greeting` on it may
    be asked and told things.
    """

    name: str

    async def start(self) -> None:  # noqa: B027  # most have nothing to do
        """The supervisor starts; no process has been started yet."""

    async def stop(self) -> None:  # noqa: B027  # most have nothing to do
        """All processes have ended."""

    def inherits(self, slot: int, generation: int) -> Sequence[int]:
        """Open files that a process inherits under the same numbers; tell it which in `greeting`."""
        return ()

    def attach(self, worker: Worker) -> None:  # noqa: B027  # some are asked nothing
        """Answer this process's questions: ``worker.channel.on(...)``."""

    def greeting(self, worker: Worker) -> Any:
        """What a process that starts must know, as plain data; it comes in `Start.services` under `name`."""
        return None

    def ready(self, worker: Worker) -> None:  # noqa: B027  # most need not know
        """It takes requests from now on."""

    def gone(self, worker: Worker) -> None:  # noqa: B027  # most need not know
        """It has ended."""

    def settings_changed(self) -> None:  # noqa: B027  # most need not know
        """`Supervision.settings` are others from now on."""


class Tally:
    """What the supervisor has counted since it started."""

    __slots__ = ("replaced", "shifts", "started")

    def __init__(self) -> None:
        self.started = 0
        """Workers that were started."""
        self.replaced: dict[str, int] = {}
        """Workers that ended or had to be replaced, by reason: see `REASONS`."""
        self.shifts = 0
        """Times that clients of a busy worker were asked to connect again, to one with less to do."""


class Supervision(abc.ABC):
    """What services may ask of the supervisor."""

    settings: ServeSettings
    """In force now."""
    tally: Tally

    @abc.abstractmethod
    def workers(self) -> Mapping[int, Worker]:
        """Those that take requests or are about to, by slot."""

    @abc.abstractmethod
    def enlist(self, slot: int, folder: str) -> None:
        """Keep a worker in a further slot: it is started, watched and replaced like the others, but has no sockets for
        clients.

        Args:
            slot: given once.
            folder: only for this user, where it has a socket of its own.
        """

    @abc.abstractmethod
    def delay_s(self, slot: int) -> float:
        """Time to the next try at a slot whose worker has ended."""
