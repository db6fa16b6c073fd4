"""The port of the `exporters` family: an imported model -> a file in another format, with its parity certificate."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from salver.builder.importers.base import Imported, ParityCertificate
from salver.core.config import Config
from salver.core.dataset import Dataset
from salver.core.errors import Unimplemented
from salver.core.model import Blob, Model, Step
from salver.core.tensors import Signature

Precision = Literal["source", "float16", "dynamic", "int8"]


class ExportOptions(Config, frozen=True, kw_only=True):
    """What a user may say about an export.

    Args:
        precision: in what the numbers are kept: ``source`` as they are, ``float16`` weights, ``dynamic`` for 8-bit
            weights, ``int8`` for 8-bit weights, activations, inputs and outputs, calibrated on the examples given.
        tolerance: largest absolute difference, relative to ``1 + |expected|``, that parity allows for float outputs;
            None takes what follows from datatype and depth of the graph (`salver.evaluation.tolerance`).
    """

    precision: Precision = "source"
    tolerance: float | None = None


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What an exporter gives.

    Args:
        model: the files written: the main one first, others by their path relative to its folder.
        parity: between the source and ``model``, each run by its own backend; None for weights alone, which nothing
            runs.
        route: how it was made, in one sentence.
        notes: facts a user should know.
    """

    model: Model
    parity: ParityCertificate | None
    route: str
    notes: tuple[str, ...] = ()


class Exporter(abc.ABC):
    """Writes one format. Instances hold no state. Deterministic: the same model and options give the same bytes, unless
    the format's own writer puts a time or an identifier in.

    Attributes:
        name: what ``--to`` takes.
        format: what `Model.format` says of the result; it names the backend that runs it.
        suffix: of the main file, ``.onnx``; empty for a format that is a folder.
        extra: the extra of Salver that the exporter needs; empty for none.
        precisions: those it can write, ``source`` first.
    """

    name: ClassVar[str]
    format: ClassVar[str]
    suffix: ClassVar[str]
    extra: ClassVar[str] = ""
    precisions: ClassVar[tuple[Precision, ...]] = ("source",)

    @abc.abstractmethod
    def route(self, imported: Imported) -> str:
        """How this model gets into this format, in one sentence. Cheap: nothing is converted, nothing heavy loaded.

        Raises:
            Unimplemented: there is no clean route; names the route that exists (`no_route`).
        """

    @abc.abstractmethod
    def export(
        self, imported: Imported, output: Path, workdir: Path, data: Dataset | None, options: ExportOptions
    ) -> Exported:
        """Write the model, load what was written with its backend, and compare (`prove`).

        Args:
            output: where the main file (or the folder) is written, in a folder that is new and empty: files that belong
                to it are written beside it, with names that begin with ``output.stem``, and nothing else. It is put in
                its place when this returns, so an exporter need not tidy up.
            workdir: an empty folder for what is needed on the way.
            data: examples for parity and calibration; None makes them up.

        Raises:
            Unimplemented: as `route`; or a part of the model that the format cannot hold, by name.
            ParityFailed: what was written gives other answers.
            FailedPrecondition: examples are needed to calibrate and there are none.
            OSError: as the operating system says it; the caller translates.
        """


def exported_model(
    exporter: Exporter,
    source: Model,
    files: Mapping[str, Path],
    options: ExportOptions,
    *,
    signature: Signature | None = None,
    tools: Mapping[str, str],
) -> Model:
    """The `Model` of what was written: the lineage of its source, and one more step.

    Args:
        files: name -> file, the main one first.
        signature: None when it is that of the source.
        tools: library -> version, of all that took part.
    """
    blobs = tuple(Blob.of(path, name) for name, path in files.items())
    step = Step(
        action="export",
        name=exporter.name,
        input_digest=source.blobs[0].digest,
        output_digest=blobs[0].digest,
        config=options.to_data(),
        tools=dict(tools),
    )
    return Model(
        format=exporter.format,
        signature=signature or source.signature,
        blobs=blobs,
        lineage=(*source.lineage, step),
        notes=source.notes,
    )


def no_route(imported: Imported, to: str, why: str, instead: str) -> Unimplemented:
    """The refusal of an export.

    Args:
        to: the exporter's name.
        why: what stands in the way.
        instead: the route that exists, as something the user can do: "export with --to onnx".
    """
    return Unimplemented(f"no clean route from {source_of(imported)} to '{to}': {why}; {instead}")


def source_of(imported: Imported) -> str:
    """What was imported, for messages: ``'digits.onnx' (onnx)``."""
    lineage = imported.model.lineage
    source = next((step.name for step in lineage if step.action == "source"), "the model")
    importer = next((step.name for step in lineage if step.action == "import"), imported.model.format)
    return f"'{source}' ({importer})"
