"""From a bundle to a session that may be served: golden requests, merge safety, warm-up."""

from __future__ import annotations

from time import perf_counter, thread_time
from typing import Any, Final

import msgspec
import numpy as np

from salver.backends import open_session
from salver.backends.base import Session, SessionOptions
from salver.bundle import Bundle, replay
from salver.bundle.calibrate import synthetic_inputs
from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition, SalverError
from salver.core.tensors import Signature
from salver.evaluation import check_invariance
from salver.server.engine.base import batchable
from salver.server.engine.cost import CostModel
from salver.server.settings import RunSettings

_WARM_RUNS: Final = 5
_WARM_S: Final = 0.2
_ROWS: Final = 8
_BUSY: Final = 0.8


class Loaded(msgspec.Struct, frozen=True):
    """A session that passed, and what was learned on the way.

    Args:
        session: ready to run.
        golden: golden requests that gave the stored answers.
        merge: whether requests may share a batch.
        merge_reason: why not, or where the knowledge comes from.
        cost: of batches, from warm-up.
        inline: whether a run keeps the calling thread busy from start to end.
    """

    session: Session
    golden: int
    merge: bool
    merge_reason: str
    cost: CostModel
    inline: bool


def load(bundle: Bundle, settings: RunSettings) -> Loaded:
    """Load a model, replay its golden requests and warm it up. Blocks; call it on a thread.

    Raises:
        FailedPrecondition: a golden request gave another answer than the stored one.
        SalverError: the model cannot be loaded.
    """
    session = open_session(bundle.model, SessionOptions(threads=settings.threads))
    try:
        golden = bundle.golden
        if golden:
            report = replay(session, golden)
            if not report.ok:
                raise FailedPrecondition(f"the golden requests failed on this machine: {report}")
        inputs = golden[0].inputs if golden else _make_inputs(session)
        merge, reason = _decide_merge(bundle, session, inputs, settings.max_batch)
        cost, inline = _warm_up(session, inputs, settings.max_batch if merge else 1)
        return Loaded(session, len(golden), merge, reason, cost, inline)
    except BaseException:
        session.close()
        raise


def _make_inputs(session: Session) -> dict[str, Array]:
    """Several made-up rows that a model runs on; empty when none were found."""
    try:
        rows = synthetic_inputs(session, session.signature, _ROWS, seed=0)
    except FailedPrecondition:
        return {}
    if not batchable(session.signature):
        return rows[0]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _decide_merge(bundle: Bundle, session: Session, inputs: dict[str, Array], max_batch: int) -> tuple[bool, str]:
    if not batchable(session.signature):
        return False, "inputs and outputs share no batch dimension"
    if max_batch == 1:
        return False, "batching is turned off: max_batch is 1"
    record = bundle.record
    if record is not None and "merge" in record.hints:
        evaluation = record.sealed.evaluation
        invariance = None if evaluation is None else evaluation.invariance
        why = "" if invariance is None else invariance.reason
        return bool(record.hints["merge"]), why or "measured when it was built"
    if not inputs:
        return False, "it could not be tried: no made-up input fits the model"
    try:
        found = check_invariance(session, inputs, sizes=(min(_ROWS, max_batch),))
    except SalverError as error:
        return False, f"it could not be tried: {error.message}"
    return found.invariant, found.reason or "tried at load on made-up rows"


def _warm_up(session: Session, inputs: dict[str, Array], max_batch: int) -> tuple[CostModel, bool]:
    """Run one row and a large batch a few times; learn what they cost, and whether a run is CPU work of this thread.

    The batch is full where that takes a fraction of a second, else smaller.
    """
    cost = CostModel()
    inline = False
    for many in (False, True):
        rows = min(max_batch, max(2, int(_WARM_S / cost.mean_s(1)))) if many else 1
        laps = _time(session, _resize(inputs, session.signature, rows)) if inputs else []
        for elapsed_s, cpu_s in laps:
            cost.learn(rows, elapsed_s, cpu_s)
        inline = inline or any(cpu_s >= _BUSY * elapsed_s for elapsed_s, cpu_s in laps)
        if not laps or max_batch == 1:
            break
    return cost, inline


def _time(session: Session, inputs: dict[str, Array]) -> list[tuple[float, float]]:
    laps: list[tuple[float, float]] = []
    until = perf_counter() + _WARM_S
    try:
        session.run(inputs)
        while len(laps) < _WARM_RUNS and perf_counter() < until:
            started, cpu_started = perf_counter(), thread_time()
            session.run(inputs)
            laps.append((perf_counter() - started, thread_time() - cpu_started))
    except SalverError:  # made-up input that does not fit at this size: the first real request will warm it
        return []
    return laps


def _resize(inputs: dict[str, Array], signature: Signature, rows: int) -> dict[str, Array]:
    if not batchable(signature):
        return inputs
    return {name: array[np.arange(rows) % len(array)] for name, array in inputs.items()}


def describe(bundle: Bundle, loaded: Loaded, settings: RunSettings) -> dict[str, Any]:
    """What metadata says of a served model besides its signature."""
    return {
        "tested": bundle.tested,
        "digest": bundle.digest,
        "golden_requests": loaded.golden,
        "merge": loaded.merge,
        "merge_reason": loaded.merge_reason,
        "threads": settings.threads,
        "lanes": settings.lanes,
        "max_batch": settings.max_batch if loaded.merge else 1,
    }
