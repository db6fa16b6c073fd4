"""What passes share that bring a model to another backend."""

from __future__ import annotations

from typing import Any

from salver.backends import SessionOptions, find_backend, open_session
from salver.builder.exporters.base import ExportOptions
from salver.builder.exporters.onnx_source import Arithmetic
from salver.builder.exporters.prove import prove
from salver.builder.passes import change_numbers
from salver.builder.passes.base import Pass, PassContext
from salver.core.errors import ParityFailed, PassNotApplicable
from salver.core.model import Blob, Model, Step


def move(source: Model, format: str, blobs: tuple[Blob, ...], made_by: Pass[Any], context: PassContext) -> Model:
    """The model that these files hold, in the place of an ONNX model: it loads, and gives the same answers within what
    rounding can do, unless a pass before this one was meant to change numbers; then quality judges it.

    Raises:
        PassNotApplicable: it gives other answers, or fails.
        SalverError: it cannot be loaded.
    """
    backend = find_backend(format)
    step = Step(
        action="pass",
        name=made_by.name,
        input_digest=source.blobs[0].digest,
        output_digest=blobs[0].digest,
        config=made_by.config.to_data(),
        tools=backend.versions(),
    )
    made = Model(
        format=format,
        signature=source.signature,
        blobs=blobs,
        lineage=(*source.lineage, step),
        notes=source.notes,
    )
    if change_numbers(step.name for step in source.lineage if step.action == "pass"):
        open_session(made, SessionOptions(threads=context.threads)).close()
        return made
    found, options = Arithmetic.of(source), ExportOptions(tolerance=context.tolerance)
    try:
        prove(source, made, context.calibration, options, depth=found.depth, computed_in=found.computed_in)
    except ParityFailed as error:
        raise PassNotApplicable(f"{backend.name} gives other answers: {error.message}") from error
    return made
