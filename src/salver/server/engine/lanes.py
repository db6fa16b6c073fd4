"""Run batches: merge rows, run the session, check and split the outputs; on the event loop or on a thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from time import perf_counter, thread_time

import msgspec
import numpy as np

from salver.backends.base import Session
from salver.core.arrays import Array
from salver.core.errors import Internal, SalverError
from salver.server.engine.base import Packed
from salver.server.engine.scheduler import Batch

_LOG = logging.getLogger(__name__)

Answers = list[dict[str, Array]]
"""One mapping of outputs per request of a batch, in order."""

Execute = Callable[[Batch], Answers]
"""Runs a batch on a model: `execute` or `execute_slots`, bound to it."""


def execute(session: Session, batched: bool, batch: Batch) -> Answers:
    """Run a batch. Where the model is run with more rows than there are, the last is repeated.

    Args:
        batched: whether the model has a batch dimension, so that output rows must equal input rows.

    Raises:
        SalverError: what the session raised; `Internal` when an output has another number of rows than the inputs.
    """
    requests = batch.requests
    first = requests[0]
    padding = batch.run_rows - batch.rows
    if len(requests) == 1 and not padding:
        outputs = session.run(first.arrays(), first.outputs)
        if batched:
            _check_rows(outputs, batch.rows)
        return [outputs]
    inputs = {name: _join([request.inputs[name] for request in requests], batch.rows, padding) for name in first.inputs}
    outputs = session.run(inputs, first.outputs)
    _check_rows(outputs, batch.run_rows)
    stop = 0
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        return [{name: array[stop : (stop := stop + request.rows)]} for request in requests]
    cuts = [(stop, stop := stop + request.rows) for request in requests]
    return [{name: array[start:stop] for name, array in outputs.items()} for start, stop in cuts]


def _join(parts: Sequence[Array | Packed], rows: int, padding: int) -> Array:
    """The rows of several tensors in one, and the last row as often again as padding says."""
    first = parts[0]
    # What came in bytes is joined as bytes, at a small part of what numpy takes to join small arrays.
    packed = [part.data for part in parts if isinstance(part, Packed)]
    if isinstance(first, Packed) and len(packed) == len(parts) and not padding:
        return np.ndarray((rows, *first.shape[1:]), first.dtype, b"".join(packed))
    arrays = [part.array() if isinstance(part, Packed) else part for part in parts]
    if padding:
        arrays.append(arrays[-1][-1:].repeat(padding, 0))
    return np.concatenate(arrays)


def execute_slots(session: Session, blanks: Mapping[str, Array], batch: Batch) -> Answers:
    """Run a batch in which every request has its own row, `Batch.slots`; rows between them that nobody has are zero.

    Args:
        blanks: inputs of such a row that are not zero.

    Raises:
        SalverError: as `execute`.
    """
    slots = batch.slots or [0]
    first = batch.requests[0]
    size = max(slots) + 1
    feed = {}
    given = [request.arrays() for request in batch.requests]
    for name, array in given[0].items():
        rows = [blanks.get(name, _nothing(array))] * size
        for slot, inputs in zip(slots, given, strict=True):
            rows[slot] = inputs[name]
        feed[name] = np.concatenate(rows)
    outputs = session.run(feed, first.outputs)
    _check_rows(outputs, size)
    return [{name: array[slot : slot + 1] for name, array in outputs.items()} for slot in slots]


def _nothing(array: Array) -> Array:
    return np.full(array.shape, "", object) if array.dtype.hasobject else np.zeros(array.shape, array.dtype)


def _check_rows(outputs: dict[str, Array], rows: int) -> None:
    for name, array in outputs.items():
        if not array.ndim or array.shape[0] != rows:
            got = f"{array.shape[0]} rows" if array.ndim else "a scalar"
            raise Internal(f"the model returned {got} in output '{name}' for {rows} input rows")


class Run(msgspec.Struct, frozen=True):
    """How the run of a batch ended.

    Args:
        answers: one per request; empty where it failed.
        error: why it failed, else None.
        compute_s: wall time of the run.
        cpu_s: CPU time of the thread that ran it. Unlike wall time it does not grow when the machine, or Python's
            global lock, is busy with something else.
    """

    answers: Answers
    error: SalverError | None
    compute_s: float
    cpu_s: float


def attempt(execute: Execute, batch: Batch) -> Run:
    """Run a batch, timed, at the lane's border: whatever a model raises comes back as a typed error."""
    started, cpu_started = perf_counter(), thread_time()
    answers: Answers = []
    error = None
    try:
        answers = execute(batch)
    except SalverError as raised:
        error = raised.with_traceback(None)  # it would keep this frame, and the batch, in a reference cycle
    except (Exception, SystemExit) as raised:  # noqa: BLE001  # the lane boundary: a model may raise anything
        _LOG.exception("a model raised %s while running a batch of %d rows", type(raised).__name__, batch.rows)
        error = Internal(f"the model failed while running: {type(raised).__name__}: {raised}")
    return Run(answers, error, perf_counter() - started, thread_time() - cpu_started)


Ran = Callable[[Batch, Run], None]
"""Called on the lane's thread when a batch has run."""


class Lane:
    """A thread that runs batches one after another.

    Args:
        name: of the thread.
        execute: runs a batch.
        ran: told of each batch.
    """

    def __init__(self, name: str, execute: Execute, ran: Ran) -> None:
        self._execute = execute
        self._ran = ran
        self._work: SimpleQueue[Batch | None] = SimpleQueue()
        # A daemon: a run cannot be interrupted, and one that hangs must not keep a drained server alive.
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def run(self, batch: Batch) -> None:
        """Run a batch; returns at once."""
        self._work.put(batch)

    def close(self) -> None:
        """End the thread once what it was given has run."""
        self._work.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end; False when it still runs."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while (batch := self._work.get()) is not None:
            run = attempt(self._execute, batch)
            self._ran(batch, run)
            del batch, run  # do not hold the last batch's arrays while waiting
