"""A worker in simulated time: its event loop, which does one thing at a time, and the models that it serves."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

from salver.core.errors import Code, SalverError
from salver.server.planning.clock import Clock
from salver.server.planning.cores import Cores
from salver.server.planning.ledger import VANISHED, Ledger
from salver.server.planning.model import KILLED, Draws, Run, SimulatedRequest, SimulatedServed
from salver.server.planning.scenario import Overheads, SimulatedModel


class SimulatedWorker:
    """A process: one event loop that does one thing at a time, and the lanes of its models.

    Args:
        slot: its place.
        models: by name, each with the times its runs take.
        overheads: what the loop spends.
        cores: of the machine.
        clock: for events to come.
        ledger: where ends are noted.
        ended: told of requests of closed loops that have ended.
        random: of run times and failures.
    """

    def __init__(
        self,
        slot: int,
        models: dict[str, tuple[SimulatedModel, Draws]],
        overheads: Overheads,
        cores: Cores,
        clock: Clock,
        ledger: Ledger,
        ended: Callable[[SimulatedRequest, float], None],
        random: Random,
    ) -> None:
        self.slot = slot
        self.overheads = overheads
        self.cores = cores
        self.clock = clock
        self.ledger = ledger
        self.ended = ended
        self.dead = False
        self.factor = 1.0  # how many times slower the machine is than it should be
        self.pace = 1.0  # the same of this turn of the event loop
        self.busy_s = 0.0
        self.cold_s = 0.0  # by which the next run is longer
        self.kicks: list[SimulatedServed] = []
        self._models = models
        self._random = random
        self._inbox: list[Any] = []
        self._busy_until_s = 0.0
        self._told_s = 0.0
        self._asleep_s = math.inf  # since when it has had nothing to do
        self._armed = False
        self._retired: list[SimulatedServed] = []
        self._served = {name: SimulatedServed(name, *model, self, random) for name, model in models.items()}

    def post(self, item: Any, now: float) -> None:
        """Something for the event loop: a request, a `Run` that ended, a client that went away, or a timer."""
        self._inbox.append(item)
        if not self._armed:
            if now >= self._busy_until_s:
                self._turn(now)
            else:
                self._armed = True
                self.clock.at(self._busy_until_s, self._wake)

    def _wake(self, now: float) -> None:
        self._armed = False
        if not self.dead:
            self._turn(now)

    def _turn(self, began_s: float) -> None:
        """One turn of the event loop: first what came, in its order, then what was put off to the end of the turn."""
        overheads = self.overheads
        pace = self.pace = self.factor * self.cores.crowding(self.slot, began_s)
        left_s = self.cores.interrupt(began_s)
        if left_s:
            began_s += min(overheads.wait_s, left_s)
            now = began_s + (overheads.turn_s + overheads.interrupt_s) * pace
        else:
            now = began_s + overheads.turn_s * pace
        if overheads.wake and began_s > self._asleep_s:
            loop_s, self.cold_s = overheads.waking_s(began_s - self._asleep_s)
            now += loop_s * pace
        self._told_s = began_s
        inbox, self._inbox = self._inbox, []
        decode_s = overheads.decode_s * pace
        for item in inbox:
            kind = type(item)
            if kind is SimulatedRequest:
                now += decode_s
                try:
                    self._served[item.model].submit(item, now)
                except SalverError as error:
                    now += overheads.encode_s * pace
                    self.refuse(item, error, now)
            elif kind is Run:
                now += overheads.handoff_s * pace
                now = item.served.after_lane(item, now)
            elif kind is SimulatedServed:
                item.kick_soon()
            else:
                self._forget(item)
        if self.kicks:
            kicks, self.kicks = self.kicks, []
            for served in kicks:
                now = served.kick(now)
        self.busy_s += now - began_s
        self.tell(now)
        self._busy_until_s = now
        self._asleep_s = math.inf if any(served.running for served in self._served.values()) else now
        if self.kicks and not self._armed:
            self._armed = True
            self.clock.at(now, self._wake)

    def tell(self, now: float) -> None:
        """Until when the event loop has been busy, so far as is known."""
        self.cores.loop(self.slot, self._told_s, now)
        self._told_s = now

    def _forget(self, vanished: Vanished) -> None:
        request = vanished.request
        if not self.ledger.end[request.number]:
            self.ledger.finish(request.number, VANISHED, 0.0)
            if request.served is not None:
                request.served.scheduler.cancel(request)

    def refuse(self, request: SimulatedRequest, error: SalverError, now: float) -> None:
        """A request ends in an error."""
        if error.code == Code.INTERNAL and not request.bad and not self._models[request.model][0].fail_share:
            self.ledger.violate(f"request {request.number} failed, though nothing was wrong with it")
        self.ledger.refuse(request.number, error, now - request.sent_s)
        if request.loop >= 0:
            self.ended(request, now)

    def recover(self, now: float) -> None:
        """The machine is as fast as it should be."""
        self.factor = 1.0

    def hang(self, seconds: float) -> None:
        """The next run takes so much longer."""
        for served in self._served.values():
            served.hang_s = seconds

    def swap(self) -> None:
        """The next version of every model takes over; the old one answers what it has taken."""
        for name, old in self._served.items():
            old.scheduler.drain()
            self._retired.append(old)
            self._served[name] = SimulatedServed(name, *self._models[name], self, self._random)

    def die(self, now: float) -> None:
        """The process is killed."""
        self.dead = True
        for item in self._inbox:
            if type(item) is SimulatedRequest:
                self.refuse(item, KILLED, now)
        self.cores.drop(lambda run: run.served.worker is self)
        for served in (*self._served.values(), *self._retired):
            served.die(now)

    def check_idle(self) -> None:
        """What holds when all is over."""
        for served in (*self._served.values(), *self._retired):
            scheduler = served.scheduler
            if not self.dead and not scheduler.idle:
                self.ledger.violate(f"worker {self.slot}, {served.name}: not idle at the end: {scheduler.gauges()}")
            if scheduler.queued or scheduler.queued_rows or scheduler.queued_bytes:
                self.ledger.violate(f"worker {self.slot}, {served.name}: its books do not balance")


class Vanished:
    """A client went away."""

    __slots__ = ("request",)

    def __init__(self, request: SimulatedRequest) -> None:
        self.request = request
