"""A framework's file or object -> `Model`, with its parity certificate."""

from __future__ import annotations

import functools
import shutil
import tempfile
import types
from pathlib import Path
from typing import Any, Final

import msgspec

from salver.builder.importers.base import Imported, Importer, ImportOptions, OutputParity, ParityCertificate
from salver.builder.importers.magic import name_by_content
from salver.builder.importers.named import find_named, is_named
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument, NotFound
from salver.core.registry import Family
from salver.core.tensors import TensorSpec
from salver.datasets import open_dataset

BUILTIN: Final = {
    "onnx": "salver.builder.importers._onnx:OnnxImporter",
    "sklearn": "salver.builder.importers._sklearn:SklearnImporter",
    "xgboost": "salver.builder.importers._xgboost:XgboostImporter",
    "lightgbm": "salver.builder.importers._lightgbm:LightgbmImporter",
    "catboost": "salver.builder.importers._catboost:CatboostImporter",
    "openvino": "salver.builder.importers._openvino:OpenvinoImporter",
    "jax": "salver.builder.importers._jax:JaxImporter",
    "python": "salver.builder.importers._python:PythonImporter",
    "keras": "salver.builder.importers._keras:KerasImporter",
    "savedmodel": "salver.builder.importers._savedmodel:SavedmodelImporter",
    "tflite": "salver.builder.importers._tflite:TfliteImporter",
    "torch": "salver.builder.importers._torch:TorchImporter",
}

IMPORTERS: Final[Family[type[Importer]]] = Family("importers", BUILTIN)

# What the built-ins read is known without loading them: a framework is imported only when it is needed.
_BY_SUFFIX: Final = {
    ".onnx": "onnx",
    ".skops": "sklearn",
    ".pkl": "sklearn",
    ".pickle": "sklearn",
    ".joblib": "sklearn",
    ".cloudpickle": "sklearn",
    ".dill": "sklearn",
    ".ubj": "xgboost",
    ".cbm": "catboost",
    ".xml": "openvino",
    ".jaxexport": "jax",
    ".stablehlo": "jax",
    ".py": "python",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".pb": "savedmodel",
    ".tflite": "tflite",
    ".pt2": "torch",
    ".pt": "torch",
    ".pth": "torch",
    ".jit": "torch",
    ".ckpt": "torch",
    ".safetensors": "torch",
}
_BY_MAIN_FILE: Final = {"saved_model.pb": "savedmodel", "model.py": "python"}
_FUNCTIONS: Final = (types.FunctionType, types.MethodType, functools.partial)  # of arrays: JAX traces them
_BY_MODULE: Final = {
    "onnx": "onnx",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "catboost": "catboost",
    "sklearn": "sklearn",
    "keras": "keras",
    "torch": "torch",
    "jax": "jax",
    "jaxlib": "jax",
    "flax": "jax",
}

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
    inputs: tuple[TensorSpec, ...] = (),
    weights: Path | str = "",
) -> Imported:
    """Import a trained model and prove that the import changed nothing.

    Args:
        source: a path (``.onnx .skops .pkl .pickle .joblib``), an ``onnx.ModelProto``, or a fitted scikit-learn
        estimator. data: examples for the parity check, anything `salver.datasets.open_dataset` takes; None makes
        synthetic ones. workdir: where the model's files are written; None makes a new temporary folder, which is the
        caller's to remove. trust_pickle: run the code of a pickle.
        labels: class names, in the order of the output's last dimension.
        tolerance: of the parity check; None takes that of `ImportOptions`.
        inputs: names, types and shapes of the inputs, for sources that do not say them.
        weights: file of weights, for a source that is code.

    Raises:
        NotFound, CorruptArtifact, Unimplemented, UntrustedPickle, MissingExtra, InvalidArgument: as they say.
        ParityFailed: original and import differ; names the worst output and input.
    """
    if isinstance(source, str):
        source = find_named(source) if is_named(source) else Path(source)
    if isinstance(source, Path) and not source.exists():
        raise NotFound(f"no such model file: '{source}'")
    folder = Path(tempfile.mkdtemp(prefix="salver-import-")) if workdir is None else workdir
    folder.mkdir(parents=True, exist_ok=True)
    options = ImportOptions(trust_pickle=trust_pickle, labels=tuple(labels), inputs=tuple(inputs), weights=str(weights))
    if tolerance is not None:
        options = msgspec.structs.replace(options, tolerance=tolerance)
    examples: Dataset | None = None if data is None else open_dataset(data)
    try:
        return _choose(source).load(source, folder, examples, options)
    except BaseException:
        if workdir is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _choose(source: Any) -> Importer:
    name = _by_path(source) if isinstance(source, Path) else _by_type(source)
    if name is not None:
        return IMPORTERS.get(name)()
    if isinstance(source, _FUNCTIONS):
        return IMPORTERS.get("jax")()
    for other in IMPORTERS.names():
        if other not in BUILTIN and (importer := IMPORTERS.get(other)()).recognizes(source):
            return importer
    given = f"'{source.name}'" if isinstance(source, Path) else f"a {type(source).__module__}.{type(source).__name__}"
    raise InvalidArgument(
        f"no importer reads {given}; expected a file ending in {', '.join(_BY_SUFFIX)}, "
        f"a folder with {' or '.join(_BY_MAIN_FILE)}, an "
        "onnx.ModelProto, a Keras model, or a fitted scikit-learn estimator"
    )


def _by_path(path: Path) -> str | None:
    if path.is_dir():
        return next((name for main, name in _BY_MAIN_FILE.items() if (path / main).is_file()), None)
    return _BY_SUFFIX.get(path.suffix.lower()) or name_by_content(path)


def _by_type(source: Any) -> str | None:
    for kind in (source if isinstance(source, type) else type(source)).__mro__:
        name = _BY_MODULE.get(kind.__module__.partition(".")[0])
        if name is not None:
            return name
    return None
