"""The port of the `importers` family: a framework's file -> `Model`, with its parity certificate."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any

import msgspec

from salver.core.config import Config
from salver.core.dataset import Dataset
from salver.core.model import Model


class ImportOptions(Config, frozen=True, kw_only=True):
    """What a user may say about an import.

    Args:
        trust_pickle: run code from a pickle; only for files whose maker is trusted.
        labels: class names, in the order of the output's last dimension.
        tolerance: largest absolute difference, relative to ``1 + |expected|``, that parity allows for float outputs.
    """

    trust_pickle: bool = False
    labels: tuple[str, ...] = ()
    tolerance: float = 1e-4


class OutputParity(msgspec.Struct, frozen=True, kw_only=True):
    """How one output of the converted model differs from the original's.

    Args:
        name: output name.
        max_abs, mean_abs: absolute difference over all elements.
        max_rel: largest of ``|a-b| / (1 + |a|)``.
        label_agreement: share of rows with the same arg-max, or the same value for integers, strings and booleans.
        worst_input: row number of the input with the largest difference.
    """

    name: str
    max_abs: float
    mean_abs: float
    max_rel: float
    label_agreement: float
    worst_input: int


class ParityCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """Proof that an import changed nothing: original and converted model run on the same inputs.

    Args:
        original: what the reference was run with ("scikit-learn 1.9.1 predict_proba", "onnx as given").
        inputs: ``data`` when the user's own examples were used, ``synthetic`` otherwise.
        examples: how many.
        batch_sizes: every size at which both were run.
        outputs: one entry per output.
        tolerance: the limit on ``max_rel``.
    """

    original: str
    inputs: str
    examples: int
    batch_sizes: tuple[int, ...]
    outputs: tuple[OutputParity, ...]
    tolerance: float


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What an importer gives: the model and the proof."""

    model: Model
    parity: ParityCertificate


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
