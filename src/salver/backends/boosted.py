"""What the backends of boosting libraries have in common: a matrix or a table in, predictions or classes out."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np

from salver.backends.base import Backend, Session, SessionOptions, empty_like_signature
from salver.backends.native import NativeSession, check_provider, describe_outputs, read_blob
from salver.core.arrays import Array
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec

MATRIX: Final = "x"
_ROWS: Final = 3


class Boosted(msgspec.Struct, frozen=True):
    """A model that its library has opened.

    Args:
        inputs: one matrix ``x``, or one column per feature where some are texts.
        answer: ``prediction`` ``[rows, n]``, or ``label`` (the number of the class) and ``probabilities``.
        classes: names of the classes, where the file knows them.
    """

    inputs: tuple[TensorSpec, ...]
    answer: Callable[[Mapping[str, Array]], dict[str, Array]]
    classes: tuple[str, ...] = ()

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, found by a run on zeros."""
        signature = Signature(inputs=self.inputs, outputs=())
        outputs = describe_outputs(self.answer(empty_like_signature(signature, rows=_ROWS)))
        if self.classes:
            outputs = tuple(
                msgspec.structs.replace(s, labels=self.classes) if s.name == "probabilities" else s for s in outputs
            )
        return Signature(inputs=self.inputs, outputs=outputs)


def matrix_of(features: int, datatype: str) -> tuple[TensorSpec, ...]:
    """The input of a model of numbers."""
    return (TensorSpec(name=MATRIX, datatype=datatype, shape=("batch", features)),)


def classify(probabilities: Array) -> dict[str, Array]:
    """Answers of a classifier. One column is the probability of the second of two classes."""
    if probabilities.ndim == 1:
        probabilities = np.stack([1 - probabilities, probabilities], axis=1)
    return {"label": probabilities.argmax(axis=1), "probabilities": probabilities}


def regress(values: Array) -> dict[str, Array]:
    """Answers of everything else."""
    return {"prediction": values.reshape(len(values), -1)}


class BoostedBackend(Backend):
    """A backend of one boosting library. Where the signature names the classes, the label is that name."""

    isolated = True

    def providers(self) -> tuple[str, ...]:
        return ("cpu",)

    @abc.abstractmethod
    def open(self, data: bytes, name: str, threads: int) -> Boosted:
        """Open a model in the library's own format.

        Raises:
            CorruptArtifact: it is none, or damaged.
        """

    def load(self, model: Model, options: SessionOptions) -> Session:
        check_provider(options)
        blob = model.blobs[0]
        opened = self.open(read_blob(blob), blob.name, options.threads)
        signature = model.signature
        names = next((s.labels for s in signature.outputs if s.name == "probabilities"), ())
        labels = next((s for s in signature.outputs if s.name == "label"), None)
        if labels is None or not names:
            return NativeSession(signature, opened.answer)
        words = np.array(names, dtype=object) if labels.datatype == "BYTES" else None
        if words is None and all(name.lstrip("-").isdigit() for name in names):
            words = np.array([int(name) for name in names])
        return NativeSession(signature, opened.answer if words is None else _naming(opened.answer, words))

    def describe(self, blob: Blob) -> Signature:
        return self.open(read_blob(blob), blob.name, 1).signature


def _naming(
    answer: Callable[[Mapping[str, Array]], dict[str, Array]], words: Array
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    def named(inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = answer(inputs)
        return {**found, "label": words[found["label"]]}

    return named
