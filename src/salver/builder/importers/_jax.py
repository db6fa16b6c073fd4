"""JAX functions and Flax models, and what `jax.export` wrote of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from salver.backends import SessionOptions
from salver.backends._jax import JaxBackend, export, run_function
from salver.builder.importers.base import Imported, Importer, ImportOptions
from salver.builder.importers.jax_onnx import rungs
from salver.builder.importers.ladder import climb, leading_of, probe_for, source_step
from salver.builder.importers.native import native_model
from salver.builder.importers.onnx_finish import Draft, backend_versions
from salver.builder.importers.parity import Run
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument, NotFound
from salver.core.model import Blob, Step, digest_bytes

_SUFFIXES: Final = (".stablehlo", ".jaxexport")
_FORMAT: Final = "stablehlo"
_FILE: Final = "model.stablehlo"
_ASK: Final = (
    "a JAX function does not say its inputs: give them in the order of its arguments, such as --input "
    "'x:float32[batch,784]' (Python: inputs='x:float32[batch,784]')"
)


class JaxImporter(Importer):
    """Reads functions of arrays (also bound Flax models, NNX modules and partials) by `jax.export`, for every size of
    the dimensions that are named in ``inputs``, and files that `jax.export` wrote
    (https://docs.jax.dev/en/latest/export/export.html).

    The original is the function, run by JAX operator by operator; of a file, the file as given. Where jax2onnx is
    installed and its graph gives the original's answers, the model becomes ONNX; otherwise XLA serves it.
    """

    name = "jax"

    def recognizes(self, source: Any) -> bool:
        if isinstance(source, Path):
            return source.suffix.lower() in _SUFFIXES
        return callable(source) and not isinstance(source, type)

    def load(self, source: Any, workdir: Path, data: Dataset | None, options: ImportOptions) -> Imported:
        if options.weights:
            raise InvalidArgument(
                "a JAX function holds its weights: load them where it is made, and leave --weights out"
            )
        function = None if isinstance(source, Path) else source
        content = _read(source, options) if isinstance(source, Path) else _export(source, options)
        path = workdir / _FILE
        path.write_bytes(content)
        backend = JaxBackend()
        signature = backend.describe(Blob.of(path, _name(source)))
        if function is not None:  # a dictionary has no order: that of the arguments counts
            order = {spec.name: i for i, spec in enumerate(options.inputs)}
            signature = type(signature)(
                inputs=tuple(sorted(signature.inputs, key=lambda s: order[s.name])), outputs=signature.outputs
            )
        native = native_model(_FORMAT, signature, {_FILE: path})
        with backend.load(native, SessionOptions()) as session:
            probe_for(signature, session.run, data)  # XLA compiles now; how long that takes says nothing of a run
            original: Run = session.run if function is None else run_function(function, options.inputs)
            draft = Draft(
                importer=self.name,
                original=original,
                described=f"{_name(source)}, jax {backend.versions()['jax']}",
                probe=probe_for(signature, session.run, data),
                leading=leading_of(signature),
                workdir=workdir,
                options=options,
                lineage=(_source_step(source, content),),
                tools={**backend_versions(), **backend.versions()},
            )
            return climb(rungs(function, options.inputs, draft.probe), draft, native)


def _read(source: Path, options: ImportOptions) -> bytes:
    if not source.is_file():
        raise NotFound(f"no such model file: '{source}'")
    if options.inputs:
        raise InvalidArgument(f"'{source.name}' says its own inputs; leave --input out")
    return source.read_bytes()


def _export(source: Callable[..., Any], options: ImportOptions) -> bytes:
    if not options.inputs:
        raise InvalidArgument(_ASK)
    return export(source, options.inputs)


def _name(source: Any) -> str:
    if isinstance(source, Path):
        return source.name
    return str(getattr(source, "__name__", "") or type(source).__name__)


def _source_step(source: Any, content: bytes) -> Step:
    if isinstance(source, Path):
        return source_step(source.name, {source.name: source})
    return Step(action="source", name=_name(source), output_digest=digest_bytes(content))
