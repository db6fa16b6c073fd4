"""Gates, front and choice follow from the numbers alone."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from salver.builder.search.choose import choose, finite_gate, gain, is_hopeful, objective_gate, order, pareto_front
from salver.builder.search.recipes import MOVES
from salver.evaluation.types import CandidateRecord, Evaluation, Interval, Latency, Margin, Quality, Verdict


def evaluation(speedup: float = 2.0, size: int = 250, drop: float = 0.0, width: float = 0.02) -> Evaluation:
    ci = Interval(low=speedup - width, high=speedup + width)
    timed = Latency(
        threads=1,
        batch=1,
        runs=100,
        p50_ms=1 / speedup,
        p95_ms=1,
        p99_ms=1,
        cpu_ms=1,
        baseline_p50_ms=1,
        baseline_cpu_ms=1,
        speedup=speedup,
        speedup_ci=ci,
    )
    quality = Quality(
        metric="accuracy",
        higher_is_better=True,
        value=0.9 - drop,
        baseline=0.9,
        drop=drop,
        drop_ci=Interval(low=drop, high=drop),
        drop_upper=drop,
        method="",
        examples=100,
    )
    return Evaluation(steer=(quality,), latency=(timed,), size_bytes=size, baseline_size_bytes=1000)


def candidate(name: str, outcome: str = "accepted", origin: str = "preset", **numbers: float) -> CandidateRecord:
    verdict = Verdict(outcome=outcome, reason="")  # type: ignore[arg-type]
    made = evaluation(**numbers)  # type: ignore[arg-type]
    return CandidateRecord(name=name, recipe=(), origin=origin, verdict=verdict, evaluation=made)


ORIGINAL = candidate("original", origin="baseline", speedup=1.0, size=1000)


def test_slower_is_rejected_with_the_factor_and_the_place() -> None:
    verdict = objective_gate(evaluation(speedup=0.25), "latency")
    assert verdict is not None
    assert verdict.reason == "4.00x slower than the original at 1 thread, batch 1"


def test_an_interval_over_one_is_not_faster() -> None:
    verdict = objective_gate(evaluation(speedup=1.01), "latency")
    assert verdict is not None
    assert "not measurably faster" in verdict.reason


def test_faster_and_smaller_pass() -> None:
    assert objective_gate(evaluation(), "latency") is None
    assert objective_gate(evaluation(), "size") is None
    assert objective_gate(evaluation(size=1000), "size") is not None


def test_nonfinite_outputs_are_rejected() -> None:
    bad = Evaluation(nonfinite_outputs=3)
    verdict = finite_gate(bad)
    assert verdict is not None
    assert verdict.gate == "finite"


def test_among_equally_fast_the_smaller_is_chosen() -> None:
    fast = candidate("fast", speedup=2.05, size=400)
    small = candidate("small", speedup=2.0, size=250)
    slow = candidate("slow", speedup=1.2, size=100)
    chosen, why = choose([ORIGINAL, fast, small, slow], "latency")
    assert chosen == "small"
    assert "2.00x faster and 4.00x smaller" in why[0]
    assert choose([ORIGINAL, fast, small, slow], "size")[0] == "slow"


def test_nothing_accepted_seals_the_original_and_says_why() -> None:
    chosen, why = choose([ORIGINAL, candidate("worse", outcome="rejected")], "latency")
    assert chosen == "original"
    assert "1 rejected" in why[-1]


@given(st.lists(st.tuples(st.floats(0.5, 4), st.integers(100, 2000), st.floats(-0.01, 0.02)), max_size=8))
def test_the_front_holds_no_dominated_candidate(points: list[tuple[float, int, float]]) -> None:
    made = [candidate(str(i), speedup=s, size=z, drop=d) for i, (s, z, d) in enumerate(points)]
    front = pareto_front([ORIGINAL, *made])
    assert front
    for a in made:
        dominated = any(
            gain(b.evaluation, "latency") > gain(a.evaluation, "latency")  # type: ignore[arg-type]
            and b.evaluation.size_bytes < a.evaluation.size_bytes  # type: ignore[union-attr]
            and b.evaluation.steer[0].drop < a.evaluation.steer[0].drop  # type: ignore[union-attr]
            for b in made
        )
        assert not (dominated and a.name in front)


@given(st.lists(st.tuples(st.floats(0.5, 4), st.integers(100, 2000)), max_size=8))
def test_order_keeps_everyone_once(points: list[tuple[float, int]]) -> None:
    made = [candidate(str(i), speedup=s, size=z) for i, (s, z) in enumerate(points)]
    assert sorted(c.name for c in order(made, "latency")) == sorted(c.name for c in made)


def test_what_is_neither_faster_nor_smaller_is_not_worth_a_change() -> None:
    chosen, why = choose([ORIGINAL, candidate("slim", speedup=1.02, size=990)], "latency")
    assert chosen == "original"
    assert "not worth a change" in why[0]
    assert choose([ORIGINAL, candidate("small", speedup=1.02, size=500)], "latency")[0] == "small"


def test_hope_needs_room_below_the_margin_and_enough_examples() -> None:
    equal = Quality(
        metric="accuracy",
        higher_is_better=True,
        value=0.9,
        baseline=0.9,
        drop=0.0,
        drop_ci=Interval(low=-0.01, high=0.01),
        drop_upper=0.01,
        method="",
        examples=400,
        discordant=0,
    )
    assert is_hopeful(equal, 299, Margin(value=0.01))  # ln 0.05 / ln 0.99
    assert not is_hopeful(equal, 298, Margin(value=0.01))
    assert not is_hopeful(evaluation(drop=0.02).steer[0], 10**9, Margin(value=0.01))


def test_a_smaller_model_that_is_slower_says_so() -> None:
    chosen, why = choose([ORIGINAL, candidate("tiny", speedup=0.5, size=100)], "size")
    assert chosen == "tiny"
    assert "2.00x slower and 10.00x smaller" in why[0]


def test_among_equals_the_original_s_backend_stays() -> None:
    moved = msgspec.structs.replace(candidate("moved", speedup=2.02), recipe=(MOVES["openvino"],))
    near, far = candidate("near", speedup=2.0), candidate("far", speedup=1.5)
    assert [c.name for c in order([moved, near], "latency")] == ["near", "moved"]
    assert [c.name for c in order([moved, far], "latency")] == ["moved", "far"]
