"""`salver verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

import salver
from salver.bundle import VerifyReport
from salver.cli._output import print_json, print_rich
from salver.core.errors import CorruptArtifact
from salver.report import words


def run(bundle: str, *, key: Path | None = None, threads: int = 1, json: bool = False) -> None:
    """Check a bundle on this machine; golden requests that fail are an error, after the report."""
    report = salver.Bundle.open(bundle).verify(key, threads=threads)
    if json:
        print_json({"ok": report.ok, **msgspec.to_builtins(report)})
    else:
        print_rich(*_render(report))
    if not report.ok:
        raise CorruptArtifact(f"'{bundle}': {report.replay}")


def _render(report: VerifyReport) -> list[Any]:
    replayed = str(report.replay) if report.replay else "there are no golden requests"
    signature = f"key {report.verified_key}" if report.verified_key else ", ".join(report.signed_by) or "none"
    mark = "[green]✓[/green]" if report.ok else "[red]✗[/red]"
    return [
        f"{mark} [bold]{report.name}[/bold] {report.digest}",
        f"  content     {report.files} files, {words.show_bytes(report.size_bytes)}: every byte and digest is right",
        f"  answers     {replayed}",
        f"  signature   {signature}",
        f"  {report.assurance}",
    ]
