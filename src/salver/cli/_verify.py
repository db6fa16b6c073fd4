"""`salver verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.markup import escape

import salver
from salver.bundle import VerifyReport
from salver.cli._output import print_json, print_rich
from salver.core.errors import CorruptArtifact
from salver.report import words


def run(
    bundle: str,
    *,
    key: Path | None = None,
    threads: int = 1,
    tolerance: float | None = None,
    json: bool = False,
) -> None:
    """Check a bundle on this machine; golden requests or recorded runs that fail are an error, after the report."""
    report = salver.Bundle.open(bundle).verify(key, threads=threads, tolerance=tolerance)
    if json:
        print_json({"ok": report.ok, **msgspec.to_builtins(report)})
    else:
        print_rich(*_render(report))
    if not report.ok:
        raise CorruptArtifact(f"'{bundle}': {report.wrong}")


def _render(report: VerifyReport) -> list[Any]:
    replayed = str(report.replay) if report.replay else "there are no golden requests"
    signature = f"key {report.verified_key}" if report.verified_key else ", ".join(report.signed_by) or "none"
    mark = "[green]✓[/green]" if report.ok else "[red]✗[/red]"
    return [
        f"{mark} [bold]{report.name}[/bold] {report.digest}",
        f"  content     {report.files} files, {words.show_bytes(report.size_bytes)}: every byte and digest is right",
        f"  answers     {replayed}",
        *_parity(report),
        f"  signature   {signature}",
        f"  {report.assurance}",
    ]


def _parity(report: VerifyReport) -> list[str]:
    if report.parity is None:
        return ["  original    no run of the original was recorded"]
    outputs = [f"              {escape(o.name)}: {words.show_parity(o)}" for o in report.parity.outputs]
    return [f"  original    {escape(str(report.parity))}", *outputs]
