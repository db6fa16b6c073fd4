"""The search: enumerate, refine greedily within the budget, certify the finalists, choose.

Examples that calibrate, steer and certify are disjoint. A candidate that is worse on the steering examples, or not
better on the objective, is rejected there; at most five finalists see the certification examples, once, with Holm's
correction (see docs/evaluation/method.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from salver.backends import find_backend
from salver.builder.events import BuildEvent, OnEvent, Stage
from salver.builder.passes import PASSES
from salver.builder.search.cache import TrialCache
from salver.builder.search.choose import (
    TIE,
    Objective,
    choose,
    count_finalists,
    finite_gate,
    gain,
    is_hopeful,
    objective_gate,
    order,
    pareto_front,
    steer_gate,
)
from salver.builder.search.interrupt import Interrupts
from salver.builder.search.isolate import run_isolated
from salver.builder.search.recipes import (
    SLIM,
    Proposal,
    after_slimming,
    count_ops,
    is_moved,
    moves,
    neighbors,
    presets,
    runtime_defaults,
    without_layers,
)
from salver.builder.search.trial import Kind, TrialResult, TrialSpec, cache_name
from salver.core.errors import Code, Internal, InvalidArgument
from salver.core.model import Model
from salver.evaluation.noninferiority import MAX_FINALISTS, certify, margin_in_unit
from salver.evaluation.types import CandidateRecord, Evaluation, Host, Margin, Outcome, Verdict

ORIGINAL: Final = "original"
TRIAL_VERSION: Final = 3
"""Part of every cache key: raised when a trial measures something else than before."""

_CERTIFY_SHARE: Final = 0.4
_CERTIFY_LEAST_ROWS: Final = 1000
_LEAST_TRIAL_S: Final = 5.0
_LEAST_TIMEOUT_S: Final = 30.0
_REFINE_ROUNDS: Final = 8


class SearchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for.

    Args:
        metric: name of a metric, or ``module:function``.
        margin: how much worse is still not worse.
        objective: what must get better.
        threads, batch: at which latency is measured.
        backends: those that the model may be moved to: of `MOVES`, or the framework that made it.
        budget_s: wall time for everything; the search leaves enough of it to certify.
        trial_timeout_s: after which a trial is stopped.
    """

    metric: str
    margin: Margin
    objective: Objective
    threads: int
    batch: int
    backends: tuple[str, ...] = ()
    budget_s: float
    trial_timeout_s: float = 180.0


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the search found: every candidate with its verdict, the choice and why, and the model to seal."""

    candidates: tuple[CandidateRecord, ...]
    chosen: str
    why: tuple[str, ...]
    model: Model


class _Tried(msgspec.Struct, frozen=True):
    record: CandidateRecord
    model: Model | None


class Search:
    """One search over candidates of a model.

    Args:
        model: the imported original.
        native, tolerance: see `PassContext`.
        splits: role -> folder of spooled examples (``calibrate``, ``steer``, ``certify``).
        rows: role -> number of examples.
        digests: of the data and the split, as part of every cache key.
        settings: see `SearchSettings`.
        cache: where results are kept.
        host, tools: part of every cache key, since timings belong to a host and its library versions.
        on_event: told of progress.
    """

    def __init__(
        self,
        model: Model,
        *,
        native: Model | None = None,
        tolerance: float | None = None,
        splits: dict[str, Path],
        rows: dict[str, int],
        digests: dict[str, str],
        settings: SearchSettings,
        cache: TrialCache,
        host: Host,
        tools: dict[str, str],
        on_event: OnEvent,
    ) -> None:
        self._model = model
        self._native = native
        self._tolerance = tolerance
        self._splits = splits
        self._rows = rows
        self._digests = digests
        self._settings = settings
        self._cache = cache
        self._host = host
        self._tools = tools
        self._on_event = on_event
        self._tried: dict[str, _Tried] = {}
        self._interrupts = Interrupts()
        self._began_s = time.monotonic()
        self._certify_rows = 0
        self._finalist_s = 0.0
        self._done = 0
        self._planned = 0

    def run(self) -> SearchResult:
        """Search, certify and choose. Ctrl-C ends the search early: the best so far is certified and returned; a second
        one ends everything.

        Raises:
            SalverError: the original itself cannot be measured.
            KeyboardInterrupt: interrupted while measuring the original, or again while certifying.
        """
        self._measure_original()
        interrupted = False
        try:
            with self._interrupts:
                self._explore()
                self._interrupts.check()
        except KeyboardInterrupt:
            interrupted = True
            self._tell("search", "interrupted: certifying the best so far")
        self._certify()
        records = tuple(tried.record for tried in self._tried.values())
        front = pareto_front(records)
        records = tuple(msgspec.structs.replace(r, on_front=r.name in front) for r in records)
        chosen, why = choose(records, self._settings.objective)
        model = self._tried[chosen].model or self._model
        if model.format != self._model.format:
            backend = find_backend(model.format).name
            why = (*why, f"It is run by {backend}: whatever serves it needs pip install 'salver[{backend}]'.")
        if interrupted:
            why = (*why, "The search was interrupted; what had been measured by then was certified.")
        return SearchResult(candidates=records, chosen=chosen, why=why, model=model)

    # ------------------------------------------------------------------ the original

    def _measure_original(self) -> None:
        self._tell("baseline", "measuring the original")
        proposal = Proposal(name=ORIGINAL, recipe=(), origin="baseline")
        result = self._trial(proposal, "steer")
        if result.evaluation is None:
            wrong_input = result.code in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)
            kind = InvalidArgument if wrong_input else Internal
            raise kind(f"the original model cannot be measured: {result.reason}")
        verdict = Verdict(outcome="accepted", reason="the original, with which all others are compared")
        self._keep(proposal, result, verdict)
        # A finalist runs the certification examples, the first one beside the original, and is timed longer.
        both_s = 2 * max(result.seconds_per_row, 1e-9)
        affordable = int(self._settings.budget_s * _CERTIFY_SHARE / both_s)
        self._certify_rows = min(self._rows["certify"], max(affordable, _CERTIFY_LEAST_ROWS))
        # What does not depend on the number of examples is what it took here, timed half as long again.
        self._finalist_s = 1.5 * result.seconds + self._certify_rows * both_s / 2

    # ------------------------------------------------------------------ exploring

    def _explore(self) -> None:
        if self._model.format != "onnx":
            self._tell("search", f"no pass works on models of the format '{self._model.format}'")
            return
        if self._all_tried([*runtime_defaults(), *presets(count_ops(self._model), self._settings.backends)]):
            for _ in range(_REFINE_ROUNDS):
                if not self._refine():
                    return

    def _refine(self) -> bool:
        """Try the neighbors of the best so far; whether that found something better and there is time for more."""
        before = self._best_gain()
        return self._all_tried(list(self._refinements())) and self._best_gain() > before * (1 + TIE)

    def _refinements(self) -> Iterator[Proposal]:
        ranked = order(self._pending(), self._settings.objective)
        if ranked:
            # The best may have no neighbors (the runtime's defaults have none): then those of the best that has.
            yield from next(filter(None, (list(neighbors(record.recipe)) for record in ranked)), [])
            best = Proposal(name=ranked[0].name, recipe=ranked[0].recipe, origin=ranked[0].origin)
            yield from moves(best, self._settings.backends)
            slimmed = self._tried.get(SLIM.name)
            if slimmed is not None and slimmed.record.verdict.outcome == "not-certified":
                yield from after_slimming(ranked[0].name, ranked[0].recipe)
        floor = self._best_gain() * (1 + TIE)
        lost = [t.record for t in self._tried.values() if t.record.verdict.gate == "quality" and t.record.evaluation]
        fast = [r for r in order(lost, self._settings.objective) if _gain(r, self._settings.objective) > floor]
        for record in fast[:1]:
            yield from without_layers(record.recipe, self._rank_layers(record))

    def _rank_layers(self, record: CandidateRecord) -> list[str]:
        """Names of the layers a recipe quantizes, the one that hurts the outputs most first."""
        self._tell("search", f"finding the layers that hurt most in {record.name}")
        proposal = Proposal(name=record.name, recipe=record.recipe, origin=record.origin)
        return list(self._trial(proposal, "sensitivity").layers)

    def _all_tried(self, proposals: list[Proposal]) -> bool:
        """Measure proposals that were not yet; False when time ran out first."""
        fresh = [p for p in proposals if p.name not in self._tried]
        self._planned += len(fresh)
        for proposal in fresh:
            self._interrupts.check()
            if self._left_s() < self._reserve_s() + _LEAST_TRIAL_S:
                self._tell("search", "the budget for searching is spent")
                return False
            self._tell("search", proposal.name)
            result = self._trial(proposal, "steer", max(self._left_s(), _LEAST_TIMEOUT_S))
            record = self._keep(proposal, result, _with_expectation(self._steer_verdict(result), proposal))
            self._done += 1
            self._tell("search", proposal.name, record)
        return bool(fresh)

    def _steer_verdict(self, result: TrialResult) -> Verdict:
        measured = result.evaluation
        if measured is None:
            outcome: Outcome = "not-applicable" if result.outcome == "not-applicable" else "failed"
            return Verdict(outcome=outcome, reason=result.reason)
        worse = steer_gate(measured.steer[0], self._settings.margin)
        # What is slow was scored on few examples: that it is slow is the better reason, unless it is certainly worse.
        certain = measured.steer[0].drop_ci.low > margin_in_unit(self._settings.margin, measured.steer[0].baseline)
        return (
            finite_gate(measured)
            or (worse if certain else None)
            or objective_gate(measured, self._settings.objective)
            or worse
            or Verdict(outcome="not-certified", reason="measured, but not among the finalists")
        )

    # ------------------------------------------------------------------ certifying

    def _certify(self) -> None:
        finalists = self._finalists()
        self._done, self._planned = 0, len(finalists)
        measured: list[tuple[CandidateRecord, Evaluation]] = []
        for record in finalists:
            self._tell("certify", record.name)
            result = self._trial(Proposal(name=record.name, recipe=record.recipe, origin=record.origin), "certify")
            self._done += 1
            if result.evaluation is None:
                self._replace(record, Verdict(outcome="failed", reason=result.reason), record.evaluation)
                continue
            steer = record.evaluation.steer if record.evaluation else ()
            measured.append((record, msgspec.structs.replace(result.evaluation, steer=steer)))
        verdicts = certify([evaluation.certify[0] for _, evaluation in measured], self._settings.margin)
        for (record, evaluation), verdict in zip(measured, verdicts, strict=True):
            final = finite_gate(evaluation) or verdict
            if final.outcome == "accepted":
                final = objective_gate(evaluation, self._settings.objective) or final
            self._tell("certify", record.name, self._replace(record, final, evaluation))

    def _finalists(self) -> list[CandidateRecord]:
        """The best pending candidates of distinct content, and no more of them than the certification examples can
        carry under Holm's correction."""
        distinct: dict[str, CandidateRecord] = {}
        for record in order(self._pending(), self._settings.objective):
            distinct.setdefault(record.digest, record)
        ranked = list(distinct.values())
        if not ranked:
            return []
        # The fastest is no use when the examples there are cannot certify it: those they can come first.
        allowed = self._settings.margin
        hopeful = [r for r in ranked if r.evaluation and is_hopeful(r.evaluation.steer[0], self._certify_rows, allowed)]
        ranked = hopeful or ranked
        best = ranked[0].evaluation
        if best is None:
            return []
        carried = count_finalists(best.steer[0], self._certify_rows, self._settings.margin)
        affordable = int(max(self._left_s(), self._settings.budget_s * _CERTIFY_SHARE) / self._finalist_s)
        return ranked[: max(1, min(carried, affordable))]

    def _reserve_s(self) -> float:
        """What certification will need: the time of the finalists there are by now, at most a share of the budget.
        Nothing while there is nothing to certify: to go on looking is then worth running over by one finalist."""
        finalists = min(MAX_FINALISTS, len(self._pending()))
        return min(finalists * self._finalist_s, self._settings.budget_s * _CERTIFY_SHARE)

    def _pending(self) -> list[CandidateRecord]:
        return [t.record for t in self._tried.values() if t.record.verdict.outcome == "not-certified"]

    def _best_gain(self) -> float:
        return max((_gain(r, self._settings.objective) for r in self._pending()), default=1.0)

    # ------------------------------------------------------------------ trials

    def _trial(self, proposal: Proposal, kind: Kind, timeout_s: float = math.inf) -> TrialResult:
        rows = self._certify_rows if kind == "certify" else 0
        key = cache_name(
            TRIAL_VERSION,
            kind,
            self._model.digest,
            proposal.recipe,
            (self._native.digest if self._native else "", self._tolerance) if is_moved(proposal.recipe) else (),
            self._digests,
            (self._settings.metric, self._settings.margin, self._settings.threads, self._settings.batch),
            (self._settings.objective, rows),
            self._host.fingerprint,
            self._tools,
        )
        known = self._cache.get(key)
        if known is not None:
            return known
        spec = TrialSpec(
            kind=kind,
            model=self._model,
            recipe=proposal.recipe,
            splits={role: str(folder) for role, folder in self._splits.items()},
            metric=self._settings.metric,
            margin=self._settings.margin,
            threads=self._settings.threads,
            batch=self._settings.batch,
            tools=self._tools,
            workdir=str(self._cache.folder(key)),
            scores=str(self._scores_path("certify" if kind == "certify" else "steer", rows)),
            models_dir=str(self._cache.models_dir),
            rows=rows,
            objective=self._settings.objective,
            native=self._native,
            tolerance=self._tolerance,
        )
        began, limit_s = time.monotonic(), min(self._settings.trial_timeout_s, timeout_s)
        result = run_isolated(msgspec.structs.replace(spec, kind="make"), limit_s) if is_moved(spec.recipe) else None
        if result is None or result.outcome == "measured":
            # A process that has not loaded the other backend yet, to see what memory it takes.
            result = run_isolated(spec, limit_s)
        result = msgspec.structs.replace(result, seconds=time.monotonic() - began)
        self._cache.put(key, result)
        return result

    def _scores_path(self, role: str, rows: int) -> Path:
        key = cache_name(self._model.digest, self._digests, self._settings.metric, role, rows, self._tools)
        return self._cache.scores_dir / f"{key}.npz"

    def _keep(self, proposal: Proposal, result: TrialResult, verdict: Verdict) -> CandidateRecord:
        record = CandidateRecord(
            name=proposal.name,
            recipe=proposal.recipe,
            origin=proposal.origin,
            verdict=verdict,
            evaluation=result.evaluation,
            digest=result.model.digest if result.model else "",
            seconds=round(result.seconds, 2),
        )
        self._tried[proposal.name] = _Tried(record, result.model)
        return record

    def _replace(self, record: CandidateRecord, verdict: Verdict, evaluation: Evaluation | None) -> CandidateRecord:
        changed = msgspec.structs.replace(record, verdict=verdict, evaluation=evaluation)
        self._tried[record.name] = _Tried(changed, self._tried[record.name].model)
        return changed

    # ------------------------------------------------------------------ progress

    def _left_s(self) -> float:
        return self._settings.budget_s - (time.monotonic() - self._began_s)

    def _tell(self, stage: Stage, message: str, finished: CandidateRecord | None = None) -> None:
        self._on_event(
            BuildEvent(
                stage=stage,
                message=message,
                done=self._done,
                total=self._planned,
                elapsed_s=time.monotonic() - self._began_s,
                left_s=max(self._left_s(), 0.0),
                finished=finished,
            )
        )


def _with_expectation(verdict: Verdict, proposal: Proposal) -> Verdict:
    """Where speed was not gained, what the passes themselves say of the speed to be expected."""
    if verdict.gate != "speed":
        return verdict
    said = dict.fromkeys(f"{item['pass']}: {PASSES.get(item['pass']).gives_speed}" for item in proposal.recipe)
    expected = [text for text in said if not text.endswith(": ")]
    if not expected:
        return verdict
    return msgspec.structs.replace(verdict, reason=f"{verdict.reason}. Expected of {'; '.join(expected)}")


def _gain(record: CandidateRecord, objective: Objective) -> float:
    return gain(record.evaluation, objective) if record.evaluation else 0.0
