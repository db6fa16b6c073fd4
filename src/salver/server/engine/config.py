"""What a served model is told besides its graph: batching, versions, state of sequences, steps of a pipeline.

It comes from the model's own folder (``model.toml``, or Triton's ``config.pbtxt`` where that has meaning here) and from
the server's settings for the model, which win.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from salver.core.errors import InvalidArgument


class StateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tensor that the server keeps between the requests of a sequence (Triton's implicit state).

    Args:
        input, output: the model's input that takes it and the output that gives its next value.
        initial: value of every element at the start of a sequence.
    """

    input: str
    output: str
    initial: float = 0.0


class ControlConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input by which a model that keeps its own state is told where a sequence stands (Triton's control inputs).

    Args:
        kind: ``corrid`` gives the sequence's id; the others a flag.
        off, on: values of the flag.
    """

    input: str
    kind: Literal["start", "end", "ready", "corrid"]
    off: float = 0.0
    on: float = 1.0


class SequenceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests of one sequence are kept together.

    Args:
        strategy: ``direct`` gives a sequence a batch slot for its life; ``oldest`` merges the oldest waiting requests
            of different sequences.
        max_sequences: sequences alive at a time; one more is refused.
        idle_timeout_s: a sequence without requests for this long ends.
        max_state_bytes: of all states together; when they take more, only requests that end a sequence are taken.
        states: tensors that the server keeps. Without them the model keeps its state itself.
        controls: inputs filled by the server.
    """

    strategy: Literal["direct", "oldest"] = "oldest"
    max_sequences: int = 1024
    idle_timeout_s: float = 60.0
    max_state_bytes: int = 1 << 30
    states: tuple[StateConfig, ...] = ()
    controls: tuple[ControlConfig, ...] = ()


class StepConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of a pipeline.

    Args:
        model: its name.
        version: a number or a label; empty for the highest that is ready.
        inputs: the model's input -> name of a tensor of the pipeline.
        outputs: the model's output -> name of a tensor of the pipeline.
    """

    model: str
    version: str = ""
    inputs: dict[str, str]
    outputs: dict[str, str]


class PipelineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directed graph of models, without cycles.

    Args:
        inputs, outputs: names of the tensors that clients send and get; their types follow from the steps.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[StepConfig, ...]


class WarmUp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Runs before a model is ready.

    Args:
        rows: in each run.
        count: runs.

    Raises:
        InvalidArgument: none, or so many that the model would not be ready for long.
    """

    rows: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        for name, value, most in (("rows", self.rows, 1 << 16), ("count", self.count, 1 << 16)):
            if not 1 <= value <= most:
                raise InvalidArgument(f"warm-up: {name} is {value}, expected 1 to {most}")


class VersionPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which versions of a folder are served.

    Args:
        latest: that many of the highest; 0 for all.
        specific: just these, whatever ``latest`` says.
    """

    latest: int = 1
    specific: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> VersionPolicy:
        """Read ``latest``, ``latest:2``, ``all`` or ``1,3``.

        Raises:
            InvalidArgument: anything else.
        """
        word, _, count = text.partition(":")
        if word == "latest" and (not count or (count.isdecimal() and int(count) > 0)):
            return cls(latest=int(count or 1))
        if text == "all":
            return cls(latest=0)
        versions = tuple(part.strip() for part in text.split(","))
        if all(is_version(version) for version in versions):
            return cls(specific=versions)
        raise InvalidArgument(f"got versions '{text}', expected latest, latest:N, all, or numbers such as 1,3")

    def choose(self, versions: Sequence[str]) -> list[str]:
        """Those of some versions that are served.

        Args:
            versions: lowest first.
        """
        if self.specific:
            return [version for version in versions if version in self.specific]
        return list(versions[-self.latest :])

    def __str__(self) -> str:
        if self.specific:
            return ",".join(self.specific)
        return f"latest:{self.latest}" if self.latest else "all"


def is_version(text: str) -> bool:
    """Whether it is a number as versions are written: without a sign or leading zeros, and within 63 bits."""
    return text.isascii() and text.isdecimal() and len(text) <= 18 and text == str(int(text))


class TensorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a ``config.pbtxt`` says of a tensor: checked against the model, which is what counts.

    Args:
        name: of an input or output.
        datatype: as the Open Inference Protocol names it; empty where it is left open.
        shape: with the batch dimension where there is one; -1 fits anything; None where it is left open.
    """

    name: str
    datatype: str = ""
    shape: tuple[int, ...] | None = None


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a model is told. None and empty take the server's settings.

    Args:
        versions: which versions are served.
        labels: label -> version at start.
        threads, lanes, max_batch, max_queue, default_timeout_s, slo_s: as `ModelSettings`.
        batch_sizes: the numbers of rows that the model is run with, rising; a batch of another number is padded to the
            next one. Empty for any. As ``allowed_batch_sizes`` of TensorFlow Serving.
        response_cache_bytes: memory for answers that may be given again; 0 for none.
        share_weights, provider: as `ModelSettings`.
        sequence: for a model with state.
        pipeline: steps, for a model that is made of others.
        warm_up: further runs before it is ready.
        label_files: output -> text file in the model's folder with one class name a line, for classification.
        inputs, outputs: what was said of tensors, to be checked.
        ignored: fields of a ``config.pbtxt`` that have no meaning here; each is logged and listed in metadata.
    """

    versions: VersionPolicy | None = None
    labels: dict[str, str] = {}
    threads: int | None = None
    lanes: int | None = None
    max_batch: int | None = None
    max_queue: int | None = None
    default_timeout_s: float | None = None
    slo_s: float | None = None
    batch_sizes: tuple[int, ...] = ()
    response_cache_bytes: int | None = None
    share_weights: bool | None = None
    provider: str | None = None
    sequence: SequenceConfig | None = None
    pipeline: PipelineConfig | None = None
    warm_up: tuple[WarmUp, ...] = ()
    label_files: dict[str, str] = {}
    inputs: tuple[TensorConfig, ...] = ()
    outputs: tuple[TensorConfig, ...] = ()
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = (0, *self.batch_sizes)
        if any(size <= before for before, size in pairwise(sizes)):
            raise InvalidArgument(f"batch_sizes: got {list(self.batch_sizes)}, expected rising whole numbers from 1")
