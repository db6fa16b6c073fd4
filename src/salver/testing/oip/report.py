"""The table that a person reads."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from salver.testing.oip.case import Case
from salver.testing.oip.runner import Report, totals
from salver.testing.oip.table import CASES


def show(report: Report, console: Console) -> None:
    """Print totals by client and part, then each failure with the case's demand and its source."""
    table = Table("client", "version", "passed / run", "parts with failures")
    for client, row in totals(report).items():
        passed, run = (sum(counts[i] for counts in row.values()) for i in (0, 1))
        lacking = [f"{group} {p}/{n}" for group, (p, n) in row.items() if p < n]
        table.add_row(client, report.clients[client], f"{passed} / {run}", ", ".join(lacking) or "none")
    console.print(table)
    by_id = {case.id: case for case in CASES}
    for outcome in report.failures:
        case = by_id[outcome.case]
        console.print(f"[bold red]failed[/] {outcome.client}: {outcome.case}", highlight=False)
        console.print(f"  demand: {case.says} [{case.source}]", markup=False, highlight=False)
        console.print(f"  got: {outcome.failure}", markup=False, highlight=False)
    for client, reason in report.absent.items():
        console.print(f"not run: {client}: {reason}", markup=False, highlight=False)
    console.print(f"{len(report.outcomes) - len(report.failures)} of {len(report.outcomes)} passed", highlight=False)


def show_cases(cases: tuple[Case, ...], console: Console) -> None:
    """Print the table of cases."""
    table = Table()
    for column in ("case", "group", "demand", "source"):
        table.add_column(column)
    for case in cases:
        table.add_row(case.id, case.group, case.says, case.source)
    console.print(table)
