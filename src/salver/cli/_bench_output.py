"""How `salver bench` shows what it measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from salver.client.load import LoadPlan, LoadResult, Samples
from salver.client.load.plan import OK, percentiles
from salver.client.load.scenarios import ScenarioResult
from salver.report.lines import Axis, Series, draw_lines, render_plots, standalone

_PERCENTILES: Final = ("p50", "p90", "p95", "p99", "p99_9")
_SHARES: Final = (0.0, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 0.9995, 0.9999)


def render_result(plan: LoadPlan, result: LoadResult) -> list[RenderableType]:
    """One run, for a person."""
    rows = [
        ("load", _arrivals(plan)),
        ("requests", _outcomes(result)),
        ("throughput", f"{result.throughput_per_s:,.1f}/s" + _rows(result)),
    ]
    if result.goodput_per_s is not None and result.slo_s is not None:
        share = f"{result.within_slo:.2%} of requests within {result.slo_s * 1e3:g} ms"
        rows.append(("goodput", f"{result.goodput_per_s:,.1f}/s, {share}"))
    rows.append(("latency", _latency(result)))
    if result.retry_after:
        rows.append(
            ("refused", f"{result.retry_after} with a time to try again, {result.retry_after_mean_s:.2f} s on average")
        )
    if result.server_cpu_us is not None:
        rows.append(
            ("server", f"{result.server_cpu_us:,.1f} µs of CPU per request, process {plan.pid} and descendants")
        )
    rows.append(("generator", _generator(result)))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for name, text in rows:
        table.add_row(name, escape(text))
    found: list[RenderableType] = [
        f"[bold]{escape(result.model)}[/bold] at {escape(result.url)} ({result.wire})",
        table,
    ]
    if result.generator.is_bottleneck:
        found.append(f"[yellow]The load generator was the bottleneck: {escape(result.generator.why)}[/yellow]")
    return found


def _arrivals(plan: LoadPlan) -> str:
    if plan.trace:
        return f"{len(plan.trace)} recorded arrivals"
    if plan.concurrency:
        return f"closed loop, {plan.concurrency} requests in flight"
    return f"open loop, {plan.rate_per_s:g}/s, {plan.spacing}"


def _outcomes(result: LoadResult) -> str:
    failed = [f"{count} {name}" for name, count in result.outcomes.items() if name != OK]
    return f"{result.requests} in {result.window_s:.1f} s, {result.ok} answered" + (
        f"; {', '.join(failed)}" if failed else ""
    )


def _rows(result: LoadResult) -> str:
    return f" ({result.rows_per_s:,.1f} rows/s)" if result.rows_per_s != result.throughput_per_s else ""


def _latency(result: LoadResult) -> str:
    latency = result.latency
    if latency is None:
        return "nothing was answered"
    named = [f"{name.replace('_', '.')} {show_ms(getattr(latency, name))}" for name in _PERCENTILES]
    return ", ".join([*named, f"max {show_ms(latency.max)}"])


def _generator(result: LoadResult) -> str:
    own = result.generator
    text = f"{own.cpu_us:.1f} µs of CPU per request, {own.connections} connections"
    if own.late_p99_ms:
        text += f", late by {show_ms(own.late_p50_ms)} (p50), {show_ms(own.late_p99_ms)} (p99)"
    return text + (f", {own.waited} requests waited for a connection" if own.waited else "")


def show_ms(value: float) -> str:
    """Milliseconds to three digits."""
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def render_sweep(plan: LoadPlan, results: Sequence[LoadResult], best: LoadResult | None = None) -> list[RenderableType]:
    """Several runs, one a row."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("offered", "answered", "goodput", "in SLO", "p50", "p99", "p99.9", "failed", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        latency = result.latency
        table.add_row(
            f"{result.offered_per_s:,.0f}",
            f"{result.throughput_per_s:,.0f}",
            f"{result.goodput_per_s:,.0f}" if result.goodput_per_s is not None else "",
            f"{result.within_slo:.1%}" if result.within_slo is not None else "",
            *(f"{value:.3g}" for value in (latency.p50, latency.p99, latency.p99_9)) if latency else ("", "", ""),
            str(result.failed or ""),
            _trouble(result),
            style="bold" if result is best else "",
        )
    first = results[0] if results else None
    title = (
        f"[bold]{escape(first.model)}[/bold] at {escape(first.url)} ({first.wire})" if first else "nothing was measured"
    )
    found: list[RenderableType] = [f"{title}: requests per second, latencies in ms", table]
    troubled = next((result.generator for result in results if result.generator.is_bottleneck), None)
    if troubled is not None:
        found.append(f"[yellow]The load generator was a bottleneck, at first: {escape(troubled.why)}[/yellow]")
    if best is not None and plan.slo_s is not None:
        limit, rate = f"{plan.slo_s * 1e3:g} ms", f"[bold]{best.offered_per_s:,.0f}/s[/bold]"
        found.append(f"99 % of requests are answered within {limit} up to {rate}")
    return found


def _trouble(result: LoadResult) -> str:
    """What the generator's own doing is."""
    own = result.generator
    if not own.is_bottleneck:
        return ""
    return "[yellow]late[/yellow]" if own.late_p99_ms else "[yellow]busy[/yellow]"


def render_scenario(result: ScenarioResult) -> list[RenderableType]:
    """A scenario's figure, and whether the run keeps its rules."""
    value = "none" if result.value is None else f"{result.value:,.4g} {result.unit}"
    lines: list[RenderableType] = [
        f"[bold]{result.scenario}[/bold]: {result.metric}: [bold]{value}[/bold]",
        f"  {escape(_outcomes(result.load))}",
        f"  latency {escape(_latency(result.load))}",
    ]
    if result.is_valid:
        lines.append("  [green]the run keeps the scenario's rules[/green]; it is no MLPerf result, which is reviewed")
    else:
        lines.append("  [yellow]the run does not keep the scenario's rules:[/yellow]")
        lines += [f"    {escape(why)}" for why in result.why]
    return lines


def draw(suffix: str, plan: LoadPlan, results: Sequence[LoadResult], samples: Samples | None) -> str:
    """The plots: latency by percentile of one run, latency and goodput by rate of several."""
    if len(results) == 1 and samples is not None:
        plots = [("Latency by percentile", _by_percentile(plan, samples))]
    else:
        plots = [("Latency by rate", _by_rate(plan, results)), ("Answers by rate", _goodput(results))]
    if suffix == ".svg":
        return standalone(plots[0][1])
    first = results[0]
    return render_plots(f"{first.model} at {first.url} ({first.wire})", plots)


def _by_percentile(plan: LoadPlan, samples: Samples) -> str:
    counted = samples.latency_s[samples.is_ok & (samples.due_s >= plan.warmup_s)]
    shares = [share for share in _SHARES if share < 1 - 1 / max(len(counted), 2)]
    values: list[float] = (percentiles(counted, tuple(shares)) * 1e3).tolist() if len(counted) else []
    # Nines are equally far from each other: 90 %, 99 %, 99.9 %.
    points = tuple((float(-np.log10(1 - share)), value) for share, value in zip(shares, values, strict=False))
    ticks = tuple(
        (float(-np.log10(1 - s)), f"{s:.4%}".rstrip("0%").rstrip(".") + " %") for s in (0.5, 0.9, 0.99, 0.999)
    )
    slo_ms = plan.slo_s * 1e3 if plan.slo_s is not None else None
    y = Axis(label="latency (ms)", limit=slo_ms, limit_label=f"objective: {slo_ms:g} ms" if slo_ms else "", is_log=True)
    return draw_lines("Latency by percentile", Axis(label="percentile", ticks=ticks), y, [Series("latency", points)])


def _by_rate(plan: LoadPlan, results: Sequence[LoadResult]) -> str:
    known = [(result.offered_per_s, result.latency) for result in results if result.latency is not None]
    series = [
        Series(name, tuple((rate, float(getattr(latency, name))) for rate, latency in known))
        for name in ("p50", "p95", "p99")
    ]
    slo_ms = plan.slo_s * 1e3 if plan.slo_s is not None else None
    y = Axis(label="latency (ms)", is_log=True, limit=slo_ms, limit_label=f"objective: {slo_ms:g} ms" if slo_ms else "")
    return draw_lines("Latency by rate", Axis(label="offered (requests/s)"), y, series)


def _goodput(results: Sequence[LoadResult]) -> str:
    series = [Series("answered", tuple((r.offered_per_s, r.throughput_per_s) for r in results))]
    if any(result.goodput_per_s is not None for result in results):
        good = tuple((r.offered_per_s, r.goodput_per_s) for r in results if r.goodput_per_s is not None)
        series.append(Series("goodput", good))
    x, y = Axis(label="offered (requests/s)"), Axis(label="per second")
    return draw_lines("Answers by rate", x, y, series)
