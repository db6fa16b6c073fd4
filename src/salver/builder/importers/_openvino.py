"""OpenVINO IR, which its own runtime runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from salver.backends import SessionOptions
from salver.backends._openvino import OpenvinoBackend, read, read_signature
from salver.builder.importers.base import Imported, Importer, ImportOptions
from salver.builder.importers.ladder import (
    copy_files,
    leading_of,
    probe_for,
    source_step,
)
from salver.builder.importers.native import finish_native, native_model
from salver.builder.importers.onnx_finish import Draft
from salver.core.dataset import Dataset
from salver.core.errors import CorruptArtifact, InvalidArgument, NotFound
from salver.core.tensors import Signature

_HEAD_BYTES: Final = 1024


class OpenvinoImporter(Importer):
    """Reads IR files (https://docs.openvino.ai): ``NAME.xml``, and ``NAME.bin`` beside it.

    There is no way from IR back to ONNX: the model is served by OpenVINO, as it is. The original is the files as given,
    run by OpenVINO with one thread.
    """

    name = "openvino"

    def recognizes(self, source: Any) -> bool:
        return isinstance(source, Path) and source.suffix.lower() == ".xml"

    def load(self, source: Any, workdir: Path, data: Dataset | None, options: ImportOptions) -> Imported:
        names = _check(source, options)
        copies = copy_files(source.parent, names, workdir)
        placed = {f"model{path.suffix}": path.rename(workdir / f"model{path.suffix}") for path in copies.values()}
        signature = _labeled(read_signature(read(*placed.values())), options.labels)
        native = native_model(self.name, signature, placed)
        backend = OpenvinoBackend()
        given = msgspec.structs.replace(native, blobs=native_model(self.name, signature, _beside(source, names)).blobs)
        with backend.load(given, SessionOptions()) as session:
            draft = Draft(
                importer=self.name,
                original=session.run,
                described=f"{source.name} as given, OpenVINO {backend.versions()['openvino']}",
                probe=probe_for(signature, session.run, data),
                leading=leading_of(signature),
                workdir=workdir,
                options=options,
                lineage=(source_step(source.name, _beside(source, names)),),
                tools=backend.versions(),
            )
            return finish_native(native, draft, "there is no way from IR to ONNX")


def _check(source: Path, options: ImportOptions) -> list[str]:
    """Names of the files that belong together."""
    if not source.is_file():
        raise NotFound(f"no such model file: '{source}'")
    if options.inputs:
        raise InvalidArgument(f"'{source.name}' says its own inputs; leave --input out")
    with source.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if b"<net" not in head:
        raise CorruptArtifact(f"'{source}' is no OpenVINO IR: it does not begin with a <net> ({len(head)} bytes read)")
    weights = source.with_suffix(".bin")
    if not weights.is_file():
        raise NotFound(f"'{source}': its weights are missing: put '{weights.name}' beside it")
    return [source.name, weights.name]


def _beside(source: Path, names: list[str]) -> dict[str, Path]:
    return {name: source.parent / name for name in names}


def _labeled(signature: Signature, labels: tuple[str, ...]) -> Signature:
    if not labels:
        return signature
    outputs = tuple(
        msgspec.structs.replace(spec, labels=labels) if spec.shape and spec.shape[-1] == len(labels) else spec
        for spec in signature.outputs
    )
    if outputs == signature.outputs:
        shapes = ", ".join(f"'{s.name}' {list(s.shape)}" for s in outputs)
        raise InvalidArgument(f"{len(labels)} labels were given, and no output has as many classes: {shapes}")
    return Signature(inputs=signature.inputs, outputs=outputs)
