"""`salver inspect`."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.markup import escape
from rich.table import Table

import salver
from salver.cli._output import print_json, print_rich
from salver.core.errors import format_shape
from salver.report import words
from salver.report.terminal import render_terminal


def run(bundle: str, *, json: bool = False) -> None:
    """Print what a bundle holds."""
    opened = salver.Bundle.open(bundle)
    if json:
        print_json(describe(opened))
    else:
        print_rich(*_render(opened))


def describe(bundle: salver.Bundle) -> dict[str, Any]:
    """All that a bundle holds except tensors, as plain data."""
    return {
        "path": str(bundle.path),
        "name": bundle.name,
        "digest": bundle.digest,
        "tested": bundle.tested,
        "format": bundle.model.format,
        "signature": bundle.signature,
        "notes": bundle.model.notes,
        "sizes": bundle.sizes(),
        "digests": bundle.digests(),
        "lineage": bundle.lineage,
        "parity": bundle.parity,
        "golden_requests": len(bundle.golden),
        "signed_by": [envelope.keyid for envelope in bundle.signatures],
        "evaluation": msgspec.to_builtins(bundle.record),
        "card": bundle.card,
        "licence": bundle.licence,
    }


def _render(bundle: salver.Bundle) -> list[Any]:
    signers = ", ".join(envelope.keyid for envelope in bundle.signatures)
    state = "tested" if bundle.tested else f"NOT tested: {escape(bundle.reason)}"
    parts: list[Any] = [
        f"[bold]{escape(bundle.name)}[/bold]  {bundle.digest}",
        f"{state}; {len(bundle.golden)} golden requests; {f'signed by {signers}' if signers else 'not signed'}",
        _signature(bundle),
        _files(bundle),
        _lineage(bundle),
        *(f"note: {escape(note)}" for note in bundle.model.notes),
    ]
    if bundle.record is not None:
        parts.append(render_terminal(bundle.record))
    return parts


def _signature(bundle: salver.Bundle) -> Table:
    table = Table("", "name", "datatype", "shape", "labels", title="Signature", title_justify="left")
    for kind, specs in (("input", bundle.signature.inputs), ("output", bundle.signature.outputs)):
        for spec in specs:
            labels = ", ".join(spec.labels[:8]) + (", ..." if len(spec.labels) > 8 else "")
            table.add_row(kind, escape(spec.name), spec.datatype, escape(format_shape(spec.shape)), escape(labels))
    return table


def _files(bundle: salver.Bundle) -> Table:
    table = Table("file", "size", "digest", title="Content", title_justify="left")
    sizes = bundle.sizes()
    for name, digest in bundle.digests().items():
        table.add_row(escape(name), words.show_bytes(sizes[name]) if name in sizes else "", digest)
    return table


def _lineage(bundle: salver.Bundle) -> Table:
    table = Table("step", "name", "with", "result", title="Lineage", title_justify="left")
    for step in bundle.lineage:
        tools = ", ".join(f"{name} {version}" for name, version in step.tools.items())
        table.add_row(step.action, escape(step.name), escape(tools), step.output_digest[:19])
    return table
