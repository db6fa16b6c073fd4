"""`salver convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.markup import escape
from rich.table import Table

import salver
from salver.builder.convert import Converted
from salver.builder.exporters import EXPORTERS
from salver.cli._output import print_json, print_rich
from salver.cli._progress import BuildProgress
from salver.core.errors import InvalidArgument
from salver.evaluation.parity import ParityCertificate

_DIGITS = 2


def run(source: str, *, to: str | None = None, output: Path | None = None, json: bool = False, **settings: Any) -> None:
    """Convert, showing progress, then print what was written and how near it is to the source."""
    if to is None:
        raise InvalidArgument(f"no format: name it with --to; valid: {', '.join(EXPORTERS.names())}")
    with BuildProgress() as progress:
        converted = salver.convert(source, to, output, on_event=progress, **settings)
    if json:
        print_json(describe(converted))
    else:
        print_rich(*render(converted))


def describe(converted: Converted) -> dict[str, Any]:
    """What ``--json`` writes."""
    exported = converted.exported
    return {
        "path": converted.path,
        "format": exported.model.format,
        "route": exported.route,
        "files": [{"path": b.path, "size_bytes": b.size_bytes, "digest": b.digest} for b in exported.model.blobs],
        "signature": exported.model.signature,
        "notes": exported.notes,
        "import_parity": _plain(converted.imported),
        "export_parity": None if exported.parity is None else _plain(exported.parity),
    }


def render(converted: Converted) -> list[Any]:
    """What a person sees: a table of differences, then the route, the notes and the files."""
    exported = converted.exported
    table = Table("crossing", "output", "max abs", "mean abs", "max rel", "same label", "batch sizes", box=None)
    source = exported.model.lineage[0].name if exported.model.lineage else "the source"
    _rows(table, f"{source} → imported", converted.imported)
    if exported.parity is not None:
        _rows(table, f"imported → {exported.model.format}", exported.parity)
    size = exported.model.size_bytes
    lines = [f"[dim]route[/dim] {escape(exported.route)}", *(f"[dim]note[/dim]  {escape(n)}" for n in exported.notes)]
    return [table, "", *lines, f"wrote {escape(str(converted.path))} ({size:,} bytes)"]


def _rows(table: Table, crossing: str, parity: ParityCertificate) -> None:
    sizes = ", ".join(str(size) for size in parity.batch_sizes) or "as it is"
    for found in parity.outputs:
        numbers = (f"{v:.{_DIGITS}g}" for v in (found.max_abs, found.mean_abs, found.max_rel))
        agreement = f"{found.label_agreement:.2%}"
        table.add_row(escape(crossing), escape(found.name), *numbers, agreement, f"{sizes} ({parity.inputs})")


def _plain(parity: ParityCertificate) -> ParityCertificate:
    """The certificate without the runs it keeps for replay."""
    return msgspec.structs.replace(parity, recorded=())
