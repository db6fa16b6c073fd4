"""The port of the `backends` family: one loaded model ready to run."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.errors import Unimplemented
from salver.core.model import Blob, Model
from salver.core.tensors import Signature


class SessionOptions(Config, frozen=True, kw_only=True):
    """How a session uses the machine. Nothing is left to a runtime's own default.

    Args:
        threads: threads inside one operator (intra-op); operators run one after another.
        lanes: runs that there may be at the same time, for runtimes that divide their threads among these beforehand.
        spinning: whether idle threads burn CPU to wake faster. Off: a server shares its cores.
        arena: whether freed memory is kept for the next run. On: faster, more memory.
        provider: execution provider, ``auto`` (the fastest present) or a name that `salver doctor` lists.
        optimize: graph optimization by the runtime at load: ``all`` or ``none``.
        shared_weights: folder in which weights are laid out once as the runtime wants them, for all processes of the
            user to map; empty to give each process its own copy. Answers are the same, bit for bit.
    """

    threads: int = 1
    lanes: int = 1
    spinning: bool = False
    arena: bool = True
    provider: str = "auto"
    optimize: Literal["all", "none"] = "all"
    shared_weights: str = ""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What the operators of a model took.

    Args:
        times_ms: name of an operator -> its time in each run of the model but the first, which warms up. An operator in
            a loop counts with all its rounds.
        outputs: name -> datatype and shape of its first output in the last run, as text.
    """

    times_ms: dict[str, list[float]]
    outputs: dict[str, str]


class Session(abc.ABC):
    """A loaded model.

    `run` may be called from several threads at once. Arrays given are only read; arrays returned belong to the caller.
    The same inputs give the same outputs, bit for bit, on the same host with the same options.
    """

    shares_weights: bool = False
    """Whether its weights are mapped from a file, and in memory once for all processes that map it."""
    not_shared: str = ""
    """Why they are not, though that was asked for."""
    is_even: bool = True
    """Whether inputs of one shape take about as long whatever is in them; else the time of one run says little of the
    next, as with images in files and texts."""

    elsewhere_ns: int = 0
    """CPU time that its runs have taken in other processes."""

    @property
    @abc.abstractmethod
    def signature(self) -> Signature:
        """Inputs and outputs as the runtime sees them."""

    @abc.abstractmethod
    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model once.

        Args:
            inputs: name -> array with the dtype of the signature (see `salver.core.tensors` for BF16 and BYTES).
            outputs: names wanted, in the order wanted; None for all.

        Raises:
            InvalidArgument: the runtime refuses the inputs.
            FailedPrecondition: the session is closed.
            Internal: the model failed while running.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Free the model. May be called again; a run that is in progress finishes."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Backend(abc.ABC):
    """A way to run one or more formats. Instances hold no state."""

    name: str
    formats: tuple[str, ...]
    isolated: bool = True
    """Whether a server gives its models a process of their own, because nobody knows what else the code of a framework
    or of a user does to a process. `salver.backends.runs_apart` tells it of a format without loading anything."""

    @abc.abstractmethod
    def versions(self) -> dict[str, str]:
        """Name -> version of the libraries behind it."""

    @abc.abstractmethod
    def providers(self) -> tuple[str, ...]:
        """Execution providers present on this host, the one that ``auto`` takes first."""

    @abc.abstractmethod
    def load(self, model: Model, options: SessionOptions) -> Session:
        """Load a model.

        Raises:
            CorruptArtifact: the file is truncated or no model at all.
            Unimplemented: an operator, type or provider this runtime lacks, by name.
            Internal: the runtime failed otherwise.
        """

    def profile(
        self,
        model: Model,
        options: SessionOptions,
        inputs: Sequence[Mapping[str, Array]],
        rewritten: Path | None = None,
    ) -> Profile:
        """Run a model on each of several inputs and measure its operators.

        Args:
            rewritten: where the graph is written as the runtime rewrote it; None for nowhere.

        Raises:
            Unimplemented: this runtime does not tell.
        """
        raise Unimplemented(f"'{self.name}' does not measure single operators")

    @abc.abstractmethod
    def describe(self, blob: Blob) -> Signature:
        """The signature of a bare model file, found by loading it.

        Raises:
            CorruptArtifact, Unimplemented: as `load`.
        """


def empty_like_signature(signature: Signature, rows: int = 1, dim_size: int = 1) -> dict[str, Array]:
    """Inputs of zeros (empty strings for BYTES) that fit a signature: every symbolic dimension has ``dim_size``, the
    batch dimension ``rows``."""
    made: dict[str, Array] = {}
    for spec in signature.inputs:
        shape = [
            d if isinstance(d, int) else rows if d == signature.batch_dim and i == 0 else dim_size
            for i, d in enumerate(spec.shape)
        ]
        made[spec.name] = np.full(shape, "", dtype=object) if spec.datatype == "BYTES" else np.zeros(shape, spec.dtype)
    return made
