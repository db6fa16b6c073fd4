"""A worker as the supervisor has it."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from typing import Final

from salver.core.errors import Internal, SalverError, error_of
from salver.server.processes.balance import IDLE
from salver.server.processes.base import STACKS, Beat, Failure, Fault, Leave, Ready, Reason, Worker
from salver.server.processes.child import Child, describe_end
from salver.server.processes.watch import Complaint, Watch
from salver.server.settings import ServeSettings

MODULE: Final = "salver.server.processes.worker"

_LOG = logging.getLogger(__name__)
_CRASHES: Final = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS)
_STACKS_S: Final = 0.2  # to write them, before it is killed
_CUT_S: Final = 7.0  # more than a worker's own time to end after its drain


class SupervisedWorker(Worker):
    """From its start to its end."""

    child: Child

    def __init__(self, slot: int, generation: int, settings: ServeSettings) -> None:
        self.slot = slot
        self.generation = generation
        self.settings = settings
        self.state = "STARTING"
        self.missing: tuple[str, ...] = ()
        self.covers: tuple[int, ...] = ()
        self.settled = asyncio.Event()
        """It takes requests, or has ended."""
        self.unwanted = asyncio.Event()
        """A fresh one is to take its place, or it has ended."""
        self.closed = asyncio.Event()
        """It accepts no more connections, or has ended."""
        self.complaint: Complaint | None = None
        self.failure: SalverError | None = None
        """What it said why it cannot serve."""
        self._loop = asyncio.get_running_loop()
        self._watch = Watch(self._loop.time(), settings.max_run_s)
        self.load = IDLE
        """What it had to do of late."""
        self._ready_s = math.inf
        self._kill_at_s = math.inf

    def __str__(self) -> str:
        return f"worker {self.slot} (process {self.pid})"

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def alive(self) -> bool:
        """Whether its process has not ended."""
        return self.state != "GONE"

    def replace(self, reason: Reason, why: str) -> None:
        if self.complaint is None and self.alive:
            self.complaint = Complaint(reason, why)
            if self.state == "READY":
                _LOG.warning("%s is replaced: %s", self, why)
            self.unwanted.set()

    def leave(self, leave: Leave) -> None:
        """Let it answer what it has taken and end; one that has not is killed."""
        self.state = "DRAINING"
        self._kill_at_s = self._loop.time() + leave.delay_s + leave.drain_s + _CUT_S
        self.channel.tell("leave", leave)

    def hear_ready(self, ready: Ready) -> None:
        """It takes requests."""
        self.state = "READY"
        self.load = IDLE
        self.missing = ready.missing
        self._ready_s = self._loop.time()
        self.settled.set()

    def hear_failure(self, failure: Failure) -> None:
        """It cannot."""
        self.failure = error_of(failure.code, failure.message)

    def hear_closed(self, _: None) -> None:
        """It accepts no more connections."""
        self.closed.set()

    def hear_beat(self, beat: Beat) -> None:
        """It lives."""
        self.load = beat.load
        complaint = self._watch.hear(beat, self._loop.time(), self.child.waited_s)
        if complaint is not None and self.state == "READY" and self.complaint is None:
            if complaint.reason == "slow":
                self.child.kill(STACKS)
            self.replace(complaint.reason, complaint.why)

    def tolerate_memory(self, for_s: float) -> None:
        """Do not judge its memory for a while."""
        self._watch.memory_from_s = self._loop.time() + for_s

    def excuse(self) -> None:
        """Nobody listened: do not hold its silence against it."""
        self._watch.excuse(self._loop.time(), self.child.waited_s)

    def look(self) -> None:
        """End it if it hangs, or does not leave in time."""
        now_s = self._loop.time()
        if now_s > self._kill_at_s:
            _LOG.error("%s did not end in time, and is killed", self)
            self.child.kill()
        elif self.child.code is None and (silence := self._watch.is_silent(now_s, self.child.waited_s)) is not None:
            _LOG.error("%s hangs, and is killed: %s", self, silence.why)
            self.complaint = silence
            self.excuse()
            self.child.kill(STACKS)
            self._loop.call_later(_STACKS_S, self.child.kill)

    def end(self) -> None:
        """Its process has ended."""
        self.state = "GONE"
        for event in (self.settled, self.unwanted, self.closed):
            event.set()

    @property
    def served_s(self) -> float:
        """For how long it has taken requests."""
        return max(self._loop.time() - self._ready_s, 0.0)

    @property
    def fault(self) -> Fault:
        if self.complaint is not None and self.complaint.reason in ("hang", "slow"):
            return "hang"
        if self.complaint is not None or self.failure is not None or self.child.code is None:
            return ""
        return "crash" if self.child.code > 0 or -self.child.code in _CRASHES else ""

    @property
    def reason(self) -> Reason:
        """Why it ended, or had to."""
        if self.complaint is not None:
            return self.complaint.reason
        return "signal" if (self.child.code or 0) < 0 else "exit"

    @property
    def trouble(self) -> SalverError:
        """Why it did not come to serve."""
        return self.failure or Internal(f"worker {self.slot} {describe_end(self.child.code or 0)} before it was ready")
