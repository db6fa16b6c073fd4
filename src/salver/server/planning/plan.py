"""How many workers, cores and nodes a load needs: a search in which the simulator is the judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final, Literal

import msgspec

from salver.core.errors import FailedPrecondition
from salver.server.planning.ledger import Outcome
from salver.server.planning.measure import Measured
from salver.server.planning.scenario import (
    Fleet,
    Latency,
    Poisson,
    Process,
    Scenario,
    SimulatedModel,
    Stream,
    Trace,
)
from salver.server.planning.simulator import simulate

Binds = Literal["compute", "event loop", "latency objective", "memory"]

_REQUESTS: Final = 60_000
_SEARCH: Final = 3  # a step of the search simulates one in so many of them
_ALONE: Final = 12
_LAYOUTS: Final = 3
_MOST_NODES: Final = 10_000
_GROWTH: Final = 1.1
_NEAR: Final = 0.8


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked.

    Args:
        arrivals: of all nodes together: a Poisson process, or a trace.
        rate_per_s: its mean.
        slo_s: latency objective, as clients see it.
        rows: rows in a request: one of these. Of a trace, its own are taken.
        model: its name, by which a trace asks for it.
        share: of requests that must be answered within the objective; 0.99 is the p99.
        spare_nodes: nodes that may be lost at a time; 1 for n-1.
        cores: of a node.
        memory_bytes: of a node; 0 for enough.
        price: of a core for an hour.
    """

    arrivals: Poisson | Trace
    rate_per_s: float
    slo_s: float
    rows: tuple[int, ...] = (1,)
    model: str = "model"
    share: float = 0.99
    spare_nodes: int = 0
    cores: int = 1
    memory_bytes: int = 0
    price: float = 0.0


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How a node is used.

    Args:
        workers: processes.
        lanes, threads: of each model in each worker.
        cores: of the node that it needs.
    """

    workers: int
    lanes: int
    threads: int
    cores: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the demand needs.

    Args:
        nodes: in all, the spare ones included.
        layout: of each.
        max_batch: rows of the largest batch.
        expected: what one node does in the usual case, when all nodes are there.
        degraded: the same when the spare nodes are lost; None where there are none.
        goodput_per_s: answers within the objective, of all nodes together, in the usual case.
        cores: of all nodes together.
        cost_per_million: of requests, at the price; 0 where there is none.
        binds: what to change first to need less.
        why: the same in a sentence.
        simulated: requests that were simulated to find it.
    """

    nodes: int
    layout: Layout
    max_batch: int
    expected: Outcome
    degraded: Outcome | None
    goodput_per_s: float
    cores: int
    cost_per_million: float
    binds: Binds
    why: str
    simulated: int


def make_plan(
    demand: Demand,
    measured: Measured,
    *,
    requests: int = _REQUESTS,
    told: Callable[[str], None] = lambda _: None,
) -> Plan:
    """The fewest nodes, and of a single one the fewest cores, with which the objective is kept.

    Args:
        demand: what is asked.
        measured: what the model takes on such a node.
        requests: to simulate of the answer; the more, the surer.
        told: hears of each step.

    Raises:
        FailedPrecondition: no number of nodes is enough; says why.
        NotFound, InvalidArgument: the trace cannot be read.
    """
    return _Search(demand, measured, requests, told).run()


class _Search:
    def __init__(self, demand: Demand, measured: Measured, requests: int, told: Callable[[str], None]) -> None:
        self._demand = demand
        self._measured = measured
        self._requests = requests
        self._known: dict[tuple[int, Layout, int], Outcome] = {}
        self._told = told
        self._simulated = 0

    def run(self) -> Plan:
        demand = self._demand
        layouts = self._layouts(demand.cores, demand.memory_bytes)
        if not layouts:
            needed = self._measured.memory_bytes
            raise FailedPrecondition(
                f"memory binds: one worker needs about {needed >> 20} MiB, a node has {demand.memory_bytes >> 20} MiB"
            )
        layouts = self._quick_enough(layouts)
        nodes, layout = self._fewest_nodes(layouts)
        if nodes == 1:
            layout = self._fewest_cores(layout)
        while not self._keeps(nodes, layout, self._requests):
            nodes, layout = nodes + 1, layouts[0] if nodes == 1 else layout
        total = nodes + demand.spare_nodes
        expected = self._simulate(total, layout, self._requests)
        binds, why = self._explain(layout)
        cores = total * layout.cores
        return Plan(
            nodes=total,
            layout=layout,
            max_batch=self._measured.max_batch,
            expected=expected,
            degraded=self._simulate(nodes, layout, self._requests) if demand.spare_nodes else None,
            goodput_per_s=demand.rate_per_s * expected.good_share,
            cores=cores,
            cost_per_million=cores * demand.price / (demand.rate_per_s * 3600) * 1e6,
            binds=binds,
            why=why,
            simulated=self._simulated,
        )

    def _layouts(self, cores: int, memory: int) -> list[Layout]:
        """Ways to use a node, the most promising first."""
        each = self._measured.memory_bytes
        most = memory // each if memory and each else cores
        found = {
            Layout(workers=workers, lanes=max(1, cores // (workers * threads)), threads=threads, cores=cores)
            for threads in self._measured.latencies
            if threads <= cores
            for workers in range(1, min(cores, most) + 1)
            if workers * threads <= cores
        }
        return sorted(found, key=lambda layout: (-self._capacity(layout), layout.workers, layout.threads))

    def _capacity(self, layout: Layout) -> float:
        """About how many requests per second a node can take."""
        return min(self._compute_per_s(layout, self._allowed_s()), self._loop_per_s(layout))

    def _allowed_s(self) -> float:
        """A batch may run for half of the objective: a request waits for the batch before its own."""
        return self._demand.slo_s / 2

    def _compute_per_s(self, layout: Layout, allowed_s: float) -> float:
        latency = self._measured.latencies[layout.threads]
        lanes = layout.workers * layout.lanes
        speed = min(1.0, layout.cores / (lanes * layout.threads))
        rows = self._best_rows(latency, allowed_s)
        return rows / latency.usual_s(rows) * lanes * speed / self._rows_per_request()

    def _best_rows(self, latency: Latency, allowed_s: float) -> int:
        """The batch with the most rows per second of those that do not take too long."""
        sizes = [rows for rows in range(1, self._measured.max_batch + 1) if latency.usual_s(rows) <= allowed_s]
        return max(sizes or [1], key=lambda rows: rows / latency.usual_s(rows))

    def _loop_per_s(self, layout: Layout) -> float:
        overheads, latency = self._measured.overheads, self._measured.latencies[layout.threads]
        rows = self._best_rows(latency, self._allowed_s())
        per_batch = 2 * (overheads.turn_s + overheads.handoff_s)
        each_s = overheads.decode_s + overheads.encode_s + per_batch * self._rows_per_request() / rows
        if self._is_inline(layout.threads):
            each_s += latency.usual_s(rows) / rows * self._rows_per_request()
        return layout.workers / each_s

    def _is_inline(self, threads: int) -> bool:
        latency = self._measured.latencies[threads]
        return self._measured.inline and latency.usual_s(1) * latency.cpu_share < self._measured.overheads.inline_s

    def _rows_per_request(self) -> float:
        return sum(self._demand.rows) / len(self._demand.rows)

    def _quick_enough(self, layouts: list[Layout]) -> list[Layout]:
        """Those with which a request that nothing disturbs is answered in time."""
        alone_s = {threads: self._alone_s(layouts, threads) for threads in {layout.threads for layout in layouts}}
        quick = [layout for layout in layouts if alone_s[layout.threads] <= self._demand.slo_s]
        if not quick:
            raise FailedPrecondition(
                f"the latency objective of {self._demand.slo_s * 1e3:g} ms is too tight: a request that nothing else "
                f"disturbs takes {min(alone_s.values()) * 1e3:.3g} ms at p99 on this machine; allow more, or make the "
                "model faster"
            )
        return quick

    def _alone_s(self, layouts: list[Layout], threads: int) -> float:
        layout = next(layout for layout in layouts if layout.threads == threads)
        rows = max(self._demand.rows)
        arrivals = Poisson(rate_per_s=0.005 / self._measured.latencies[threads].usual_s(rows))
        return self._run(arrivals, layout, self._requests // _ALONE, slo_s=0.0).p99_s

    def _fewest_nodes(self, layouts: list[Layout]) -> tuple[int, Layout]:
        rate = self._demand.rate_per_s
        nodes = max(1, math.ceil(rate / self._capacity(layouts[0]) * _NEAR))
        failed = 0
        while (layout := self._first_that_keeps(nodes, layouts)) is None:
            failed, nodes = nodes, max(nodes + 1, math.ceil(nodes * _GROWTH))
            if nodes > _MOST_NODES:
                raise FailedPrecondition(f"{_MOST_NODES} nodes are not enough for {rate:g} requests per second")
        while nodes - failed > 1:
            middle = (nodes + failed) // 2
            fits = self._first_that_keeps(middle, layouts)
            if fits is None:
                failed = middle
            else:
                nodes, layout = middle, fits
        return nodes, layout

    def _first_that_keeps(self, nodes: int, layouts: list[Layout]) -> Layout | None:
        return next((each for each in layouts[:_LAYOUTS] if self._keeps(nodes, each, self._requests // _SEARCH)), None)

    def _fewest_cores(self, enough: Layout) -> Layout:
        for cores in range(1, enough.cores):
            layout = self._first_that_keeps(1, self._layouts(cores, self._demand.memory_bytes))
            if layout is not None:
                return layout
        return enough

    def _keeps(self, nodes: int, layout: Layout, requests: int) -> bool:
        return self._simulate(nodes, layout, requests).good_share >= self._demand.share

    def _simulate(self, nodes: int, layout: Layout, requests: int) -> Outcome:
        """One of so many nodes."""
        known = self._known.get((nodes, layout, requests))
        if known is not None:
            return known
        arrivals = self._demand.arrivals
        if isinstance(arrivals, Poisson):
            share: Process = Poisson(rate_per_s=arrivals.rate_per_s / nodes)
        else:
            share = msgspec.structs.replace(arrivals, keep=nodes)
        outcome = self._run(share, layout, requests, slo_s=self._demand.slo_s)
        self._known[nodes, layout, requests] = outcome
        self._told(
            f"{nodes} nodes of {layout.workers} workers, {layout.lanes} lanes, {layout.threads} threads: "
            f"{outcome.good_share:.2%} in time"
        )
        return outcome

    def _run(self, arrivals: Process, layout: Layout, requests: int, *, slo_s: float) -> Outcome:
        measured = self._measured
        model = SimulatedModel(
            latency=measured.latencies[layout.threads],
            max_batch=measured.max_batch,
            lanes=layout.lanes,
            threads=layout.threads,
            slo_s=slo_s,
            merge=measured.merge,
            inline=measured.inline,
            row_bytes=measured.row_bytes,
        )
        scenario = Scenario(
            name="plan",
            requests=requests,
            seed=1,
            slo_s=self._demand.slo_s,
            models={self._demand.model: model},
            streams=(Stream(model=self._demand.model, arrivals=arrivals, rows=self._demand.rows),),
            fleet=Fleet(workers=layout.workers, cores=layout.cores, connections=64 * layout.workers),
            overheads=measured.overheads,
        )
        outcome = simulate(scenario)
        self._simulated += outcome.offered
        return outcome

    def _explain(self, layout: Layout) -> tuple[Binds, str]:
        measured, demand = self._measured, self._demand
        if self._capacity(layout) < _NEAR * self._capacity(self._layouts(layout.cores, 0)[0]):
            return "memory", f"a node has memory for {layout.workers} workers only, and {layout.cores} cores"
        compute, loop = self._compute_per_s(layout, self._allowed_s()), self._loop_per_s(layout)
        if not self._is_inline(layout.threads) and loop < compute:
            return "event loop", (
                f"the event loops take about {loop:.0f} requests per second, the model {compute:.0f}; more workers, or "
                "several rows in a request, would raise it"
            )
        unhurried = self._compute_per_s(layout, math.inf)
        latency = measured.latencies[layout.threads]
        rows = self._best_rows(latency, self._allowed_s())
        if compute < _NEAR * unhurried:
            larger = self._best_rows(latency, math.inf)
            return "latency objective", (
                f"batches of at most {rows} rows fit in half of {demand.slo_s * 1e3:g} ms; an objective of "
                f"{2 * latency.usual_s(larger) * 1e3:.3g} ms would allow {larger} rows, and {unhurried / compute:.1f} "
                "times the load"
            )
        where = "the event loop itself runs the model" if self._is_inline(layout.threads) else "lanes run the model"
        return "compute", (
            f"{where}: batches of {rows} rows take {latency.usual_s(rows) * 1e3:.3g} ms, about {compute:.0f} requests "
            "per second and node; a faster model or more cores would raise it"
        )


def thread_counts(cores: int) -> Iterator[int]:
    """Numbers of threads that are worth a measurement: powers of two up to the cores."""
    count = 1
    while count <= cores:
        yield count
        count *= 2
