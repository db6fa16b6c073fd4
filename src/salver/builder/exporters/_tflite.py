"""TensorFlow Lite files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from salver.backends import SessionOptions, find_backend, open_session
from salver.backends._litert import quantization_of
from salver.backends.apart import describe_judged, open_judged
from salver.backends.tensorflow_graph import convert_to_tflite, versions
from salver.builder import toolchains
from salver.builder.exporters.base import Exported, Exporter, ExportOptions, Precision, exported_model, no_route
from salver.builder.exporters.onnx_source import copy_blob, lay_out
from salver.builder.exporters.prove import probe_of, prove
from salver.builder.exporters.tensorflow_source import saved_model
from salver.builder.importers.base import Imported, ParityCertificate
from salver.builder.importers.parity import Run, batch_sizes_for, certify
from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import FailedPrecondition, ParityFailed, Unimplemented
from salver.core.model import Blob, Model
from salver.core.tensors import Signature
from salver.datasets import bind

_FORMATS: Final = ("keras", "savedmodel")
_FOR_TORCH: Final = "litert-torch"
_FOR_ONNX: Final = "onnx2tf"
_CALIBRATION_ROWS: Final = 256
_MOST_CHANGE: Final = 1.0  # |a-b| / (1 + |a|): more is no rounding
_LEAST_AGREEMENT: Final = 0.95
_MOST_SPREAD: Final = 0.1


class TfliteExporter(Exporter):
    """Writes ``.tflite`` files (https://ai.google.dev/edge/litert) of built-in operators alone.

    With precision ``int8`` inputs and outputs of floats become INT8, too; notes give scale and zero point. Precisions
    other than ``source`` change numbers on purpose: such a file is refused when its labels differ from the source's on
    more than 5 % of the rows, or its values by more than 10 % of their spread.
    """

    name = "tflite"
    format = "tflite"
    suffix = ".tflite"
    extra = "tensorflow"
    precisions = ("source", "float16", "dynamic", "int8")

    def route(self, imported: Imported) -> str:
        native = imported.native
        if native is not None and native.format == "tflite":
            return "the file as it is"
        if native is not None and native.format in _FORMATS:
            return "the SavedModel, converted by TensorFlow"
        tool = _tool(imported)
        if toolchains.find(tool) is None:
            raise no_route(
                imported,
                self.name,
                f"it takes {tool}, whose pins cannot live beside Salver's",
                f"install it apart with 'salver toolchain install {tool}' and say this again, or give the Keras model "
                "or SavedModel it was made from",
            )
        source = "the exported program" if tool == _FOR_TORCH else "the ONNX graph"
        return f"{source}, converted by the toolchain {tool}"

    def export(
        self, imported: Imported, output: Path, workdir: Path, data: Dataset | None, options: ExportOptions
    ) -> Exported:
        native = imported.native
        if native is not None and native.format in _FORMATS:
            folder = workdir / "saved"
            saved_model(native, folder, workdir)
            calibration = _calibration(native.signature, data) if options.precision == "int8" else None
            output.write_bytes(convert_to_tflite(folder, options.precision, calibration))
            return self._prove(imported, native, output, data, options, versions())
        if options.precision != "source":
            raise no_route(
                imported,
                self.name,
                f"only a Keras model or a SavedModel is written with precision '{options.precision}'",
                "export without --precision, or give the Keras model or SavedModel it was made from",
            )
        if native is not None and native.format == "tflite":
            copy_blob(native.blobs[0], output)
            return self._prove(imported, native, output, data, options, {})
        source = native if native is not None and _tool(imported) == _FOR_TORCH else imported.model
        file = workdir / f"source{source.path.suffix}"
        lay_out(source.blobs, file)
        try:
            tools = toolchains.convert(_tool(imported), file, output)
        except Unimplemented as error:
            raise no_route(imported, self.name, error.message, "export with --to onnx or --to ort") from error
        return self._prove(imported, source, output, data, options, tools)

    def _prove(
        self,
        imported: Imported,
        native: Model,
        output: Path,
        data: Dataset | None,
        options: ExportOptions,
        tools: Mapping[str, str],
    ) -> Exported:
        backend = find_backend(self.format)
        signature = describe_judged(self.format, Blob.of(output))
        tools = {**tools, **backend.versions()}
        source = imported.model
        made = exported_model(self, source, {output.name: output}, options, signature=signature, tools=tools)
        route = self.route(imported)
        if options.precision == "source":
            return Exported(model=made, parity=prove(native, made, data, options), route=route)
        scales = quantization_of(made.blobs[0])
        notes = tuple(
            f"'{name}' is an integer q: its value is {scale:.8g} * (q - {zero})"
            for name, (scale, zero) in scales.items()
        )
        parity = _judge(native, made, scales, data, options.precision)
        return Exported(model=made, parity=parity, route=f"{route}, precision {options.precision}", notes=notes)


def _tool(imported: Imported) -> str:
    """The toolchain that writes TensorFlow Lite of what was imported."""
    native = imported.native
    return _FOR_TORCH if native is not None and native.format == "pt2" else _FOR_ONNX


def _calibration(signature: Signature, data: Dataset | None) -> Iterator[dict[str, Array]]:
    if data is None:
        raise FailedPrecondition(
            "full int8 needs real examples, from which the ranges of all activations are taken: give them with --data"
        )
    for batch in islice(bind(data, signature).batches(1), _CALIBRATION_ROWS):
        yield dict(batch.inputs)


def _judge(
    native: Model, made: Model, scales: Mapping[str, tuple[float, int]], data: Dataset | None, precision: Precision
) -> ParityCertificate:
    """Compare a file whose numbers were changed on purpose, and refuse it where that changed its answers.

    Raises:
        ParityFailed: with the numbers.
    """
    with open_session(native, SessionOptions(optimize="none")) as original, open_judged(made) as quantized:
        probe, leading = probe_of(native.signature, original.run, data)
        run = _scaled(quantized.run, scales)
        parity = certify(
            original.run,
            run,
            probe,
            batch_sizes_for(probe.rows, leading.fixed) if leading.batched else (0,),
            described=f"{native.lineage[0].name if native.lineage else native.format}, as given",
            specs=native.signature.outputs,
            tolerance=_MOST_CHANGE,
            original_size=leading.fixed,
        )
        inputs = probe.cut(0, leading.fixed or probe.rows) if leading.batched else probe.inputs
        expected, given = original.run(inputs), run(inputs)
    for name, array in expected.items():
        _refuse_other_answers(name, array, np.asarray(given[name]), precision)
    return msgspec.structs.replace(parity, changed_by=(precision,))


def _refuse_other_answers(name: str, expected: Array, given: Array, precision: str) -> None:
    if expected.dtype.kind != "f":
        return
    a, b = expected.astype(np.float64), given.astype(np.float64)
    rows = len(a) if a.ndim else 1
    if a.ndim >= 2 and a.shape[-1] > 1:
        labels, others = a.argmax(-1), b.argmax(-1)
        agreement = float(np.mean(labels == others))
        classes, left = len(np.unique(labels)), len(np.unique(others))
        if agreement < _LEAST_AGREEMENT:
            raise ParityFailed(
                f"precision '{precision}': output '{name}' has the source's label on {agreement:.1%} of {rows} rows, "
                f"expected {_LEAST_AGREEMENT:.0%}; the source tells {classes} classes apart, the export {left}. Give "
                "more or better examples with --data, or take precision 'dynamic'"
            )
        return
    spread, change = float(a.std()), float(np.abs(a - b).mean())
    if change > _MOST_SPREAD * spread:
        raise ParityFailed(
            f"precision '{precision}': output '{name}' differs by {change:.3g} in the mean over {rows} rows, more than "
            f"{_MOST_SPREAD:.0%} of its spread of {spread:.3g}"
        )


def _scaled(run: Run, scales: Mapping[str, tuple[float, int]]) -> Run:
    """Run a file of integers on the source's floats."""

    def run_floats(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        given: dict[str, Any] = dict(inputs)
        for name in given.keys() & scales.keys():
            scale, zero = scales[name]
            given[name] = np.clip(np.round(inputs[name] / scale) + zero, -128, 127).astype(np.int8)
        outputs = dict(run(given))
        for name in outputs.keys() & scales.keys():
            scale, zero = scales[name]
            outputs[name] = ((outputs[name].astype(np.float32) - zero) * scale).astype(np.float32)
        return outputs

    return run_floats
