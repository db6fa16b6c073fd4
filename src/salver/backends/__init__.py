"""Ways to run a model: one table, one `Session`."""

from __future__ import annotations

from typing import Final

from salver.backends.base import Backend, Session, SessionOptions
from salver.core.errors import Unimplemented
from salver.core.model import Model
from salver.core.registry import Family

BUILTIN: Final = {
    "onnxruntime": "salver.backends._onnxruntime:OnnxRuntimeBackend",
    "torch": "salver.backends._torch:TorchBackend",
    "openvino": "salver.backends._openvino:OpenvinoBackend",
    "jax": "salver.backends._jax:JaxBackend",
    "sklearn": "salver.backends._sklearn:SklearnBackend",
    "xgboost": "salver.backends._xgboost:XgboostBackend",
    "lightgbm": "salver.backends._lightgbm:LightgbmBackend",
    "catboost": "salver.backends._catboost:CatboostBackend",
    "python": "salver.backends._python:PythonBackend",
    "tensorflow": "salver.backends._tensorflow:TensorFlowBackend",
    "litert": "salver.backends._litert:LitertBackend",
}

# What the built-ins run is known without loading them: a framework is imported only when it is needed.
_BY_FORMAT: Final = {
    "onnx": "onnxruntime",
    "ort": "onnxruntime",
    "pt2": "torch",
    "torchscript": "torch",
    "openvino": "openvino",
    "stablehlo": "jax",
    "sklearn": "sklearn",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "catboost": "catboost",
    "python": "python",
    "savedmodel": "tensorflow",
    "keras": "tensorflow",
    "graphdef": "tensorflow",
    "tflite": "litert",
}

# Made for serving: their models may share a process with others (`Backend.isolated`).
_TOGETHER: Final = frozenset({"onnxruntime", "openvino"})

BACKENDS: Final[Family[type[Backend]]] = Family("backends", BUILTIN)

__all__ = [
    "BACKENDS",
    "BUILTIN",
    "Backend",
    "Session",
    "SessionOptions",
    "find_backend",
    "formats_of",
    "open_session",
    "runs_apart",
]


def find_backend(format: str) -> Backend:
    """The backend that runs a format: the built-in one, else the first plug-in.

    Raises:
        Unimplemented: none does.
        MissingExtra: it needs an optional library.
    """
    if format in _BY_FORMAT:
        return BACKENDS.get(_BY_FORMAT[format])()
    for name in BACKENDS:
        if name not in BUILTIN and format in (backend := BACKENDS.get(name)()).formats:
            return backend
    raise Unimplemented(f"no backend runs format '{format}'; installed backends: {', '.join(BACKENDS.names())}")


def formats_of(name: str) -> tuple[str, ...]:
    """The formats that a backend runs; no built-in is loaded to tell.

    Raises:
        UnknownName: there is no such backend.
        MissingExtra: a plug-in needs an optional library.
    """
    if name in BUILTIN:
        return tuple(format for format, backend in _BY_FORMAT.items() if backend == name)
    return BACKENDS.get(name)().formats


def runs_apart(format: str) -> bool:
    """Whether a server gives models of a format a process of their own (`Backend.isolated`); no built-in is loaded to
    tell.

    Raises:
        Unimplemented: no backend runs the format.
    """
    return _BY_FORMAT[format] not in _TOGETHER if format in _BY_FORMAT else find_backend(format).isolated


def open_session(model: Model, options: SessionOptions | None = None) -> Session:
    """Load a model on the backend that runs its format.

    Raises:
        Unimplemented, CorruptArtifact, InvalidArgument: as `Backend.load`.
    """
    return find_backend(model.format).load(model, options or SessionOptions())
