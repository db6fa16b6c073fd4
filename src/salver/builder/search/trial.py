"""One trial: make a candidate from a recipe and measure it beside the original. Runs as a process of its own."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from salver.builder.passes import make_pass
from salver.builder.passes.base import PassContext
from salver.builder.search.choose import Objective
from salver.builder.search.measure import Question, check_labels, evaluate, rank_layers
from salver.builder.search.spool import SpooledDataset
from salver.core.config import canonical_json
from salver.core.errors import Code, PassNotApplicable, SalverError
from salver.core.host import usable_cores
from salver.core.model import Model, digest_bytes
from salver.evaluation.types import Evaluation, Margin

Kind = Literal["make", "steer", "certify", "sensitivity"]

_PR_SET_PDEATHSIG: Final = 1
_MEMORY_SHARE: Final = 0.8


class TrialSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial process has to do.

    Args:
        kind: ``make``: make the candidate and keep it; ``steer``: make and measure on the steering examples;
            ``certify``: on the certification examples, timed longer and at the throughput batch too; ``sensitivity``:
            rank the layers a static int8 recipe quantizes.
        model: the imported original.
        recipe: passes to apply, in order; empty for the original itself.
        splits: role -> folder of spooled examples.
        metric, margin: what quality means, and how much worse is still not worse.
        threads, batch: for latency.
        workdir: where the trial leaves its files.
        tools: library -> version; part of what names the models kept.
        scores: file that keeps the original's statistics on these examples, shared by all trials.
        models_dir: where models made by passes are kept by content, shared by all trials.
        rows, objective: see `Question`.
        native, tolerance: see `PassContext`.
    """

    kind: Kind
    model: Model
    recipe: tuple[dict[str, Any], ...]
    splits: dict[str, str]
    metric: str
    margin: Margin
    threads: int
    batch: int
    tools: dict[str, str]
    workdir: str
    scores: str
    models_dir: str
    rows: int = 0
    objective: Objective = "latency"
    native: Model | None = None
    tolerance: float | None = None


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial found.

    Args:
        outcome: ``measured``, ``not-applicable`` or ``failed``.
        reason: why, when it was not measured.
        code: of the error that ended it, where there was one.
        model: the candidate.
        evaluation: what was measured.
        layers: for ``sensitivity``: node names, the one that hurts most first.
        seconds_per_row: wall time of scoring one example with the candidate.
        seconds: wall time of the trial.
    """

    outcome: Literal["measured", "not-applicable", "failed"]
    reason: str = ""
    code: Code = Code.INTERNAL
    model: Model | None = None
    evaluation: Evaluation | None = None
    layers: tuple[str, ...] = ()
    seconds_per_row: float = 0.0
    seconds: float = 0.0

    @classmethod
    def failed(cls, reason: str, code: Code = Code.INTERNAL) -> TrialResult:
        """A trial that ended badly."""
        return cls(outcome="failed", reason=reason, code=code)


def write_spec(spec: TrialSpec, path: Path) -> None:
    """Write what `main` reads."""
    path.write_bytes(msgspec.json.encode(spec, enc_hook=str))


def read_result(data: bytes) -> TrialResult:
    """Read what `main` wrote."""
    return msgspec.json.decode(data, type=TrialResult, dec_hook=_to_path)


def write_result(result: TrialResult, path: Path) -> None:
    """Write atomically, so that a reader never sees half a result."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(result, enc_hook=str))
    partial.replace(path)


def _to_path(kind: type, value: Any) -> Any:
    return Path(value) if kind is Path else value


def cache_name(*parts: Any) -> str:
    """A file name that stands for everything a stored result depends on: equal parts, equal name."""
    return digest_bytes(canonical_json(parts)).removeprefix("sha256:")[:32]


def make_candidate(spec: TrialSpec) -> Model:
    """Apply the recipe. Every prefix is kept by content, so that recipes which begin alike share the work.

    Raises:
        PassNotApplicable, SalverError: as the passes say.
    """
    model = spec.model
    calibration = SpooledDataset(Path(spec.splits["calibrate"])) if "calibrate" in spec.splits else None
    for item in spec.recipe:
        one = make_pass(item["pass"], item["config"])
        data = calibration.digest if calibration is not None and (one.needs_calibration or one.moves) else ""
        moved = (spec.native.digest if spec.native is not None else "", spec.tolerance) if one.moves else ()
        key = cache_name(model.digest, one.name, one.config.to_data(), data, moved, spec.tools)
        model = _apply_once(one, model, calibration, spec, Path(spec.models_dir) / key)
    # Passes see the graph alone, and keep nothing else.
    return msgspec.structs.replace(model, processing=spec.model.processing, trusted=spec.model.trusted)


def _apply_once(one: Any, model: Model, calibration: SpooledDataset | None, spec: TrialSpec, folder: Path) -> Model:
    note = folder / "model.json"
    if note.is_file():
        return msgspec.json.decode(note.read_bytes(), type=Model, dec_hook=_to_path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    context = PassContext(
        workdir=folder,
        calibration=calibration,
        threads=usable_cores(),
        native=spec.native,
        tolerance=spec.tolerance,
    )
    made: Model = one.apply(model, context)
    partial = folder / "model.partial"
    partial.write_bytes(msgspec.json.encode(made, enc_hook=str))
    partial.replace(note)
    return made


def run_trial(spec: TrialSpec) -> TrialResult:
    """Make and measure, in this process.

    Raises:
        SalverError: as passes and backends say.
    """
    data = SpooledDataset(Path(spec.splits["certify" if spec.kind == "certify" else "steer"]))
    if spec.kind == "sensitivity":
        calibration = SpooledDataset(Path(spec.splits["calibrate"]))
        layers = rank_layers(spec.model, spec.recipe[0], calibration, data, Path(spec.workdir), spec.threads)
        return TrialResult(outcome="measured", layers=layers)
    if not spec.recipe:
        parts = (SpooledDataset(Path(spec.splits[role])) for role in ("steer", "certify"))
        check_labels(spec.model, parts, spec.metric)
    candidate = make_candidate(spec)
    if spec.kind == "make":
        return TrialResult(outcome="measured", model=candidate)
    question = Question(
        metric=spec.metric,
        margin=spec.margin,
        threads=spec.threads,
        batch=spec.batch,
        role="certify" if spec.kind == "certify" else "steer",
        scores=Path(spec.scores),
        rows=spec.rows,
        objective=spec.objective,
    )
    measured, seconds = evaluate(candidate, spec.model, data, question)
    return TrialResult(outcome="measured", model=candidate, evaluation=measured, seconds_per_row=seconds)


def main(arguments: list[str]) -> int:
    """Read a spec, run it, write the result. The exit code is 0 whenever there is a result."""
    _bind_to_parent()
    _limit_memory()
    spec = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=TrialSpec, dec_hook=_to_path)
    try:
        result = run_trial(spec)
    except PassNotApplicable as error:
        result = TrialResult(outcome="not-applicable", reason=error.message)
    except SalverError as error:
        result = TrialResult.failed(error.message, error.code)
    write_result(result, Path(arguments[1]))
    return 0


def _bind_to_parent() -> None:
    """End with the parent, however it ends (Linux; elsewhere a killed build may leave one trial to finish)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit_memory() -> None:
    """Bound this process to most of the memory that is free now, so that a blow-up is an error here and not a kill
    somewhere else."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return
    limit = int(free * _MEMORY_SHARE)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
