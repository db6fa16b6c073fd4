"""What backends of frameworks have in common: the model's own bytes, and a session around a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from salver.backends.base import Session, SessionOptions
from salver.core.arrays import Array
from salver.core.errors import (
    CorruptArtifact,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    SalverError,
    UnknownName,
)
from salver.core.model import Blob, Model, digest_bytes
from salver.core.tensors import Signature, TensorSpec, to_datatype

Answer = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Inputs by name -> outputs by name."""


def read_blob(blob: Blob) -> bytes:
    """The content of a model's file.

    Raises:
        NotFound, CorruptArtifact: it is not there, or not what it was when the model was opened.
    """
    if not blob.path.is_file():
        raise NotFound(f"no such model file: '{blob.path}'")
    data = blob.read()
    if digest_bytes(data) != blob.digest:
        raise CorruptArtifact(f"'{blob.path}': '{blob.name}' has changed since the model was opened; open it again")
    return data


def check_provider(options: SessionOptions) -> None:
    """Refuse execution providers of other runtimes.

    Raises:
        UnknownName: it is neither ``auto`` nor ``cpu``.
    """
    if options.provider not in ("auto", "cpu"):
        raise UnknownName("execution provider", options.provider, ("auto", "cpu"))


def check_trust(model: Model, holds: str) -> None:
    """Refuse code that comes with a model, unless its user trusts who made it.

    Raises:
        PermissionDenied: saying what it holds.
    """
    if not model.trusted:
        why = f", and {model.distrust}" if model.distrust else ""
        raise PermissionDenied(
            f"'{model.blobs[0].name}' holds {holds}: loading it runs code{why}. A server does so for bundles signed by "
            "a key that it trusts ('salver sign', 'salver serve --trusted-key'), an import with --trust-pickle"
        )


def describe_outputs(answers: Mapping[str, Array]) -> tuple[TensorSpec, ...]:
    """Outputs as they were seen, the first dimension of each the batch."""
    return tuple(
        TensorSpec(name=name, datatype=to_datatype(array.dtype), shape=("batch", *array.shape[1:]))
        for name, array in answers.items()
    )


class NativeSession(Session):
    """A model that a Python library runs.

    Args:
        signature: what goes in and out; outputs are cast to its dtypes.
        answer: runs the model; several threads may call it at once. It may return more than the signature has.
        release: called once, when the session is closed.
        is_even: see `Session`.
    """

    def __init__(
        self,
        signature: Signature,
        answer: Answer,
        release: Callable[[], None] = lambda: None,
        *,
        is_even: bool = True,
    ) -> None:
        self.is_even = is_even
        self._signature = signature
        self._answer: Answer | None = answer
        self._release = release

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        answer = self._answer
        if answer is None:
            raise FailedPrecondition("the session is closed")
        rows = self._signature.check(inputs)
        try:
            found = answer(inputs)
        except SalverError:
            raise
        except ValueError as error:
            raise InvalidArgument(f"the model refused its inputs: {_line(error)}") from error
        except Exception as error:  # boundary: a framework's code, or a user's
            raise Internal(f"the model failed while running: {type(error).__name__}: {_line(error)}") from error
        names = self._signature.output_names if outputs is None else outputs
        return {name: self._checked(name, found, rows) for name in names}

    def _checked(self, name: str, found: Mapping[str, Array], rows: int) -> Array:
        spec = self._signature.output(name)
        if name not in found:
            raise Internal(f"the model gave no output '{name}'; it gave {', '.join(found) or 'nothing'}")
        array = np.asarray(found[name])
        if self._signature.batch_dim is not None and (not array.shape or len(array) != rows):
            raise Internal(f"output '{name}' has shape {list(array.shape)} for {rows} rows")
        return array if array.dtype == spec.dtype else array.astype(spec.dtype)

    def close(self) -> None:
        if self._answer is not None:
            self._answer = None
            self._release()


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
