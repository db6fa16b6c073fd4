"""Which processes, lanes, threads and batch serve a model best: successive halving over measured capacity.

Many candidates are measured shortly, the better half of them again for longer, and so on (Jamieson and Talwalkar,
2016). What measures is given: the search itself starts no server.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from salver.client.load.plan import LoadResult

_FIRST_BATCH: Final = 32
_BATCHES: Final = (1, 8, 16, 64, 128)
_ALIKE: Final = 0.03
_SHARING_MAY_COST: Final = 0.02
_FINALISTS: Final = 3


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to serve a model; fields as in ``salver serve``. ``workers`` 0 is one process without a supervisor."""

    workers: int = 0
    threads: int = 1
    lanes: int = 1
    max_batch: int = _FIRST_BATCH
    affinity: bool = False
    share_weights: bool = False

    @property
    def processes(self) -> int:
        """Processes that answer."""
        return self.workers or 1

    @property
    def name(self) -> str:
        """For people."""
        parts = (_count(self.processes, "process"), _count(self.lanes, "lane"), _count(self.threads, "thread"))
        own = ", each on its own cores" if self.affinity else ""
        return f"{', '.join(parts)}, batch {self.max_batch}{own}" + (", shared weights" if self.share_weights else "")

    @property
    def is_plain(self) -> bool:
        """Whether it has a layout and a batch only; what else there is, is measured of the best of these."""
        return not (self.affinity or self.share_weights)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How thoroughly a candidate is measured.

    Args:
        run_s: one run of load.
        precision: of the rate.
        min_requests: in one run.
        attempts: runs at one rate before it counts as too high.
    """

    run_s: float
    precision: float
    min_requests: int
    attempts: int = 1


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a candidate.

    Args:
        rung: how thoroughly: higher is more.
        best: the run at the highest rate that held; None where none did.
        memory_bytes: of the process tree after it.
        failure: why it could not be measured; empty where it could.
    """

    candidate: Candidate
    rung: int
    best: LoadResult | None
    memory_bytes: int = 0
    failure: str = ""

    @property
    def capacity_per_s(self) -> float:
        """The highest rate that held."""
        return self.best.offered_per_s if self.best is not None else 0.0


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a search.

    Args:
        winner: the trial of what was chosen.
        why: sentences that explain it.
        trials: the most thorough one of each candidate, best first.
    """

    winner: Trial
    why: tuple[str, ...]
    trials: tuple[Trial, ...]


Measure = Callable[[Candidate, Effort, int, Trial | None], Trial]
"""Candidate, how thoroughly, which rung that is, and what was measured of it before."""

DEFAULT: Final = Candidate()
"""How a server runs a model of which it knows nothing."""

RUNGS: Final = (
    Effort(run_s=0.5, precision=0.2, min_requests=60),
    Effort(run_s=1.0, precision=0.1, min_requests=150, attempts=2),
    Effort(run_s=2.0, precision=0.05, min_requests=300, attempts=2),
)


def layouts(cores: int) -> list[Candidate]:
    """Processes, lanes and threads that use between half of the cores and all of them, and the default: it comes first,
    then those that use most."""
    sizes = [size for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128) if size <= cores]
    sizes = sizes if cores in sizes else [*sizes, cores]
    found = [
        Candidate(workers=0 if workers == 1 else workers, lanes=lanes, threads=threads)
        for workers, lanes, threads in itertools.product(sizes, repeat=3)
        if cores / 2 < workers * lanes * threads <= cores
    ]
    # Mixed layouts of many-core machines are many: the plain ones first, where the budget may end the search.
    found.sort(
        key=lambda c: (sum(n > 1 for n in (c.processes, c.lanes, c.threads)), -c.processes * c.lanes * c.threads)
    )
    return list(dict.fromkeys([DEFAULT, *found]))


def search(
    cores: int,
    measure: Measure,
    *,
    merge: bool,
    stop: Callable[[], bool] | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> Choice | None:
    """Measure, and choose.

    Args:
        cores: that the server may use.
        measure: see `Measure`.
        merge: whether requests may share a batch, so that its size matters.
        stop: asked whether to end with the best so far, because time is up or the user wants it.

    Returns:
        None where nothing was measured.
    """
    known: dict[Candidate, Trial] = {}
    is_over = stop or (lambda: False)

    def measure_all(candidates: Iterable[Candidate], rung: int) -> None:
        for candidate in candidates:
            before = known.get(candidate)
            if is_over():
                return
            if before is not None and before.rung >= rung:
                continue
            trial = measure(candidate, RUNGS[rung], rung, before)
            if is_over() and before is not None:  # cut short: what was measured before is worth more
                return
            known[candidate] = trial
            if on_trial is not None:
                on_trial(trial)

    measure_all(layouts(cores), 0)
    best = [trial.candidate for trial in _ranked(known.values())]
    measure_all(best[: max(2, len(best) // 2)], 1)
    if merge:
        for candidate in [trial.candidate for trial in _ranked(known.values())][:2]:
            measure_all((msgspec.structs.replace(candidate, max_batch=size) for size in _BATCHES), 1)
    finalists = [trial.candidate for trial in _ranked(known.values())[:_FINALISTS]]
    measure_all(dict.fromkeys([*finalists, DEFAULT]), 2)
    if known and (chosen := _choose(known.values())).candidate.workers > 1:
        measure_all([msgspec.structs.replace(chosen.candidate, affinity=True)], 2)
        best_so_far = _with_affinity(chosen, known.values())
        measure_all([msgspec.structs.replace(best_so_far.candidate, share_weights=True)], 2)
    return explain(list(known.values())) if known else None


def _ranked(trials: Iterable[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: -trial.capacity_per_s)


def _choose(trials: Iterable[Trial]) -> Trial:
    """The one with the least processes, threads and lanes of those that are about as good as the best."""
    found = [trial for trial in trials if trial.candidate.is_plain]
    thorough = max(trial.rung for trial in found)
    found = [trial for trial in found if trial.rung == thorough]
    top = max(trial.capacity_per_s for trial in found)
    alike = [trial for trial in found if trial.capacity_per_s >= (1 - _ALIKE) * top]
    return min(alike, key=_cost)


def _with_affinity(plain: Trial, trials: Iterable[Trial]) -> Trial:
    """The same on cores of its own, where that is better by more than the noise; else as it is."""
    own = msgspec.structs.replace(plain.candidate, affinity=True)
    found = next((trial for trial in trials if trial.candidate == own), plain)
    return found if found.capacity_per_s > (1 + _ALIKE) * plain.capacity_per_s else plain


def _cost(trial: Trial) -> tuple[Any, ...]:
    candidate = trial.candidate
    width = candidate.processes * candidate.lanes * candidate.threads
    return candidate.processes, width, candidate.max_batch != _FIRST_BATCH, -trial.capacity_per_s


def explain(trials: Sequence[Trial]) -> Choice:
    """Choose among trials, of which there is at least one, and say why."""
    winner = _choose(trials)
    why = []
    if winner.best is None:
        why.append("no candidate kept the objective at any rate: the default stays")
        winner = next((trial for trial in trials if trial.candidate == DEFAULT), winner)
    else:
        why.append(f"{winner.candidate.name}: 99 % within the objective up to {winner.capacity_per_s:,.0f}/s")
        why += _compared(winner, trials)
    own = next((trial for trial in trials if trial.candidate.affinity and not trial.candidate.share_weights), None)
    if own is not None:
        change = own.capacity_per_s / max(winner.capacity_per_s, 1e-9) - 1
        better = _with_affinity(winner, trials)
        verdict = "not taken" if better is winner else "taken"
        why.append(f"processes that keep to their own cores change the rate by {change:+.1%}: {verdict}")
        winner = better
    shared = next((trial for trial in trials if trial.candidate.share_weights), None)
    if shared is not None:
        loss = 1 - shared.capacity_per_s / max(winner.capacity_per_s, 1e-9)
        saved = (winner.memory_bytes - shared.memory_bytes) / 2**20
        cheap = loss <= _SHARING_MAY_COST
        verdict = "taken" if cheap and saved > 0 else "not taken"
        why.append(f"weights shared between processes cost {loss:.1%} of the rate and save {saved:.0f} MiB: {verdict}")
        winner = shared if verdict == "taken" else winner
    return Choice(
        winner=winner, why=tuple(why), trials=tuple(sorted(trials, key=lambda t: (-t.rung, -t.capacity_per_s)))
    )


def _compared(winner: Trial, trials: Sequence[Trial]) -> list[str]:
    why = []
    plain = next((trial for trial in trials if trial.candidate == DEFAULT and trial is not winner), None)
    if plain is not None and plain.capacity_per_s:
        change = winner.capacity_per_s / plain.capacity_per_s - 1
        why.append(f"that is {change:+.0%} beside the default ({DEFAULT.name}: {plain.capacity_per_s:,.0f}/s)")
    better = [trial for trial in trials if trial.rung == winner.rung and trial.capacity_per_s > winner.capacity_per_s]
    better = [trial for trial in better if trial.candidate.is_plain]
    if better:
        top = max(better, key=lambda trial: trial.capacity_per_s)
        gain = top.capacity_per_s / winner.capacity_per_s - 1
        why.append(f"{top.candidate.name} was {gain:.1%} faster, within the noise, and takes more processes or threads")
    late = winner.best is not None and winner.best.generator.is_bottleneck
    if late and winner.best is not None:
        why.append(f"the load generator shared the machine with the server: {winner.best.generator.why}")
    return why
