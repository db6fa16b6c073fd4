"""What a build found out, as tables for the terminal."""

from __future__ import annotations

from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from salver.evaluation.types import BuildRecord, CandidateRecord
from salver.report import words

_STYLES: Final = {
    "chosen": "bold green",
    "original": "bold",
    "accepted": "green",
    "rejected": "red",
    "undecided": "yellow",
    "failed": "red",
    "not applicable": "dim",
    "not certified": "dim",
}


def render_terminal(record: BuildRecord) -> RenderableType:
    """The table of verdicts, the reasons, and what was chosen and why; print it with a `rich.console.Console`."""
    return Group(candidate_table(record), _reasons(record), _choice(record))


def print_terminal(record: BuildRecord, console: Console | None = None) -> None:
    """Print `render_terminal`."""
    (console or Console()).print(render_terminal(record))


def candidate_table(record: BuildRecord) -> Table:
    """One row by candidate, with what was measured of it and its verdict."""
    metric = next((q.metric for c in record.candidates if (q := words.quality_of(c))), "quality")
    table = Table(header_style="dim", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("#", justify="right", style="dim")
    table.add_column("candidate", overflow="fold", min_width=10)
    table.add_column("verdict", no_wrap=True)
    for title in (f"{metric} drop", "speed-up", "p50", "smaller"):
        table.add_column(title, justify="right", no_wrap=True)
    for number, candidate in enumerate(record.candidates):
        word = words.verdict_word(record, candidate)
        style = _STYLES[word]
        name = Text(candidate.name, style="bold" if word in ("chosen", "original") else "")
        table.add_row(str(number), name, Text(word, style=style), *_measurements(candidate))
    return table


def _measurements(candidate: CandidateRecord) -> tuple[Text, Text, Text, Text]:
    quality, latency = words.quality_of(candidate), words.asked_latency(candidate)
    if candidate.origin == "baseline":
        value = words.show_value(quality, quality.baseline) if quality else words.DASH
        p50 = words.show_ms(latency.p50_ms) if latency else words.DASH
        size = words.show_bytes(candidate.evaluation.size_bytes) if candidate.evaluation else words.DASH
        return Text(value), Text(words.show_ratio(1.0)), Text(p50), Text(size)
    smaller = words.size_ratio(candidate.evaluation) if candidate.evaluation else None
    return (
        _with_interval(words.show_drop(quality), words.show_drop_interval(quality)) if quality else Text(words.DASH),
        _with_interval(words.show_ratio(latency.speedup), words.show_interval(latency.speedup_ci))
        if latency
        else Text(words.DASH),
        Text(words.show_ms(latency.p50_ms) if latency else words.DASH),
        Text(words.show_ratio(smaller) if smaller else words.DASH),
    )


def _with_interval(value: str, interval: str) -> Text:
    return Text.assemble(value, "\n", (interval, "dim"))


def _reasons(record: BuildRecord) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="dim")
    table.add_column(overflow="fold")
    for number, candidate in enumerate(record.candidates):
        if candidate.verdict.reason and candidate.origin != "baseline":
            table.add_row(str(number), Text(candidate.verdict.reason))
    return table


def _choice(record: BuildRecord) -> Panel:
    splits = ", ".join(f"{count:,} {role}" for role, count in record.splits.items())
    lines = [f"[bold]{escape(record.chosen)}[/bold]", *(escape(sentence) for sentence in record.why)]
    host = f"{record.host.cpu}, {record.host.cores} cores"
    lines.append(f"[dim]Examples: {splits}. Measured on {escape(host)} in {words.show_seconds(record.seconds)}.[/dim]")
    return Panel("\n".join(lines), title="Chosen", title_align="left", border_style="green", padding=(0, 1))
