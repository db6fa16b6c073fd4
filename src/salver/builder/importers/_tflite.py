"""TensorFlow Lite files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from salver.backends import find_backend
from salver.backends.apart import describe_judged, open_judged
from salver.builder.importers import tensorflow_convert as converter
from salver.builder.importers.base import Imported, Importer, ImportOptions
from salver.builder.importers.ladder import (
    Rung,
    climb,
    copy_files,
    leading_of,
    probe_for,
    source_step,
)
from salver.builder.importers.native import native_model
from salver.builder.importers.onnx_finish import Draft, backend_versions
from salver.core.dataset import Dataset
from salver.core.errors import NotFound
from salver.core.model import Blob


class TfliteImporter(Importer):
    """Reads ``.tflite`` files (https://ai.google.dev/edge/litert): floats, 8-bit weights, and integers throughout.

    The original is the file, run by LiteRT in a process of its own, which a damaged file may end. Where the ONNX graph
    rounds integers otherwise than LiteRT's kernels do, the file itself is kept and run by LiteRT.
    """

    name = "tflite"

    def recognizes(self, source: Any) -> bool:
        return isinstance(source, Path) and source.suffix.lower() == ".tflite"

    def load(self, source: Any, workdir: Path, data: Dataset | None, options: ImportOptions) -> Imported:
        if not source.is_file():
            raise NotFound(f"no such model file: '{source}'")
        backend = find_backend("tflite")
        signature = describe_judged("tflite", Blob.of(source))
        (copy,) = copy_files(source.parent, [source.name], workdir).values()
        native = native_model("tflite", signature, {"model.tflite": copy.rename(workdir / "model.tflite")})
        with open_judged(native) as session:
            draft = Draft(
                importer=self.name,
                original=session.run,
                described=f"{source.name}, LiteRT {backend.versions()['ai-edge-litert']}",
                probe=probe_for(signature, session.run, data),
                leading=leading_of(signature),
                workdir=workdir,
                options=options,
                lineage=(source_step(source.name, {source.name: source}),),
                tools={**backend_versions(), **backend.versions(), **converter.versions()},
            )
            rungs = [
                Rung(f"tf2onnx at opset {opset}", partial(converter.convert_tflite, source, signature, workdir, opset))
                for opset in converter.OPSETS
            ]
            return climb(rungs, draft, native)
