"""Runs a scenario: workers in simulated time under drawn traffic, with everything that must hold checked."""

from __future__ import annotations

import math
from functools import partial
from heapq import heappop
from random import Random
from typing import Any

import numpy as np

from salver.core.errors import Unavailable
from salver.server.planning.arrivals import Traffic, draw
from salver.server.planning.clock import Clock
from salver.server.planning.cores import Cores
from salver.server.planning.ledger import ANSWERED, OPEN, VANISHED, Ledger, Outcome
from salver.server.planning.model import NO_INPUTS, Draws, SimulatedRequest, unused
from salver.server.planning.scenario import Closed, Fault, Scenario
from salver.server.planning.worker import SimulatedWorker, Vanished

_NOBODY = Unavailable("no worker is there")


def simulate(scenario: Scenario) -> Outcome:
    """Run a scenario to its end; the same scenario gives the same outcome.

    Raises:
        NotFound, InvalidArgument: its trace cannot be read.
    """
    return Simulation(scenario).run()


class Simulation:
    """One run of one scenario.

    Args:
        scenario: what is run.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.traffic: Traffic = draw(scenario)
        self.ledger = Ledger(self.traffic.count)
        self.now = 0.0
        fleet = scenario.fleet
        self._clock = Clock()
        self._random = Random(scenario.seed)
        self._cores = Cores(fleet.cores, fleet.workers, scenario.overheads.refill_s, self._clock.at, _post_run)
        self._models = {
            name: (model, Draws(model.latency, model.max_batch, self._random))
            for name, model in scenario.models.items()
        }
        self._workers = [self._start(slot) for slot in range(fleet.workers)]
        self._alive = list(self._workers)
        self._old: list[SimulatedWorker] = []
        self._turn = 0  # of routing by turns, and of faults
        self._next = {stream: first for stream, (first, _) in self.traffic.closed.items()}
        self._asks = [(stream.model, stream.client or None) for stream in scenario.streams]
        self._sent = 0
        self._last_s = self.traffic.ends_s  # of the last arrival
        self._only_loops = not self.traffic.at_s
        hashed = Random(scenario.seed + 1)
        self._homes = [hashed.randrange(1 << 30) for _ in range(fleet.connections)]

    def run(self) -> Outcome:
        """Until every request has ended."""
        for fault in self.scenario.faults:
            self._clock.at(fault.at_s, partial(self._strike, fault))
        self._begin_loops()
        at_s, events, arrive = self.traffic.at_s, self._clock.events, self._arrive
        at_s.append(math.inf)
        number, next_s = 0, at_s[0]
        while True:
            if events and events[0][0] <= next_s:
                now, _, fire = heappop(events)
                self.now = now
                fire(now)
            elif next_s < math.inf:
                self.now = next_s
                arrive(number, next_s)
                number += 1
                next_s = at_s[number]
            else:
                break
        at_s.pop()
        return self._outcome()

    def _arrive(self, number: int, now: float, loop: int = -1) -> None:
        traffic = self.traffic
        model, client = self._asks[traffic.stream[number]]
        request = SimulatedRequest(
            NO_INPUTS,
            traffic.rows[number],
            unused,
            key=traffic.key[number],
            priority=traffic.priority[number],
            client=client,
            number=number,
            model=model,
            sent_s=now,
            timeout_s=traffic.timeout_s[number],
            bad=traffic.bad[number],
            loop=loop,
        )
        self._sent += 1
        self._last_s = max(self._last_s, now)
        worker = self._route(traffic.connection[number])
        if worker is None:
            self.ledger.refuse(number, _NOBODY, 0.0)
            if loop >= 0:
                self._ended(request, now)
            return
        patience_s = traffic.patience_s[number]
        if patience_s < math.inf:
            self._clock.at(now + patience_s, partial(_vanish, worker, request))
        worker.post(request, now)

    def _route(self, connection: int) -> SimulatedWorker | None:
        alive = self._alive
        if len(alive) == 1:
            return alive[0]
        if not alive:
            return None
        match self.scenario.fleet.routing:
            case "connection":
                return alive[self._homes[connection] % len(alive)]
            case "random":
                return alive[int(self._random.random() * len(alive))]
        self._turn += 1
        return alive[self._turn % len(alive)]

    def _begin_loops(self) -> None:
        for stream in self.traffic.closed:
            process = self.scenario.streams[stream].arrivals
            if isinstance(process, Closed):
                for _ in range(process.clients):
                    self._send_later(stream, process.think_s, 0.0)

    def _ended(self, request: SimulatedRequest, now: float) -> None:
        """A client of a closed loop has its answer."""
        process = self.scenario.streams[request.loop].arrivals
        if isinstance(process, Closed):
            self._send_later(request.loop, process.think_s, now + self.scenario.overheads.network_s)

    def _send_later(self, stream: int, think_s: float, now: float) -> None:
        number = self._next[stream]
        if number < self.traffic.closed[stream][1] and (self._only_loops or self.now < self.traffic.ends_s):
            self._next[stream] = number + 1
            wait_s = self._random.expovariate(1 / think_s) if think_s else 0.0
            self._clock.at(now + wait_s, lambda at_s: self._arrive(number, at_s, stream))

    def _start(self, slot: int) -> SimulatedWorker:
        scenario = self.scenario
        return SimulatedWorker(
            slot,
            self._models,
            scenario.overheads,
            self._cores,
            self._clock,
            self.ledger,
            self._ended,
            Random(scenario.seed * 1009 + slot),
        )

    def _strike(self, fault: Fault, now: float) -> None:
        if fault.every_s and now + fault.every_s < self.traffic.ends_s:
            self._clock.at(now + fault.every_s, partial(self._strike, fault))
        self._turn += 1
        if fault.worker >= 0:
            hit = [worker for worker in self._alive if worker.slot == fault.worker]
        elif fault.kind in ("slow", "swap"):
            hit = list(self._alive)
        else:
            hit = [self._alive[self._turn % len(self._alive)]] if self._alive else []
        for worker in hit:
            self._hit(worker, fault, now)

    def _hit(self, worker: SimulatedWorker, fault: Fault, now: float) -> None:
        match fault.kind:
            case "slow":
                worker.factor = fault.factor
                self._clock.at(now + fault.for_s, worker.recover)
            case "hang":
                worker.hang(fault.for_s)
            case "swap":
                worker.swap()
            case "kill":
                self._alive.remove(worker)
                self._old.append(worker)
                worker.die(now)
                self._clock.at(now + fault.for_s, partial(self._replace, worker.slot))

    def _replace(self, slot: int, now: float) -> None:
        self._workers[slot] = self._start(slot)
        self._alive = [worker for worker in self._workers if not worker.dead]

    def _outcome(self) -> Outcome:
        ledger, scenario = self.ledger, self.scenario
        for worker in (*self._workers, *self._old):
            worker.check_idle()
        lost = ledger.count(OPEN) - (self.traffic.count - self._sent)
        if lost:
            ledger.violate(f"{lost} requests never ended")
        latencies, waits = ledger.latencies_s(scenario.overheads.network_s), ledger.waits_s()
        longest = float(waits.max()) if len(waits) else 0.0
        if scenario.max_wait_s and longest > scenario.max_wait_s:
            ledger.violate(
                f"a request waited {longest:.3g} s to start; at most {scenario.max_wait_s:g} s were expected"
            )
        shares = ledger.good_shares(self.traffic.stream, len(scenario.streams), self._allowed_s())
        for number, (stream, share) in enumerate(zip(scenario.streams, shares, strict=True), 1):
            if share < stream.least_good:
                ledger.violate(f"stream {number} starves: {share:.1%} in time, expected {stream.least_good:.0%}")
        seconds = self._last_s
        return Outcome(
            name=scenario.name,
            seconds=seconds,
            offered=self._sent,
            answered=ledger.count(ANSWERED),
            vanished=ledger.count(VANISHED),
            refused=ledger.refused(),
            good=int((latencies <= scenario.slo_s).sum()),
            stream_good=shares,
            mean_s=float(latencies.mean()) if len(latencies) else 0.0,
            p50_s=_quantile(latencies, 0.5),
            p99_s=_quantile(latencies, 0.99),
            mean_wait_s=float(waits.mean()) if len(waits) else 0.0,
            longest_wait_s=longest,
            batches=ledger.batches,
            batch_rows=ledger.rows / ledger.batches if ledger.batches else 0.0,
            lanes_busy=self._share(ledger.busy_s / max(1, self._lanes()), seconds),
            loop_busy=self._share(max(worker.busy_s for worker in self._workers), seconds),
            cores_busy=self._share(
                (ledger.work_s + sum(worker.busy_s for worker in (*self._workers, *self._old))) / scenario.fleet.cores,
                seconds,
            ),
            most_queued=ledger.most_queued,
            violations=tuple(ledger.violations),
        )

    def _allowed_s(self) -> float:
        return self.scenario.slo_s - self.scenario.overheads.network_s

    def _lanes(self) -> int:
        return len(self._workers) * sum(model.lanes for model in self.scenario.models.values())

    @staticmethod
    def _share(busy_s: float, seconds: float) -> float:
        return min(1.0, busy_s / seconds) if seconds else 0.0


def _post_run(now: float, run: Any) -> None:
    worker = run.served.worker
    if not worker.dead:
        run.compute_s = now - run.began_s
        worker.post(run, now)


def _vanish(worker: SimulatedWorker, request: SimulatedRequest, now: float) -> None:
    if not worker.dead:
        worker.post(Vanished(request), now)


def _quantile(latencies: Any, share: float) -> float:
    return float(np.quantile(latencies, share)) if len(latencies) else 0.0
