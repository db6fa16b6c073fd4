"""Ways to run a model: one table, one `Session`."""

from __future__ import annotations

from typing import Final

from salver.backends.base import Backend, Session, SessionOptions
from salver.core.errors import Unimplemented
from salver.core.model import Model
from salver.core.registry import Family

BUILTIN: Final = {
    "onnxruntime": "salver.backends._onnxruntime:OnnxRuntimeBackend",
}

BACKENDS: Final[Family[type[Backend]]] = Family("backends", BUILTIN)

__all__ = ["BACKENDS", "BUILTIN", "Backend", "Session", "SessionOptions", "find_backend", "open_session"]


def find_backend(format: str) -> Backend:
    """The first backend that is installed and runs a format.

    Raises:
        Unimplemented: none does.
    """
    for name in BACKENDS:
        backend = BACKENDS.get(name)()
        if format in backend.formats:
            return backend
    raise Unimplemented(f"no backend runs format '{format}'; installed backends: {', '.join(BACKENDS.names())}")


def open_session(model: Model, options: SessionOptions | None = None) -> Session:
    """Load a model on the backend that runs its format.

    Raises:
        Unimplemented, CorruptArtifact, InvalidArgument: as `Backend.load`.
    """
    return find_backend(model.format).load(model, options or SessionOptions())
