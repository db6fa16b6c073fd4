"""A framework's file or object -> `Model`, with its parity certificate."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from salver.builder.importers.base import Imported, Importer, ImportOptions, OutputParity, ParityCertificate
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument, NotFound
from salver.core.registry import Family
from salver.datasets import open_dataset

BUILTIN: Final = {
    "onnx": "salver.builder.importers._onnx:OnnxImporter",
    "sklearn": "salver.builder.importers._sklearn:SklearnImporter",
}

IMPORTERS: Final[Family[type[Importer]]] = Family("importers", BUILTIN)

# What the built-ins read is known without loading them: a framework is imported only when it is needed.
_BY_SUFFIX: Final = {
    ".onnx": "onnx",
    ".skops": "sklearn",
    ".pkl": "sklearn",
    ".pickle": "sklearn",
    ".joblib": "sklearn",
}
_BY_MODULE: Final = {"onnx": "onnx", "sklearn": "sklearn"}

__all__ = [
    "BUILTIN",
    "IMPORTERS",
    "ImportOptions",
    "Imported",
    "Importer",
    "OutputParity",
    "ParityCertificate",
    "load_model",
]


def load_model(
    source: Any,
    *,
    data: Any = None,
    workdir: Path | None = None,
    trust_pickle: bool = False,
    labels: tuple[str, ...] = (),
    tolerance: float | None = None,
) -> Imported:
    """Import a trained model and prove that the import changed nothing.

    Args:
        source: a path (``.onnx .skops .pkl .pickle .joblib``), an ``onnx.ModelProto``, or a fitted scikit-learn
        estimator. data: examples for the parity check, anything `salver.datasets.open_dataset` takes; None makes
        synthetic ones. workdir: where the model's files are written; None makes a new temporary folder, which is the
        caller's to remove. trust_pickle: run the code of a pickle.
        labels: class names, in the order of the output's last dimension.
        tolerance: of the parity check; None takes that of `ImportOptions`.

    Raises:
        NotFound, CorruptArtifact, Unimplemented, UntrustedPickle, MissingExtra, InvalidArgument: as they say.
        ParityFailed: original and import differ; names the worst output and input.
    """
    if isinstance(source, str):
        source = Path(source)
    if isinstance(source, Path) and not source.is_file():
        raise NotFound(f"no such model file: '{source}'")
    folder = Path(tempfile.mkdtemp(prefix="salver-import-")) if workdir is None else workdir
    folder.mkdir(parents=True, exist_ok=True)
    options = ImportOptions(trust_pickle=trust_pickle, labels=tuple(labels))
    if tolerance is not None:
        options = ImportOptions(trust_pickle=trust_pickle, labels=tuple(labels), tolerance=tolerance)
    examples: Dataset | None = None if data is None else open_dataset(data)
    try:
        return _choose(source).load(source, folder, examples, options)
    except BaseException:
        if workdir is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _choose(source: Any) -> Importer:
    name = _BY_SUFFIX.get(source.suffix.lower()) if isinstance(source, Path) else _by_type(source)
    if name is not None:
        return IMPORTERS.get(name)()
    for other in IMPORTERS.names():
        if other not in BUILTIN and (importer := IMPORTERS.get(other)()).recognizes(source):
            return importer
    given = f"'{source.name}'" if isinstance(source, Path) else f"a {type(source).__module__}.{type(source).__name__}"
    raise InvalidArgument(
        f"no importer reads {given}; expected a file ending in {', '.join(_BY_SUFFIX)}, an onnx.ModelProto, or a "
        "fitted "
        "scikit-learn estimator"
    )


def _by_type(source: Any) -> str | None:
    for kind in type(source).__mro__:
        name = _BY_MODULE.get(kind.__module__.partition(".")[0])
        if name is not None:
            return name
    return None
