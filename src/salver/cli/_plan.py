"""`salver plan`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from salver.cli._bench_input import parse_rates
from salver.cli._output import print_json, print_rich
from salver.core.errors import InvalidArgument
from salver.core.traces import read_trace
from salver.report import words
from salver.server.engine.repository import open_model
from salver.server.planning.ledger import Outcome
from salver.server.planning.measure import Measured, machine_bytes, machine_cores, measure
from salver.server.planning.plan import Demand, Plan, make_plan, thread_counts
from salver.server.planning.scenario import Poisson, Trace

_AVAILABILITY: Final = re.compile(r"n(?:-(\d{1,3}))?")


def run(
    *,
    bundle: Path | None = None,
    rate: str = "",
    trace: Path | None = None,
    slo_s: float = 0.0,
    rows: int = 1,
    availability: str = "n",
    cores: int = 0,
    price: str = "",
    json: bool = False,
) -> None:
    """Measure the bundle on this machine, and print what the load needs."""
    if bundle is None or not slo_s or not (rate or trace):
        raise InvalidArgument("plan needs --bundle, --slo and --rate or --trace; see 'salver plan --help'")
    if rows < 1:
        raise InvalidArgument(f"--rows: got {rows}, expected 1 or more")
    here = machine_cores()
    opened = open_model(bundle, bundle.stem)
    arrivals, rate_per_s = _arrivals(rate, trace)
    demand = Demand(
        arrivals=arrivals,
        rate_per_s=rate_per_s,
        slo_s=slo_s,
        rows=(rows,),
        model=opened.name,
        spare_nodes=_spare(availability),
        cores=cores or here,
        memory_bytes=machine_bytes(),
        price=_price(price),
    )
    measured = measure(opened, list(thread_counts(min(demand.cores, here))))
    plan = make_plan(demand, measured)
    if json:
        print_json({"demand": demand, "measured": measured, "plan": plan})
    else:
        print_rich(*render(demand, measured, plan, str(bundle)))


def _arrivals(rate: str, trace: Path | None) -> tuple[Poisson | Trace, float]:
    """Arrivals of the whole load, and their mean rate. With both a rate and a trace, the trace is replayed faster or
    slower."""
    rates = parse_rates(rate)
    if len(rates) > 1:
        raise InvalidArgument(f"--rate: got '{rate}', expected one rate, such as 20000/s")
    if trace is None:
        return Poisson(rate_per_s=rates[0]), rates[0]
    count, last_s = 0, 0.0
    for arrival in read_trace(trace):
        count, last_s = count + 1, arrival.at_s
    if not last_s:
        raise InvalidArgument(f"{trace}: all {count} requests come at once; expected a trace that lasts some time")
    own = count / last_s
    speed = rates[0] / own if rates else 1.0
    return Trace(path=str(trace), speed=speed), own * speed


def _spare(text: str) -> int:
    found = _AVAILABILITY.fullmatch(text)
    if found is None:
        raise InvalidArgument(
            f"--availability: got '{text}', expected n, or n-1 to keep the objective when a node is lost"
        )
    return int(found[1] or 0)


def _price(text: str) -> float:
    try:
        price = float(text or "0")
    except ValueError:
        price = -1.0
    if not 0 <= price < 1e9:
        raise InvalidArgument(f"--price: got '{text}', expected what a core costs for an hour, such as 0.04")
    return price


def render(demand: Demand, measured: Measured, plan: Plan, bundle: str) -> list[Any]:
    """What a person reads."""
    layout = plan.layout
    spare = f", of which {demand.spare_nodes} may be lost" if demand.spare_nodes else ""
    table = Table("", "", show_header=False, title="Plan", title_justify="left")
    table.add_row("nodes", f"{plan.nodes}{spare}")
    table.add_row("cores", f"{layout.cores} of each node, {plan.cores} in all")
    table.add_row("workers", f"{layout.workers} of each node")
    table.add_row("lanes, threads", f"{layout.lanes} lanes of {layout.threads} threads in each worker")
    table.add_row("goodput", f"{plan.goodput_per_s:.0f} of {demand.rate_per_s:.0f} requests per second in time")
    _add_outcome(table, "expected", plan.expected)
    if plan.degraded is not None:
        _add_outcome(table, f"{demand.spare_nodes} lost", plan.degraded)
    if demand.price:
        table.add_row("cost", f"{plan.cost_per_million:.4g} per million requests, at {demand.price:g} per core-hour")
    table.add_row("binds", f"{plan.binds}: {escape(plan.why)}")
    serve = f"salver serve {bundle} --workers {layout.workers} --lanes {layout.lanes} --threads {layout.threads}"
    table.add_row("serve with", escape(f"{serve} --max-batch {plan.max_batch} --slo {_duration(demand.slo_s)}"))
    return [_latencies(measured), table, *_notes(measured, plan)]


def _duration(seconds: float) -> str:
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1e3:g}ms"


def _add_outcome(table: Table, name: str, outcome: Outcome) -> None:
    latencies = f"p50 {words.show_ms(outcome.p50_s * 1e3)}, p99 {words.show_ms(outcome.p99_s * 1e3)}"
    busy = f"cores {outcome.cores_busy:.0%} busy, event loop {outcome.loop_busy:.0%}"
    table.add_row(name, f"{latencies}, {outcome.good_share:.2%} in time; {busy}; {outcome.batch_rows:.1f} rows a batch")


def _latencies(measured: Measured) -> Table:
    first = next(iter(measured.latencies.values()))
    sizes = [rows for rows, _ in first.table]
    table = Table("threads", *(f"{rows} rows" for rows in sizes), title="Measured here", title_justify="left")
    for threads, latency in measured.latencies.items():
        table.add_row(str(threads), *(words.show_ms(seconds * 1e3) for _, seconds in latency.table))
    return table


def _notes(measured: Measured, plan: Plan) -> list[str]:
    overheads = measured.overheads
    each_us = (overheads.decode_s + overheads.encode_s) * 1e6
    notes = [f"An event loop spends {each_us:.0f} µs on a request. {plan.simulated} requests were simulated."]
    if not measured.merge:
        notes.append(f"Requests are not merged: {escape(measured.merge_reason)}.")
    return notes
