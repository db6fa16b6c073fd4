"""The crossing alone: a trained model in, a file in another format out, with the proof that it gives the same."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from salver.builder.events import BuildEvent, OnEvent
from salver.builder.exporters import export_model, find_exporter
from salver.builder.exporters.base import Exported, ExportOptions, Precision
from salver.builder.given import name_of, read_inputs, read_labels
from salver.builder.importers import load_model
from salver.builder.importers.base import ParityCertificate
from salver.bundle.archive import translate
from salver.core.tensors import TensorSpec
from salver.datasets import open_dataset


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion made.

    Args:
        path: the main file, or the folder.
        exported: the files, how they were made, and parity between them and the imported model.
        imported: parity between the source and the imported model.
    """

    path: Path
    exported: Exported
    imported: ParityCertificate


def convert(
    source: Any,
    to: str,
    output: Path | str | None = None,
    *,
    data: Any = None,
    label: str | None = None,
    labels: Sequence[str] | Path | str | None = None,
    inputs: Sequence[TensorSpec] | str = (),
    weights: Path | str | None = None,
    trust_pickle: bool = False,
    precision: Precision = "source",
    tolerance: float | None = None,
    on_event: OnEvent | None = None,
) -> Converted:
    """Convert a model and prove that the crossing changed nothing.

    Args:
        source: a model file, ``module:name``, or a model in memory.
        to: the format, a name in `salver.builder.exporters`.
        output: where the result is written, complete or not at all; without it ``<name><suffix>`` in this folder.
        data: examples to compare on and to calibrate with, anything `salver.datasets.open_dataset` takes; without them
            inputs are made up.
        label: name of the label column in ``data``.
        labels: class names, or a text file with one name per line.
        inputs: inputs of a source that does not say them: specs, or text such as ``x:float32[batch,3,224,224]``.
        weights: file of weights, for a source that is code.
        trust_pickle: run code from a pickled source.
        precision: in what the numbers are kept; see `ExportOptions`.
        tolerance: of parity; None takes what follows from datatype and depth.
        on_event: told of progress.

    Raises:
        UnknownName: no such format; lists the valid ones.
        Unimplemented: no clean route; names the one that exists.
        ParityFailed: the result gives other answers; nothing is written.
        SalverError: otherwise, with what was given, what was expected and what to do.
    """
    exporter = find_exporter(to, precision)
    tell = on_event or _ignore
    target = Path(output) if output is not None else Path(f"{name_of(source)}{exporter.suffix or '.' + exporter.name}")
    examples = open_dataset(data, label=label) if data is not None else None
    try:
        with tempfile.TemporaryDirectory(prefix="salver-convert-") as folder:
            tell(BuildEvent(stage="import", message="importing and checking parity", total=2))
            imported = load_model(
                source,
                data=examples,
                workdir=Path(folder),
                trust_pickle=trust_pickle,
                labels=read_labels(labels),
                tolerance=tolerance,
                inputs=read_inputs(inputs),
                weights=str(weights or ""),
            )
            tell(BuildEvent(stage="export", message=f"writing {target.name} and checking parity", done=1, total=2))
            options = ExportOptions(precision=precision, tolerance=tolerance)
            exported = export_model(imported, exporter, target, data=examples, options=options)
    except OSError as error:
        raise translate(error, Path(error.filename or tempfile.gettempdir())) from error
    return Converted(path=target, exported=exported, imported=imported.parity)


def _ignore(event: BuildEvent) -> None:
    del event
