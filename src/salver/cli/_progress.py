"""What a build shows while it runs: one line per finished candidate, one bar for what is being tried."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from salver.builder.events import BuildEvent
from salver.evaluation.types import CandidateRecord
from salver.report import words

_MARKS: Final = {
    "accepted": "[green]✓[/green]",
    "rejected": "[red]✗[/red]",
    "undecided": "[yellow]?[/yellow]",
    "failed": "[red]![/red]",
    "not-applicable": "[dim]-[/dim]",
    "not-certified": "[dim]·[/dim]",
}


class BuildProgress:
    """A callable for ``salver.build(on_event=...)``, and a context in which the bar is shown.

    It writes to standard error, so that standard output holds the result alone; without a terminal there it writes the
    lines and leaves out the bar.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="dim"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None, left="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: BuildEvent) -> None:
        if event.finished is not None:
            self._progress.console.print(describe_candidate(event.finished), highlight=False, soft_wrap=True)
        self._progress.update(
            self._task,
            description=f"{event.stage}: {escape(event.message)}",
            completed=event.done,
            total=event.total or None,
            left=f"at most {event.left_s:.0f} s left" if event.left_s else "",
        )


def describe_candidate(record: CandidateRecord) -> str:
    """One line about a candidate, in rich's markup. While the search runs nothing is certified, which is no verdict."""
    figures = []
    quality, latency = words.quality_of(record), words.asked_latency(record)
    if latency is not None:
        figures.append(f"{words.show_ratio(latency.speedup)} as fast")
    smaller = words.size_ratio(record.evaluation) if record.evaluation else None
    if smaller is not None:
        figures.append(f"{words.show_ratio(smaller)} smaller")
    if quality is not None:
        figures.append(f"{quality.metric} {words.show_value(quality, quality.value)}")
    outcome, reason = record.verdict.outcome, record.verdict.reason
    verdict = "measured" if outcome == "not-certified" else f"{outcome}: {reason}" if reason else outcome
    parts = [f"[bold]{escape(record.name)}[/bold]", *figures, escape(verdict)]
    return f"{_MARKS[outcome]} " + "  ".join(parts)
