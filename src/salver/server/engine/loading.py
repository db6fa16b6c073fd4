"""From a bundle to a session that may be served: golden requests, merge safety, warm-up."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any, Final

import msgspec
import numpy as np

from salver import __version__
from salver.backends import find_backend, runs_apart
from salver.backends.base import Session, SessionOptions
from salver.bundle import Bundle, replay
from salver.bundle.calibrate import synthetic_inputs
from salver.core.arrays import Array
from salver.core.cache import default_cache_dir
from salver.core.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, SalverError
from salver.core.host import describe_cpu
from salver.core.tensors import Signature
from salver.evaluation import check_invariance
from salver.processing import open_processed, runs_code
from salver.server.engine.base import batchable
from salver.server.engine.config import ModelConfig, WarmUp, is_version
from salver.server.engine.cost import CostModel
from salver.server.engine.declared import check_declared, name_classes
from salver.server.engine.folder import Told
from salver.server.engine.memory import give_back
from salver.server.engine.repository import BUNDLE_SUFFIX, RAW_SUFFIX, open_model
from salver.server.engine.stateful import Stateful
from salver.server.engine.tried import Finding, try_once
from salver.server.settings import RunSettings, ServeSettings
from salver.server.tuned import read_tuned

_LOG = logging.getLogger(__name__)
_WEIGHTS: Final = "weights"
_LARGE_BYTES: Final = 1 << 20
_WARM_RUNS: Final = 5
_WARM_S: Final = 0.2
_ROWS: Final = 8
_BUSY: Final = 0.8
_TIMED = threading.Lock()
"""Held while a model is timed: another that is timed beside it would take its CPU and Python's global lock."""
_TURN_S: Final = 2.0  # for which a model waits for its turn; one that hangs must not keep the others from loading
_NOTHING_TOLD: Final = ModelConfig()


class Loaded(msgspec.Struct, frozen=True):
    """A session that passed, and what was learned on the way.

    Args:
        session: ready to run.
        golden: golden requests that gave the stored answers.
        merge: whether requests may share a batch.
        merge_reason: why not, or where the knowledge comes from.
        cost: of batches, from warm-up.
        inline: whether a run keeps the calling thread busy from start to end.
        weights_bytes: of the model's files.
    """

    session: Session
    golden: int
    merge: bool
    merge_reason: str
    cost: CostModel
    inline: bool
    weights_bytes: int


def load(bundle: Bundle, settings: RunSettings, config: ModelConfig = _NOTHING_TOLD) -> Loaded:
    """Load a model, replay its golden requests and warm it up. Blocks; call it on a thread.

    Raises:
        FailedPrecondition: a golden request gave another answer than the stored one.
        InvalidArgument: its folder says of its tensors what is not so.
        SalverError: the model cannot be loaded.
    """
    shared = str(default_cache_dir() / _WEIGHTS) if settings.share_weights else ""
    options = SessionOptions(
        threads=settings.threads, lanes=settings.lanes, shared_weights=shared, provider=settings.provider
    )
    session = open_processed(bundle.model, options)
    weights_bytes = bundle.model.size_bytes
    if not bundle.sealed:
        weights_bytes += sum(path.stat().st_size for path in _beside(bundle.path))
    if shared and not session.shares_weights:
        _LOG.info("the weights of '%s' are not shared between workers: %s", bundle.name, session.not_shared)
    try:
        check_declared(config, session.signature)
        golden = bundle.golden
        if golden:
            report = replay(session, golden)
            if not report.ok:
                raise FailedPrecondition(f"the golden requests failed on this machine: {report}")
        stateful = None if config.sequence is None else Stateful(session.signature, config.sequence)
        view = session if stateful is None else stateful.view(session)
        inputs = golden[0].inputs if golden else _make_inputs(view)
        if stateful is not None and golden:
            inputs = stateful.to_view(inputs)
        merge, reason = _decide_merge(bundle, view, inputs, settings, stateful)
        cost, inline = _time_alone(view, inputs, settings.max_batch if merge else 1)
        for more in config.warm_up:
            warm_up(view, inputs, more)
        if weights_bytes >= _LARGE_BYTES:
            give_back()  # a load takes up to twice the weights for a moment
        return Loaded(session, len(golden), merge, reason, cost, inline and session.is_even, weights_bytes)
    except BaseException:
        session.close()
        raise


class Known(msgspec.Struct, frozen=True):
    """What is known of a model without loading it.

    Args:
        path: of the file.
        bundle: opened, or wrapped.
        settings: how it is run.
        signature: what clients send and get.
        file_bytes: of its file, and of what lies beside a bare one.
        stamp: size, time of change and inode of these.
    """

    path: Path
    bundle: Bundle
    settings: RunSettings
    signature: Signature
    file_bytes: int
    stamp: tuple[tuple[int, int, int], ...]

    @property
    def platform(self) -> str:
        """As the Open Inference Protocol writes it: ``onnx_onnxv1``."""
        return f"{self.bundle.model.format}_{self.bundle.model.format}v1"


class Tasted(msgspec.Struct, frozen=True):
    """A model that may be served: what it was opened from, its session, and how it is run."""

    bundle: Bundle
    loaded: Loaded
    settings: RunSettings


def look_at(path: Path, name: str, told: Told, settings: ServeSettings) -> Known:
    """Open a file without loading the model. Blocks; call it on a thread.

    Args:
        path: of a bundle or an ONNX file.
        name: under which it is served.
        told: what its folder says.
        settings: of the server.

    Raises:
        SalverError: it cannot be opened, or does not fit what its folder says.
    """
    stamp = _stamp((path, *_beside(path)))
    bundle = open_model(path, name)
    apart = runs_apart(bundle.model.format)
    if apart and not settings.workers:
        raise FailedPrecondition(
            f"model '{name}' is run by {bundle.model.format}, not by ONNX Runtime, and needs a process of its own: "
            "start the server with --workers 1 or more"
        )
    if settings.trusted_key and (apart or runs_code(bundle.model.processing)):
        with contextlib.suppress(PermissionDenied):  # what runs code asks for trust, and says who signed instead
            bundle.trust(Path(settings.trusted_key))
    if told.class_names:
        if bundle.model.processing is not None:
            raise InvalidArgument(f"'{path}' names its classes itself, in its processing steps; remove the label files")
        signature = name_classes(bundle.signature, told.class_names)
        bundle.model = msgspec.structs.replace(bundle.model, signature=signature)
    check_declared(told.config, bundle.signature)
    sequence = told.config.sequence
    served = bundle.signature if sequence is None else Stateful(bundle.signature, sequence).served
    hints = bundle.record.hints if bundle.record is not None else {}
    run = settings.for_model(name, hints, told.config, told.asked, read_tuned(path, bundle.digest))
    return Known(path, bundle, run, served, sum(size for size, _, _ in stamp), stamp)


def _stamp(paths: Iterable[Path]) -> tuple[tuple[int, int, int], ...]:
    try:
        facts = [path.stat() for path in paths]
    except OSError as error:
        raise NotFound(f"the model's files cannot be read: {error}") from None
    return tuple((fact.st_size, fact.st_mtime_ns, fact.st_ino) for fact in facts)


def _beside(path: Path) -> list[Path]:
    """What is probably a bare model's external data: it lies in its version's folder, or has its name."""
    if path.suffix == BUNDLE_SUFFIX or not path.parent.is_dir():
        return []
    others = sorted(p for p in path.parent.iterdir() if p.suffix not in (RAW_SUFFIX, BUNDLE_SUFFIX) and p.is_file())
    return [other for other in others if is_version(path.parent.name) or other.name.startswith(path.stem)]


def taste(path: Path, name: str, told: Told, settings: ServeSettings, known: Known | None = None) -> Tasted:
    """Open a file and `load` it. Blocks; call it on a thread.

    Args:
        path, name, told, settings: as `look_at`.
        known: what that found, where it was called already.

    Raises:
        FailedPrecondition: the files changed since it was.
        SalverError: it cannot be served, and why.
    """
    if known is None:
        known = look_at(path, name, told, settings)
    elif known.stamp != _stamp((path, *_beside(path))):
        raise FailedPrecondition(f"'{path}' has changed since it was looked at; load the model again")
    return Tasted(known.bundle, load(known.bundle, known.settings, told.config), known.settings)


def _make_inputs(session: Session) -> dict[str, Array]:
    """Several made-up rows that a model runs on; empty when none were found."""
    try:
        rows = synthetic_inputs(session, session.signature, _ROWS, seed=0)
    except FailedPrecondition:
        return {}
    if not batchable(session.signature):
        return rows[0]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _decide_merge(
    bundle: Bundle, session: Session, inputs: dict[str, Array], settings: RunSettings, stateful: Stateful | None = None
) -> tuple[bool, str]:
    max_batch = settings.max_batch
    if not batchable(session.signature):
        return False, "inputs and outputs share no batch dimension"
    if max_batch == 1:
        return False, "batching is turned off: max_batch is 1"
    if stateful is not None and not stateful.keeps_state:
        return True, "its configuration says that it keeps the state of several sequences"
    record = bundle.record
    if stateful is None and record is not None and "merge" in record.hints:
        evaluation = record.sealed.evaluation
        invariance = None if evaluation is None else evaluation.invariance
        why = "" if invariance is None else invariance.reason
        return bool(record.hints["merge"]), why or "measured when it was built"
    if not inputs:
        return False, "it could not be tried: no made-up input fits the model"
    size = min(_ROWS, max_batch)
    try:
        if stateful is not None or (not bundle.sealed and _beside(bundle.path)):  # weights beside it are in no digest
            tried = _try_merging(session, inputs, size)
        else:
            runtime = find_backend(bundle.model.format).versions()
            run = (settings.threads, settings.provider, settings.share_weights, size)
            circumstances = (__version__, describe_cpu().fingerprint, runtime, bundle.digest, run)
            tried = try_once(circumstances, lambda: _try_merging(session, inputs, size))
    except SalverError as error:
        return False, f"it could not be tried: {error.message}"
    return tried.merge, tried.reason


def _try_merging(session: Session, inputs: dict[str, Array], size: int) -> Finding:
    found = check_invariance(session, inputs, sizes=(size,))
    return Finding(found.invariant, found.reason or "tried at load on made-up rows")


def _time_alone(session: Session, inputs: dict[str, Array], max_batch: int) -> tuple[CostModel, bool]:
    """`_warm_up`, while no other model is timed."""
    alone = _TIMED.acquire(timeout=_TURN_S)
    try:
        return _warm_up(session, inputs, max_batch)
    finally:
        if alone:
            _TIMED.release()


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


def warm_up(session: Session, inputs: dict[str, Array], asked: WarmUp) -> None:
    """Run what the configuration asks for, on rows that the model takes; nothing where there are none."""
    if not inputs:
        return
    rows = _resize(inputs, session.signature, asked.rows)
    for _ in range(asked.count):
        session.run(rows)


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


def describe(bundle: Bundle, loaded: Loaded, settings: RunSettings, config: ModelConfig) -> dict[str, Any]:
    """What metadata says of a served model besides its signature."""
    processing = bundle.model.processing
    steps = {} if processing is None else {"processing": [s["step"] for s in (*processing.before, *processing.after)]}
    return {
        **steps,
        "tested": bundle.tested,
        "digest": bundle.digest,
        "golden_requests": loaded.golden,
        "merge": loaded.merge,
        "merge_reason": loaded.merge_reason,
        "threads": settings.threads,
        "lanes": settings.lanes,
        "max_batch": settings.max_batch if loaded.merge else 1,
        "weights": "shared" if loaded.session.shares_weights else "private",
        "weights_bytes": loaded.weights_bytes,
        "config_ignored": list(config.ignored),
    }
