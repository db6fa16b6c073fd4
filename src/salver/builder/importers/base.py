"""The port of the `importers` family: a framework's file -> `Model`, with its parity certificate."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any

import msgspec

from salver.core.config import Config
from salver.core.dataset import Dataset
from salver.core.model import Model
from salver.core.tensors import TensorSpec
from salver.evaluation.parity import OutputParity as OutputParity
from salver.evaluation.parity import ParityCertificate as ParityCertificate


class ImportOptions(Config, frozen=True, kw_only=True):
    """What a user may say about an import.

    Args:
        trust_pickle: run code from a pickle; only for files whose maker is trusted.
        labels: class names, in the order of the output's last dimension.
        tolerance: largest absolute difference, relative to ``1 + |expected|``, that parity allows for float outputs;
            None takes what follows from datatype and depth of the graph (`salver.evaluation.tolerance`).
        inputs: names, types and shapes of the inputs, for sources that do not say them (PyTorch modules).
        weights: file of weights for a source that is code (``module:factory``); empty for none.
    """

    trust_pickle: bool = False
    labels: tuple[str, ...] = ()
    tolerance: float | None = None
    inputs: tuple[TensorSpec, ...] = ()
    weights: str = ""


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What an importer gives: the model and the proof.

    Args:
        model: what is optimized and served.
        parity: between the source as its own framework runs it and ``model``.
        native: the same model in its framework's own format, where a backend runs that: exporters start from it, and
            the search may find it faster.
    """

    model: Model
    parity: ParityCertificate
    native: Model | None = None


class Importer(abc.ABC):
    """Reads one kind of source. Deterministic: the same file and options give the same bytes."""

    name: str

    @abc.abstractmethod
    def recognizes(self, source: Any) -> bool:
        """Whether this importer reads such a source: a `Path` by suffix and magic bytes, or an object in memory.
        Never loads it, never runs code from it, imports nothing heavy."""

    @abc.abstractmethod
    def load(self, source: Any, workdir: Path, data: Dataset | None, options: ImportOptions) -> Imported:
        """Import a source; files are written below ``workdir``.

        Raises:
            NotFound, CorruptArtifact, Unimplemented, UntrustedPickle, MissingExtra, InvalidArgument: as they say.
            ParityFailed: naming the worst output and input.
        """
