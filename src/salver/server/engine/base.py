"""What frontends and the engine say to each other: the only way from a decoded request to its answer."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, SalverError, Unavailable
from salver.core.tensors import Signature
from salver.server.engine.config import ModelConfig

_LABEL: Final = re.compile(r"[A-Za-z_][\w.-]{0,63}", re.ASCII)

ModelState = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]


class Timing(msgspec.Struct, frozen=True, gc=False):
    """Where the time of one request went, in seconds.

    Args:
        queue_s: from `submit` to the start of its batch.
        compute_s: the run of its batch.
        batch_rows: rows in that batch, its own included.
    """

    queue_s: float
    compute_s: float
    batch_rows: int


Done = Callable[["dict[str, Array] | SalverError", "Timing | None"], None]
"""Called exactly once, on the event loop: the outputs, or a typed error; timing where a batch ran."""


class SequenceStep(msgspec.Struct, frozen=True):
    """Which sequence a request belongs to (the reserved parameters ``sequence_id``, ``sequence_start``,
    ``sequence_end`` of the Open Inference Protocol).

    Args:
        id: names the sequence; not 0 and not empty, which mean none.
        start, end: whether it is the first, or last, request of the sequence.
    """

    id: int | str
    start: bool = False
    end: bool = False


class Packed(msgspec.Struct, eq=False, gc=False):
    """A small tensor as the bytes of its elements, so that a batch of such becomes one array without one for each.

    Args:
        dtype: of the elements, any bytes of which are valid.
        shape: of the tensor; the first dimension is rows where the model has such.
        data: the elements in order; exactly those.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    data: bytes

    @property
    def nbytes(self) -> int:
        """As of an array."""
        return len(self.data)

    def array(self) -> Array:
        """The tensor, not writable."""
        return np.ndarray(self.shape, self.dtype, self.data)


Tensors = Mapping[str, Array | Packed]
"""Inputs by name, as a frontend decodes them."""


def unpack(tensors: Tensors) -> dict[str, Array]:
    """All of them as arrays."""
    return {name: each.array() if isinstance(each, Packed) else each for name, each in tensors.items()}


class InferRequest(msgspec.Struct, eq=False):
    """A decoded and validated request. A struct, for one is made for every request, and a class of Python's own takes
    three times as long to fill.

    Args:
        inputs: already checked by `Signature.check`; `arrays` for who needs them as such.
        rows: size of the batch dimension (1 where there is none).
        done: see `Done`.
        outputs: names wanted, in the order wanted; None for all.
        key: what must be equal for two requests to share a batch besides model and version: row shapes, outputs wanted
            and parameters. The frontend builds it with `merge_key`.
        deadline_s: `time.monotonic()` after which no work may start on it; None for no deadline.
        priority: smaller is sooner; 0 for all who do not ask.
        sequence: for a model with state, the sequence it belongs to; None for none.
        client: who sent it: the name on its certificate, else its user or host; None where that is not known. Clients
            whose requests wait take turns.
        arrived_s: when it was queued.
        size_bytes: of the inputs; set when it is queued.
        state: the scheduler's own mark.
    """

    inputs: Tensors
    rows: int
    done: Done
    outputs: tuple[str, ...] | None = None
    key: Hashable = None
    deadline_s: float | None = None
    priority: int = 0
    sequence: SequenceStep | None = None
    client: Hashable = None
    arrived_s: float = 0.0
    size_bytes: int = 0
    state: int = 0

    def arrays(self) -> dict[str, Array]:
        """The inputs as arrays, which they are from then on."""
        self.inputs = arrays = unpack(self.inputs)
        return arrays


def is_ragged(signature: Signature) -> bool:
    """Whether an input has symbolic dimensions besides the first."""
    return any(not isinstance(d, int) for spec in signature.inputs for d in spec.shape[1:])


def merge_key(inputs: Tensors, outputs: tuple[str, ...] | None, signature: Signature) -> Hashable:
    """The part of the merge key that follows from shapes: row shapes of inputs with symbolic inner dimensions, and the
    outputs wanted. Requests with no such inputs and all outputs share the key None (the hot path)."""
    ragged = tuple(
        inputs[s.name].shape[1:] for s in signature.inputs if not all(isinstance(d, int) for d in s.shape[1:])
    )
    return None if not ragged and outputs is None else (ragged, outputs)


class BatchCost(msgspec.Struct, frozen=True):
    """What a batch is expected to cost, as learned on line.

    Args:
        rows: its size.
        mean_s: time it takes.
        high_s: time that few exceed.
    """

    rows: int
    mean_s: float
    high_s: float


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How a model does in one process, as plain data.

    Args:
        name, version, state, reason, tested: as of `ServedModel`.
        gauges: what waits and runs now.
        lanes: batches that may run at the same time; 0 where it has no lanes of its own, as a pipeline.
        threads: inside one run.
        max_batch: rows in one batch, 1 where requests are not merged.
        merge: whether requests may share a batch.
        merge_reason: why not, or where the knowledge comes from.
        may_inline: whether its backend can run on the event loop.
        inline: whether batches of one row run there now.
        cpu_s: median CPU time of a batch of one row; 0 where it is not known.
        costs: what batches of 1, 2, 4, ... rows are expected to cost, by what was learned; empty where nothing was.
        doubling: throughput with batches of twice ``max_batch`` rows, over that with ``max_batch``, by what was
            learned; 0 where nothing was.
        slo_s: the objective for the time of a request; 0 for none.
    """

    name: str
    version: str
    state: ModelState
    reason: str = ""
    tested: bool = False
    gauges: dict[str, int] = {}
    lanes: int = 0
    threads: int = 0
    max_batch: int = 1
    merge: bool = False
    merge_reason: str = ""
    may_inline: bool = False
    inline: bool = False
    cpu_s: float = 0.0
    costs: tuple[BatchCost, ...] = ()
    doubling: float = 0.0
    slo_s: float = 0.0


class ServedModel(abc.ABC):
    """One loaded version of a model, as a frontend sees it. A pipeline is one too."""

    name: str
    version: str
    signature: Signature
    """What clients send and get: without the inputs and outputs that carry a sequence's state."""
    ragged: bool = True
    """Whether an input has symbolic dimensions besides the batch, so that `merge_key` must look at shapes."""
    config: ModelConfig = ModelConfig()
    """What its folder or the settings say of it besides its graph."""
    state: ModelState
    reason: str
    """Why it is not ready; empty when it is."""
    tested: bool
    """False for a raw model that was never sealed."""
    platform: str
    """``onnx_onnxv1``."""
    metadata: dict[str, Any]
    """More for the curious: bundle digest, metric and drop, why it is not merged."""

    def submit(self, request: InferRequest) -> None:
        """As `Engine.submit`, which a model that belongs to an engine takes from it."""
        raise Unavailable(f"model '{self.name}' belongs to another engine")

    def cancel(self, request: InferRequest) -> None:
        """As `Engine.cancel`."""
        raise Unavailable(f"model '{self.name}' belongs to another engine")

    def gauges(self) -> dict[str, int]:
        """What waits and runs now: ``queued`` requests, ``queued_rows``, ``running`` batches."""
        return {}

    def oldest_run_s(self, now: float) -> float:
        """Age of the oldest batch that runs, at a `time.monotonic()`; 0 when none does."""
        return 0.0

    def facts(self) -> ModelFacts:
        """How it does, for statistics."""
        return ModelFacts(
            name=self.name,
            version=self.version,
            state=self.state,
            reason=self.reason,
            tested=self.tested,
            gauges=self.gauges(),
        )


class IndexEntry(msgspec.Struct, frozen=True):
    """One line of the repository's index; ``version`` is empty for a model of which none is loaded."""

    name: str
    version: str
    state: ModelState
    reason: str = ""


Changed = Callable[["SalverError | None"], None]
"""Called once on the event loop when a change of the repository is done: None, or why it failed."""


def not_awaited(error: SalverError | None) -> None:
    """A `Changed` for those who do not wait."""


def check_label(label: str) -> None:
    """Refuse what cannot be a label.

    Raises:
        InvalidArgument: a number, or not a word.
    """
    if not _LABEL.fullmatch(label):
        raise InvalidArgument(
            f"'{label[:64]}' cannot be a label; expected a word such as stable: letters, digits, '_', '.' and '-'"
        )


class Repository(abc.ABC):
    """The models a server has and may have, and the changes an administrator makes. Methods are called on the event
    loop and return at once; what takes time reports to `Changed`."""

    @abc.abstractmethod
    def index(self) -> Sequence[IndexEntry]:
        """Every model known, loaded or not, with all its loaded versions."""

    @abc.abstractmethod
    def load(
        self,
        name: str,
        done: Changed,
        *,
        config: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Load a model's versions as its policy says, or load them again where they changed. Versions in service
        answer until the new ones are ready, and stay in service when the new ones fail.

        Args:
            config: in place of the folder's own, as Triton's model configuration in JSON.
            files: ``<version>/<file>`` -> content, in place of the folder's.

        Raises:
            NotFound: no such model in the repository; raised, or given to ``done`` once the folders were looked at.
            FailedPrecondition: files were given, and the server does not take uploads.
            InvalidArgument: a file's name does not fit.
        """

    @abc.abstractmethod
    def unload(self, name: str, done: Changed, *, dependents: bool = False) -> None:
        """Take a model out of service; requests it has taken are answered first.

        Args:
            dependents: also the models that only it needed (the steps of a pipeline).

        Raises:
            NotFound: no such model.
            FailedPrecondition: a pipeline in service needs it.
        """

    @abc.abstractmethod
    def labels(self, name: str) -> Mapping[str, str]:
        """Label -> version of a model: ``stable``, ``canary``."""

    @abc.abstractmethod
    def move_label(self, name: str, label: str, version: str | None, done: Changed = not_awaited) -> None:
        """Let a label name another version, or none.

        Raises:
            NotFound: no such model or version. What is wrong is raised, or given to ``done``.
            FailedPrecondition: the version is not ready.
            InvalidArgument: a label that is a number, or not a word.
        """


class Engine(abc.ABC):
    """Everything between a decoded request and its answer. All methods are called on the event loop."""

    repository: Repository

    revision: object = None
    """Another object once `find` may answer differently, for those who keep what it gave; None where it is not told."""

    @abc.abstractmethod
    def find(self, name: str, version: str | None = None) -> ServedModel:
        """A model that is ready.

        Args:
            version: a number, or a label (``stable``); None or empty for the highest version that is ready.

        Raises:
            NotFound: no such model, version or label.
            Unavailable: it is loading, unloading or broken; says which.
        """

    @abc.abstractmethod
    def models(self) -> Sequence[ServedModel]:
        """All models and versions, in any state."""

    @abc.abstractmethod
    def submit(self, model: ServedModel, request: InferRequest) -> None:
        """Queue a request, or run it at once. ``request.done`` is called exactly once, later or during this call.

        Raises:
            ResourceExhausted: the queue is full; carries ``retry_after_s``.
            DeadlineExceeded: the deadline has passed or cannot be met.
            Unavailable: draining, or the model went away.
        """

    @abc.abstractmethod
    def cancel(self, model: ServedModel, request: InferRequest) -> None:
        """The client went away. ``done`` is not called any more; a batch that runs already is not interrupted."""

    @property
    @abc.abstractmethod
    def ready(self) -> bool:
        """Whether every model named at start is ready (golden requests gave the stored answers) and no drain began."""


def batchable(signature: Signature) -> bool:
    """Whether several requests can be one run: all inputs and outputs share a symbolic batch dimension."""
    return signature.batch_dim is not None
