"""TensorFlow and Keras behind a `Session`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from salver.backends.base import Backend, Session, SessionOptions
from salver.backends.keras_files import H5_MAGIC, ZIP_MAGIC
from salver.backends.laid_out import LaidOut
from salver.backends.tensorflow_graph import (
    MAIN,
    GraphFunction,
    devices,
    function_of,
    limit_threads,
    on_device,
    open_frozen,
    open_keras,
    open_saved_model,
    versions,
)
from salver.core.arrays import Array
from salver.core.errors import CorruptArtifact, FailedPrecondition, NotFound, UnknownName
from salver.core.model import Blob, Model
from salver.core.tensors import Signature


class TensorFlowBackend(Backend):
    """Runs SavedModels (their signature ``serving_default``, or the only one), frozen graphs and Keras files
    with TensorFlow (https://www.tensorflow.org)."""

    name = "tensorflow"
    formats = ("savedmodel", "keras", "graphdef")
    isolated = True

    def versions(self) -> dict[str, str]:
        return versions()

    def providers(self) -> tuple[str, ...]:
        return devices()

    def load(self, model: Model, options: SessionOptions) -> Session:
        present = self.providers()
        device = present[0] if options.provider == "auto" else options.provider
        if device not in present:
            raise UnknownName("execution provider", device, ("auto", *present))
        limit_threads(options.threads)
        with on_device(device):
            return TensorFlowSession(_open(model), model.signature)

    def describe(self, blob: Blob) -> Signature:
        if blob.name == MAIN and blob.is_whole_file:
            return open_saved_model(blob.path.parent).signature
        kind = "savedmodel" if blob.name == MAIN else "graphdef" if blob.name.endswith(".pb") else "keras"
        bare = Model(format=kind, signature=Signature(inputs=(), outputs=()), blobs=(blob,))
        return _open(bare).signature


class TensorFlowSession(Session):
    """A loaded TensorFlow function. TensorFlow itself allows concurrent runs."""

    def __init__(self, function: GraphFunction, signature: Signature) -> None:
        self._function: GraphFunction | None = function
        self._signature = signature

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        function = self._function
        if function is None:
            raise FailedPrecondition("the session is closed")
        return function.run(inputs, self._signature.output_names if outputs is None else outputs)

    def close(self) -> None:
        self._function = None


def _open(model: Model) -> GraphFunction:
    blobs = model.blobs
    names = [MAIN, *(blob.name for blob in blobs[1:])]
    if model.format == "keras":
        names = [f"model{_suffix(blobs[0])}"]
        if blobs[0].is_whole_file and blobs[0].path.suffix == names[0].removeprefix("model"):
            names = [blobs[0].path.name]
    if model.format == "graphdef":
        names = [blobs[0].name]
    files = LaidOut(dict(zip(names, blobs, strict=True)))
    try:
        if model.format == "graphdef":
            return open_frozen(files.folder / names[0])
        if model.format == "keras":
            return function_of(open_keras(files.folder / names[0], trusted=model.trusted))
        return open_saved_model(files.folder)
    finally:
        files.close()  # variables were read into memory


def _suffix(blob: Blob) -> str:
    if not blob.path.is_file():
        raise NotFound(f"no such model file: '{blob.path}'")
    with blob.path.open("rb") as file:
        file.seek(blob.offset)
        magic = file.read(len(H5_MAGIC))
    if magic.startswith(ZIP_MAGIC):
        return ".keras"
    if magic == H5_MAGIC:
        return ".h5"
    raise CorruptArtifact(f"'{blob.name}' is no Keras file: it begins neither as a .keras archive nor as HDF5")
