"""What the numbers say, and that they never say more than they hold."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salver.server.engine.base import BatchCost, ModelFacts, Timing
from salver.server.engine.served import LoadedModel
from salver.server.monitoring.explain import Explanation, explain
from salver.server.monitoring.metrics import Metrics
from salver.server.monitoring.record import MAX_SIZES, ModelRecord

OVER_S = 40.0
FACTS = ModelFacts(
    name="m",
    version="1",
    state="READY",
    lanes=1,
    threads=1,
    max_batch=32,
    merge=True,
    merge_reason="measured when it was built",
    may_inline=True,
    cpu_s=0.002,
    costs=(BatchCost(1, 0.001, 0.002), BatchCost(32, 0.010, 0.012)),
    doubling=1.4,
)


class Counts:
    """Counts of one model, made up."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.model = LoadedModel("m", "1", self.metrics)

    def batches(
        self,
        number: int,
        *,
        rows: int = 1,
        wait_s: float = 0.0001,
        run_s: float = 0.001,
        encode_s: float = 0.0001,
        rest_s: float = 0.0001,
        reason: str = "idle_lane",
        inline: bool = False,
    ) -> Counts:
        """Batches of single rows, all answered."""
        for _ in range(number):
            self.metrics.record_batch(self.model, rows, inline, run_s, [wait_s] * rows, reason)
            for _ in range(rows):
                total_s = wait_s + run_s + encode_s + rest_s
                self.metrics.record(self.model, "OK", Timing(wait_s, run_s, rows), total_s, encode_s)
        return self

    def refused(self, number: int, code: str, reason: str) -> Counts:
        for _ in range(number):
            self.metrics.record_refused(self.model, code, reason)
            self.metrics.record(self.model, code, None, 0.0001)
        return self

    def explain(self, over_s: float = OVER_S, recent_s: float = OVER_S, **facts: Any) -> Explanation:
        return explain(self.record, over_s, [msgspec.structs.replace(FACTS, **facts)], recent_s)

    @property
    def record(self) -> ModelRecord:
        return self.metrics.of(self.model)


def idle() -> Counts:
    return Counts().batches(400, rows=1)


def full() -> Counts:
    return Counts().batches(1200, rows=32, run_s=0.033, wait_s=0.2, reason="full")


CASES = {
    "idle lanes": (
        idle(),
        {},
        ["batches have 1 row on average because a lane was free", "is not the limit"],
    ),
    "full batches that would gain": (full(), {}, ["lanes are busy 99 %", "--max-batch 64", "40 % more throughput"]),
    "full batches that would not": (full(), {"doubling": 1.02}, ["larger ones would gain little", "--lanes"]),
    "busy with batches that are not full": (
        Counts().batches(1200, rows=5, run_s=0.033, reason="key"),
        {},
        ["the model is the limit; a faster one helps most", "another row shape"],
    ),
    "not merged and busy": (
        Counts().batches(1200, run_s=0.033, wait_s=0.2, reason="alone"),
        {"merge": False, "max_batch": 1, "merge_reason": "batch-mates change answers"},
        ["requests are not merged (batch-mates change answers)", "--workers"],
    ),
    "not merged and waiting": (
        Counts().batches(400, run_s=0.01, wait_s=0.01, reason="alone"),
        {"merge": False, "max_batch": 1, "merge_reason": "batch-mates change answers"},
        ["merging is off (batch-mates change answers), and wait for each other"],
    ),
    "one event loop": (
        Counts().batches(400, rows=2, inline=True, run_s=0.0001, wait_s=0.005),
        {},
        ["waiting while batches run on the event loop", "--workers"],
    ),
    "bursts": (
        Counts().batches(100, rows=16, run_s=0.001, wait_s=0.01, reason="full"),
        {},
        ["waiting though lanes are busy only 0 %"],
    ),
    "encoding": (Counts().batches(200, encode_s=0.05), {}, ["encoding answers takes", "in binary"]),
    "decoding": (Counts().batches(200, rest_s=0.05), {}, ["reading requests", "in binary"]),
    "held by the objective": (
        Counts().batches(600, rows=8, run_s=0.033, wait_s=0.01, reason="slo"),
        {"slo_s": 0.05},
        ["held at 8 rows", "the objective of 50 ms", "a higher --slo"],
    ),
    "queue full": (
        idle().refused(100, "RESOURCE_EXHAUSTED", "queue_full"),
        {},
        ["100 of 500 requests", "the queue was full"],
    ),
    "deadlines": (idle().refused(100, "DEADLINE_EXCEEDED", "deadline"), {}, ["allow more time"]),
    "share": (idle().refused(100, "RESOURCE_EXHAUSTED", "client_share"), {}, ["more than its share"]),
    "unknown reason": (idle().refused(100, "RESOURCE_EXHAUSTED", "other"), {}, ["of what they asked"]),
    "nothing special": (Counts().batches(400, rows=20, run_s=0.02), {}, ["nothing stands out"]),
    "few": (Counts().batches(10), {}, ["only 10 requests in the last 40 s: too few"]),
    "none": (Counts(), {}, ["nothing was asked yet"]),
}


@pytest.mark.parametrize("case", CASES)
def test_advice(case: str) -> None:
    counts, facts, expected = CASES[case]
    advice = counts.explain(**facts).advice
    for text in expected:
        assert any(text in sentence for sentence in advice), advice
    if case in ("few", "none", "nothing special"):
        assert len(advice) == 1


def test_old_numbers_are_shown_and_give_no_advice() -> None:
    told = full().explain(over_s=5000.0, recent_s=45.0)
    assert told.batches == 1200
    assert told.advice == ["nothing was asked in the last 45 s; the numbers are of all the time since the start"]


def test_what_is_told() -> None:
    counts = Counts().batches(300, rows=1).batches(100, rows=4, run_s=0.004, reason="full", inline=True)
    told = counts.refused(7, "RESOURCE_EXHAUSTED", "queue_full").explain()
    assert told.requests == {"OK": 700, "RESOURCE_EXHAUSTED": 7}
    assert told.requests_per_s == pytest.approx(707 / OVER_S)
    assert told.rows_per_s == pytest.approx(700 / OVER_S)
    assert (told.batches, told.mean_rows, told.sizes) == (400, 1.75, {"1": 300, "4": 100})
    assert told.reasons == {"idle_lane": 300, "full": 100}
    assert told.refused == {"queue_full": 7}
    assert told.inline_share == 0.25
    assert told.busy_share == pytest.approx(300 * 0.001 / OVER_S)
    assert told.settings == {"lanes": 1, "threads": 1, "max_batch": 32, "processes": 1}
    assert told.where == "on lanes: a batch of one row takes 2 ms of CPU time"
    assert sum(told.time[name].share for name in ("queue", "compute", "encode", "rest")) == pytest.approx(1.0)
    assert told.time["compute"].mean_s == pytest.approx((300 * 0.001 + 400 * 0.004) / 707)
    assert 0.0005 < (told.time["compute"].p50_s or 0) <= 0.005


def test_quantiles_lie_in_their_bucket() -> None:
    counts = Counts().batches(99, run_s=0.0015).batches(1, run_s=0.2)
    compute = counts.record.compute
    assert 0.001 <= compute.quantile(0.5) <= 0.0025
    assert 0.001 <= compute.quantile(0.98) <= 0.0025
    assert 0.1 <= compute.quantile(0.995) <= 0.25
    assert Counts().batches(3, run_s=500.0).record.compute.quantile(0.5) == 60.0
    assert Counts().record.compute.quantile(0.99) == 0.0


def test_many_sizes_are_counted_in_groups() -> None:
    counts = Counts()
    for rows in range(1, 200):
        counts.metrics.record_batch(counts.model, rows, False, 0.001, (), "full")
    record = counts.record
    assert len(record.sizes) <= MAX_SIZES + 12
    assert record.inferences == sum(range(1, 200))
    assert record.batch_rows.count == 199
    assert list(record.batch_rows.counts) == [1, 1, 2, 4, 8, 16, 32, 64, 71, 0, 0, 0]
    assert counts.explain().sizes["<256"] == 71


def test_several_processes_are_one() -> None:
    other = msgspec.structs.replace(FACTS, costs=(BatchCost(1, 0.003, 0.004),), doubling=1.6)
    told = explain(Counts().batches(400, run_s=0.05).record, OVER_S, [FACTS, other], OVER_S)
    assert (told.lanes, told.settings["processes"]) == (2, 2)
    assert told.busy_share == pytest.approx(0.25)
    assert told.costs == [BatchCost(1, 0.002, 0.003), BatchCost(32, 0.010, 0.012)]
    assert told.doubling == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("facts", "where"),
    [
        ({"inline": True, "cpu_s": 0.00005}, "on the event loop: a batch of one row takes 0.05 ms of CPU time"),
        ({"may_inline": False}, "on lanes: its runtime hands work to threads of its own"),
        ({"cpu_s": 0.0}, "on lanes until its cost is known"),
        ({"lanes": 0}, "its steps run where their own models do"),
    ],
)
def test_where_batches_run(facts: dict[str, Any], where: str) -> None:
    assert idle().explain(**facts).where.startswith(where)


@settings(max_examples=50)
@given(
    batches=st.lists(
        st.tuples(
            st.integers(1, 6),
            st.integers(1, 20),
            st.floats(0, 10),
            st.floats(0, 10),
            st.sampled_from(["full", "slo", "idle_lane", "key", "alone", "retry", ""]),
            st.booleans(),
        ),
        max_size=4,
    ),
    refused=st.integers(0, 60),
    over_s=st.floats(0.001, 1e4),
    lanes=st.integers(0, 4),
    merge=st.booleans(),
    doubling=st.floats(0, 2),
)
def test_any_numbers_are_explained(
    batches: list[tuple[int, int, float, float, str, bool]],
    refused: int,
    over_s: float,
    lanes: int,
    merge: bool,
    doubling: float,
) -> None:
    counts = Counts().refused(refused, "UNAVAILABLE", "draining")
    for number, rows, run_s, wait_s, reason, inline in batches:
        counts.batches(number, rows=rows, run_s=run_s, wait_s=wait_s, reason=reason, inline=inline)
    told = counts.explain(over_s, over_s, lanes=lanes, merge=merge, doubling=doubling, max_batch=32 if merge else 1)
    assert told.advice
    assert all(sentence and "nan" not in sentence for sentence in told.advice)
    assert 0.0 <= told.busy_share <= 1.0
    assert all(0.0 <= part.share <= 1.0 for part in told.time.values())
    assert msgspec.json.decode(msgspec.json.encode(told), type=Explanation) == told
    if not batches and not refused:
        assert told.advice == ["nothing was asked yet"]
