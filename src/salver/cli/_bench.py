"""`salver bench`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from salver.cli._bench_input import parse_range, parse_rates, read_arrays
from salver.cli._bench_output import draw, render_result, render_scenario, render_sweep
from salver.cli._load_progress import LoadProgress
from salver.cli._output import print_json, print_rich, write_file
from salver.client.load import LoadPlan, LoadResult, Samples, measure
from salver.client.load.plan import WRONG
from salver.client.load.scenarios import run_scenario
from salver.client.load.search import find_capacity
from salver.core.errors import Internal, InvalidArgument
from salver.core.traces import Arrival, read_trace, write_trace

_DURATION_S: Final = 10.0
_CONCURRENCY: Final = 16

Stop = Callable[[], bool]


def run(
    url: str,
    *,
    model: str = "",
    rate: str = "",
    trace: Path | None = None,
    record: Path | None = None,
    scenario: str = "",
    duration_s: float | None = None,
    plot: Path | None = None,
    json: bool = False,
    **settings: Any,
) -> None:
    """Put load on a server and say what came of it; Ctrl-C ends the run, and what was measured so far is shown."""
    if plot is not None and plot.suffix not in (".html", ".svg"):
        raise InvalidArgument(f"--plot: got '{plot}', expected a name that ends in .html or .svg")
    if sum(map(bool, (rate, trace, settings.get("concurrency")))) > 1:
        raise InvalidArgument("--rate, --trace and --concurrency say when to send: give one of them")
    rates = [] if rate == "max" else parse_rates(rate)
    plan = _plan(url, model, rates, trace, duration_s, scenario == "server" or rate == "max", settings)
    with _stopping() as stop:
        if scenario:
            _run_scenario(scenario, plan, duration_s, plot, json, stop)
        elif rate == "max":
            _run_search(plan, plot, json, stop)
        elif len(rates) > 1:
            _run_sweep(plan, rates, plot, json, stop)
        else:
            _run_one(plan, record, plot, json, stop)


def _plan(
    url: str,
    model: str,
    rates: list[float],
    trace: Path | None,
    duration_s: float | None,
    has_rate: bool,
    settings: dict[str, Any],
) -> LoadPlan:
    name, _, version = model.partition("/")
    inputs, expected = settings.pop("inputs", None), settings.pop("expected", None)
    key_file, ca = settings.pop("api_key_file", None), settings.pop("ca", None)
    if expected is not None and inputs is None:
        raise InvalidArgument("--expected: its rows belong to those of --inputs, which is not given")
    if duration_s is None:
        duration_s = 0.0 if trace or "requests" in settings else _DURATION_S
    given: dict[str, Any] = {
        "max_requests": settings.pop("requests", 0),
        "concurrency": settings.pop("concurrency", 0),
        "warmup_s": min(settings.pop("warmup_s", 1.0), duration_s / 5),
        "int_range": parse_range(settings.pop("int_range", "0..1")),
        "check": settings.pop("check", False) or expected is not None,
        "slo_s": settings.pop("slo_s", 0.0) or None,
    }
    if trace is not None:
        given["trace"] = tuple(read_trace(trace))
    elif rates or has_rate:
        given["rate_per_s"] = rates[0] if rates else 1.0
    given["concurrency"] = given["concurrency"] or (0 if trace or rates or has_rate else _CONCURRENCY)
    return LoadPlan(
        url=url,
        model=name,
        version=version,
        duration_s=duration_s,
        inputs=read_arrays(inputs) if inputs is not None else {},
        expected=read_arrays(expected) if expected is not None else {},
        api_key=key_file.read_text(encoding="utf-8").strip() if key_file is not None else "",
        ca=str(ca or ""),
        **given,
        **settings,
    )


@contextmanager
def _stopping() -> Iterator[Stop]:
    """The first Ctrl-C is a wish to end, the second an interruption."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _run_one(plan: LoadPlan, record: Path | None, plot: Path | None, json: bool, stop: Stop) -> None:
    with LoadProgress(plan) as progress:
        result, samples = measure(plan, stop=stop, on_progress=progress)
    if record is not None:
        write_trace(record, plan.trace or _arrivals(plan, samples))
    _write_plot(plot, plan, [(result, samples)])
    if json:
        print_json(result)
    else:
        print_rich(*render_result(plan, result))
    _refuse_wrong(result)


def _arrivals(plan: LoadPlan, samples: Samples) -> list[Arrival]:
    return [
        Arrival(float(due_s), plan.rows or 1, plan.model, plan.priority, plan.timeout_s)
        for due_s in np.sort(samples.due_s)
    ]


def _run_sweep(plan: LoadPlan, rates: list[float], plot: Path | None, json: bool, stop: Stop) -> None:
    found: list[tuple[LoadResult, Samples]] = []
    for rate in rates:
        if stop():
            break
        at_rate = msgspec.structs.replace(plan, rate_per_s=rate)
        with LoadProgress(at_rate) as progress:
            found.append(measure(at_rate, stop=stop, on_progress=progress))
    results = [result for result, _ in found]
    _write_plot(plot, plan, found)
    if json:
        print_json(results)
    else:
        print_rich(*render_sweep(plan, results))
    for result in results:
        _refuse_wrong(result)


def _run_search(plan: LoadPlan, plot: Path | None, json: bool, stop: Stop) -> None:
    with LoadProgress(plan) as progress:
        best, results = find_capacity(plan, stop=stop, on_result=progress.tell)
    results = sorted(results, key=lambda result: result.offered_per_s)
    if json:
        print_json({"best": best, "runs": results})
    else:
        print_rich(*render_sweep(plan, results, best))
    if plot is not None:
        write_file(plot, draw(plot.suffix, plan, results, None).encode())


def _run_scenario(
    name: str, plan: LoadPlan, min_duration_s: float | None, plot: Path | None, json: bool, stop: Stop
) -> None:
    if plot is not None:
        raise InvalidArgument("--plot: a scenario has one figure and no plot")
    with LoadProgress(plan) as progress:
        result = run_scenario(name, plan, min_duration_s=min_duration_s, stop=stop, on_progress=progress)
    if json:
        print_json(result)
    else:
        print_rich(*render_scenario(result))


def _write_plot(plot: Path | None, plan: LoadPlan, found: list[tuple[LoadResult, Samples]]) -> None:
    if plot is not None and found:
        write_file(plot, draw(plot.suffix, plan, [result for result, _ in found], found[0][1]).encode())


def _refuse_wrong(result: LoadResult) -> None:
    wrong = result.outcomes.get(WRONG, 0)
    if wrong:
        raise Internal(f"{wrong} of {result.requests} answers of model '{result.model}' are wrong")
