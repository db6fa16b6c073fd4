"""The search for the best way to serve, over made-up machines; the real one is tested with the command line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from salver.client.load import Generator, Latencies, LoadResult
from salver.client.load.tuning import DEFAULT, RUNGS, Candidate, Effort, Trial, explain, layouts, search


def result_at(rate_per_s: float) -> LoadResult:
    return LoadResult(
        url="http://localhost",
        model="m",
        wire="rest",
        offered_per_s=rate_per_s,
        requests=100,
        ok=100,
        throughput_per_s=rate_per_s,
        rows_per_s=rate_per_s,
        goodput_per_s=rate_per_s,
        within_slo=1.0,
        latency=Latencies(mean=1, p50=1, p90=1, p95=1, p99=1, p99_9=1, max=1),
        outcomes={"OK": 100},
        retry_after=0,
        retry_after_mean_s=None,
        server_cpu_us=10.0,
        generator=Generator(cpu_us=1.0, busy=0.1),
        window_s=1.0,
        wall_s=1.0,
    )


class Machine:
    """Candidates have the capacity that a function says."""

    def __init__(self, capacity: Callable[[Candidate], float]) -> None:
        self._capacity = capacity
        self.efforts: list[tuple[Candidate, int]] = []

    def measure(self, candidate: Candidate, effort: Effort, rung: int, before: Trial | None) -> Trial:
        assert effort is RUNGS[rung]
        assert before is None or before.rung < rung
        self.efforts.append((candidate, rung))
        rate = self._capacity(candidate)
        memory = candidate.processes * (40 if candidate.share_weights else 100) << 20
        return Trial(
            candidate=candidate, rung=rung, best=result_at(rate) if rate else None, memory_bytes=memory, failure=""
        )


def test_layouts_use_the_cores_and_begin_with_the_default() -> None:
    assert layouts(1) == [DEFAULT]
    two = {(c.processes, c.lanes, c.threads) for c in layouts(2)}
    assert two == {(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)}
    eight = layouts(8)
    assert eight[0] == DEFAULT
    assert len(set(eight)) == len(eight)
    assert all(c == DEFAULT or 4 < c.processes * c.lanes * c.threads <= 8 for c in eight)
    assert Candidate(workers=2, lanes=2, threads=2) in eight
    assert any(c.threads == 5 for c in layouts(5))


def test_the_best_layout_and_batch_are_found_and_explained() -> None:
    machine = Machine(lambda c: 100.0 * c.processes**0.9 * c.threads**0.6 * (1.2 if c.max_batch == 64 else 1))
    choice = search(4, machine.measure, merge=True)
    assert choice is not None
    assert choice.winner.candidate == Candidate(workers=4, max_batch=64, share_weights=True)
    assert (
        choice.why[0]
        == f"4 processes, 1 lane, 1 thread, batch 64: 99 % within the objective up to {100 * 4**0.9 * 1.2:.0f}/s"
    )
    assert choice.why[1].endswith("beside the default (1 process, 1 lane, 1 thread, batch 32: 100/s)")
    assert choice.why[-1] == "weights shared between processes cost 0.0% of the rate and save 240 MiB: taken"
    assert [rung for candidate, rung in machine.efforts if candidate == DEFAULT] == [0, 2]


def test_of_those_alike_the_one_with_the_least_processes_is_taken() -> None:
    machine = Machine(lambda c: 100.0 + c.processes)
    choice = search(2, machine.measure, merge=False)
    assert choice is not None
    assert choice.winner.candidate == DEFAULT
    assert "within the noise" in choice.why[1]


@pytest.mark.parametrize(("gain", "is_taken"), [(0.10, True), (0.02, False), (-0.10, False)])
def test_processes_keep_to_their_own_cores_where_that_is_better(gain: float, is_taken: bool) -> None:
    machine = Machine(lambda c: 100.0 * c.processes * (1 + gain * c.affinity))
    choice = search(2, machine.measure, merge=False)
    assert choice is not None
    assert choice.winner.candidate == Candidate(workers=2, affinity=is_taken, share_weights=True)
    verdict = "taken" if is_taken else "not taken"
    assert f"processes that keep to their own cores change the rate by {gain:+.1%}: {verdict}" in choice.why


def test_weights_that_are_dear_to_share_are_not_shared() -> None:
    machine = Machine(lambda c: 100.0 * c.processes * (0.9 if c.share_weights else 1))
    choice = search(2, machine.measure, merge=False)
    assert choice is not None
    assert choice.winner.candidate == Candidate(workers=2)
    assert choice.why[-1] == "weights shared between processes cost 10.0% of the rate and save 120 MiB: not taken"


@pytest.mark.parametrize("trials", range(1, 12))
def test_a_search_that_is_stopped_gives_the_best_so_far(trials: int) -> None:
    machine = Machine(lambda c: 100.0 * c.processes)
    choice = search(4, machine.measure, merge=True, stop=lambda: len(machine.efforts) >= trials)
    assert choice is not None
    assert len(machine.efforts) == trials
    measured = {candidate for candidate, _ in machine.efforts}
    assert choice.winner.candidate in measured
    assert {trial.candidate for trial in choice.trials} == measured


def test_nothing_measured_is_nothing_chosen() -> None:
    assert search(2, Machine(lambda _: 1.0).measure, merge=True, stop=lambda: True) is None


def test_an_objective_that_nothing_keeps_leaves_the_default() -> None:
    choice = search(2, Machine(lambda _: 0.0).measure, merge=False)
    assert choice is not None
    assert choice.winner.candidate == DEFAULT
    assert choice.why == ("no candidate kept the objective at any rate: the default stays",)


def test_batch_sizes_are_tried_only_where_requests_are_merged() -> None:
    machine = Machine(lambda _: 100.0)
    search(2, machine.measure, merge=False)
    assert {candidate.max_batch for candidate, _ in machine.efforts} == {32}


def test_what_could_not_be_measured_is_no_candidate() -> None:
    good = Trial(candidate=Candidate(threads=2), rung=0, best=result_at(5.0))
    bad = Trial(candidate=DEFAULT, rung=0, best=None, failure="it does not start")
    assert explain([bad, good]).winner is good
