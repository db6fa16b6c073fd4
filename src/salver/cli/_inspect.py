"""`salver inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.markup import escape
from rich.table import Table

import salver
from salver.backends import find_backend
from salver.builder.graph_view import view_graph
from salver.builder.importers.onnx_files import external_files, read_onnx
from salver.bundle.recorded import describe_parity
from salver.cli._output import print_json, print_rich, write_file
from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, format_shape
from salver.core.model import Blob, Model
from salver.processing import pipeline_of, runs_code
from salver.report import words
from salver.report.graph import render_graph
from salver.report.terminal import render_terminal


def run(bundle: str, *, graph: bool = False, output: Path | None = None, json: bool = False) -> None:
    """Print what a bundle holds, or draw its graph.

    Raises:
        InvalidArgument: an output is named, and there is nothing to write.
    """
    if graph:
        draw(Path(bundle), output)
        return
    if output is not None:
        raise InvalidArgument("-o names the page that --graph writes; without --graph nothing is written")
    opened = salver.Bundle.open(bundle)
    if json:
        print_json(describe(opened))
    else:
        print_rich(*_render(opened))


def draw(path: Path, output: Path | None) -> None:
    """Write the page of a bundle's graph, or of a bare ONNX file's."""
    if path.suffix.lower() == ".onnx":
        blob = Blob.of(path)
        model = Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob, *_beside(path)))
        info = view_graph(model, path.name)
    else:
        opened = salver.Bundle.open(path)
        info = view_graph(opened.model, opened.name, _graph_inputs(opened))
    target = output or Path(f"{path.stem}.graph.html")
    write_file(target, render_graph(info).encode())
    print_rich(f"wrote {target}")


def _graph_inputs(bundle: salver.Bundle) -> list[dict[str, Array]]:
    """The golden requests as the graph takes them; none where only code that came with it makes them."""
    given = [request.inputs for request in bundle.golden]
    if bundle.model.processing is None:
        return given
    if runs_code(bundle.model.processing):
        return []
    pipeline = pipeline_of(bundle.model)
    return [pipeline.run_before(inputs)[0] for inputs in given]


def _beside(path: Path) -> tuple[Blob, ...]:
    """The external data of an ONNX file."""
    return tuple(Blob.of(file, name) for name, file in external_files(read_onnx(path), path.parent).items())


def describe(bundle: salver.Bundle) -> dict[str, Any]:
    """All that a bundle holds except tensors, as plain data."""
    return {
        "path": str(bundle.path),
        "name": bundle.name,
        "digest": bundle.digest,
        "tested": bundle.tested,
        "format": bundle.model.format,
        "signature": bundle.signature,
        "processing": _steps(bundle),
        "notes": bundle.model.notes,
        "sizes": bundle.sizes(),
        "digests": bundle.digests(),
        "lineage": bundle.lineage,
        "parity": describe_parity(bundle.parity),
        "golden_requests": len(bundle.golden),
        "signed_by": [envelope.keyid for envelope in bundle.signatures],
        "evaluation": msgspec.to_builtins(bundle.record),
        "card": bundle.card,
        "licence": bundle.licence,
    }


def _steps(bundle: salver.Bundle) -> list[str]:
    """Names of the steps in order, the model among them; none where there are no steps."""
    processing = bundle.model.processing
    if processing is None:
        return []
    return [*(str(s["step"]) for s in processing.before), "model", *(str(s["step"]) for s in processing.after)]


def _render(bundle: salver.Bundle) -> list[Any]:
    signers = ", ".join(envelope.keyid for envelope in bundle.signatures)
    state = "tested" if bundle.tested else f"NOT tested: {escape(bundle.reason)}"
    parts: list[Any] = [
        f"[bold]{escape(bundle.name)}[/bold]  {bundle.digest}",
        f"{state}; {len(bundle.golden)} golden requests; {f'signed by {signers}' if signers else 'not signed'}",
        _signature(bundle),
        *([f"steps: {' → '.join(_steps(bundle))}"] if _steps(bundle) else []),
        _files(bundle),
        _lineage(bundle),
        *_parity(bundle),
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


def _parity(bundle: salver.Bundle) -> list[Any]:
    certificate = bundle.parity
    if certificate is None:
        return []
    table = Table("output", "difference from the original", title="Parity", title_justify="left")
    for output in certificate.outputs:
        table.add_row(escape(output.name), words.show_parity(output))
    told = words.tell_parity(certificate)
    return [table, *(escape(line) for line in told)]


def _lineage(bundle: salver.Bundle) -> Table:
    table = Table("step", "name", "with", "result", title="Lineage", title_justify="left")
    for step in bundle.lineage:
        tools = ", ".join(f"{name} {version}" for name, version in step.tools.items())
        table.add_row(step.action, escape(step.name), escape(tools), step.output_digest[:19])
    return table
