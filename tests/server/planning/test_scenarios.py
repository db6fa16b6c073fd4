"""The scenarios of the benchmark, small, and any others that Hypothesis thinks of."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salver.core.errors import InvalidArgument, NotFound, UnknownName
from salver.server.planning.scenario import (
    Bursts,
    Closed,
    Diurnal,
    Fault,
    Fleet,
    Latency,
    OnOff,
    Overheads,
    Poisson,
    Process,
    Scenario,
    SimulatedModel,
    Stream,
    read_scenarios,
)
from salver.server.planning.simulator import simulate

SCENARIOS = {
    scenario.name: scenario for scenario in read_scenarios(Path(__file__).parents[3] / "benchmarks" / "scenarios.toml")
}


def test_there_are_at_least_twenty_and_each_says_why() -> None:
    assert len(SCENARIOS) >= 20
    assert all(scenario.why for scenario in SCENARIOS.values())


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_happens_that_must_not(name: str) -> None:
    outcome = simulate(msgspec.structs.replace(SCENARIOS[name], requests=8000))
    assert outcome.violations == ()
    assert outcome.offered > 2000
    assert outcome.answered + outcome.vanished + sum(outcome.refused.values()) == outcome.offered
    assert outcome.answered > outcome.offered / 20


def test_faults_are_felt() -> None:
    outcomes = {
        name: simulate(msgspec.structs.replace(SCENARIOS[name], requests=20_000))
        for name in ("bad-requests", "killed-workers", "the-only-worker-killed", "hanging-runs", "vanishing-clients")
    }
    assert outcomes["bad-requests"].refused["INTERNAL"] > 100
    assert outcomes["the-only-worker-killed"].refused["UNAVAILABLE"] > 1000
    assert 0 < outcomes["killed-workers"].refused.get("UNAVAILABLE", 0) < 200
    assert outcomes["vanishing-clients"].vanished > 2000
    steady = simulate(msgspec.structs.replace(SCENARIOS["hanging-runs"], requests=20_000, faults=()))
    assert outcomes["hanging-runs"].longest_wait_s > steady.longest_wait_s


def test_a_balancer_helps() -> None:
    hashed, balanced = (
        simulate(msgspec.structs.replace(SCENARIOS[name], requests=30_000)) for name in ("workers", "workers-balanced")
    )
    assert balanced.p99_s < hashed.p99_s


rates = st.floats(50, 5000)
processes: st.SearchStrategy[Process] = st.one_of(
    st.builds(Poisson, rate_per_s=rates),
    st.builds(OnOff, on_per_s=rates, off_per_s=rates, on_s=st.floats(0.01, 1), off_s=st.floats(0.01, 1)),
    st.builds(Diurnal, rate_per_s=rates, swing=st.floats(0, 1), period_s=st.floats(0.1, 10)),
    st.builds(Bursts, size=st.integers(1, 300), every_s=st.floats(0.1, 1)),
    st.builds(Closed, clients=st.integers(1, 50), think_s=st.floats(0, 0.1)),
)
shares = st.sampled_from([0.0, 0.0, 0.01, 0.3])
models = st.builds(
    SimulatedModel,
    latency=st.builds(
        Latency,
        base_s=st.floats(1e-5, 0.01),
        per_row_s=st.floats(0, 1e-3),
        sigma=st.floats(0, 0.5),
        tail_share=shares,
        cpu_share=st.floats(0, 1),
    ),
    max_batch=st.integers(1, 40),
    max_queue=st.integers(1, 300),
    max_queue_bytes=st.sampled_from([5000, 1 << 30]),
    lanes=st.integers(1, 3),
    slo_s=st.sampled_from([0.0, 0.02, 0.2]),
    threads=st.integers(1, 3),
    merge=st.booleans(),
    inline=st.booleans(),
    fail_share=shares,
)
streams = st.builds(
    Stream,
    model=st.sampled_from(["a", "b"]),
    client=st.sampled_from(["", "", "one", "two"]),
    arrivals=processes,
    rows=st.lists(st.integers(1, 60), min_size=1, max_size=3).map(tuple),
    keys=st.integers(1, 4),
    priority=st.integers(-2, 2),
    timeout_s=st.sampled_from([0.0, 0.0, 0.005, 0.1]),
    bad_share=shares,
    vanish_share=shares,
    patience_s=st.floats(1e-4, 0.1),
)
faults = st.builds(
    Fault,
    kind=st.sampled_from(["slow", "hang", "kill", "swap"]),
    at_s=st.floats(0, 1),
    for_s=st.floats(0, 0.5),
    every_s=st.floats(0.05, 1),
    worker=st.integers(-1, 2),
)


@settings(max_examples=100, deadline=None)
@given(
    scenario=st.builds(
        Scenario,
        name=st.just("any"),
        requests=st.integers(1, 600),
        seed=st.integers(0, 2**31),
        models=st.fixed_dictionaries({"a": models, "b": models}),
        streams=st.lists(streams, min_size=1, max_size=4).map(tuple),
        faults=st.lists(faults, max_size=3).map(tuple),
        fleet=st.builds(
            Fleet,
            workers=st.integers(1, 4),
            cores=st.integers(1, 4),
            connections=st.integers(1, 20),
            routing=st.sampled_from(["connection", "random", "turns"]),
        ),
        overheads=st.builds(
            Overheads,
            turn_s=st.floats(0, 1e-4),
            inline_s=st.sampled_from([0.0, 200e-6, 1.0]),
            gather_s=st.sampled_from([0.0, 1e-3]),
        ),
    )
)
def test_nothing_happens_that_must_not_in_any_scenario(scenario: Scenario) -> None:
    outcome = simulate(scenario)
    assert outcome.violations == ()
    assert outcome.answered + outcome.vanished + sum(outcome.refused.values()) == outcome.offered


GOOD = """
[[scenario]]
name = "one"
models.m = {{ latency = {{ base_s = 0.001 }} }}
streams = [{{ model = "{model}", arrivals = {{ kind = "{kind}", rate_per_s = {rate} }} }}]
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.format(model="n", kind="poisson", rate=1), "unknown model of scenario 'one' 'n'"),
        (GOOD.format(model="m", kind="poison", rate=1), "Invalid value 'poison'"),
        (GOOD.format(model="m", kind="poisson", rate=0), "rate_per_s: got 0.0, expected more than 0"),
        (GOOD.format(model="m", kind="poisson", rate="nan"), "rate_per_s: got nan"),
        (GOOD.format(model="m", kind="poisson", rate=1) + "request = 7", "unknown field `request`"),
        ("[[scenario]", "cannot be read"),
        (GOOD.format(model="m", kind="poisson", rate=1).replace("base_s = 0.001", "base_s = 0.0"), "must take time"),
        (
            GOOD.format(model="m", kind="poisson", rate=1).replace("base_s = 0.001", "table = [[4, 0.1], [2, 0.2]]"),
            "got rows [4, 2]",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "scenarios.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises((InvalidArgument, UnknownName)) as raised:
        read_scenarios(path)
    assert told in raised.value.message


def test_json_will_do(tmp_path: Path) -> None:
    path = tmp_path / "scenarios.json"
    path.write_bytes(msgspec.json.encode({"scenario": [SCENARIOS["everything-at-once"]]}))
    assert read_scenarios(path) == (SCENARIOS["everything-at-once"],)
    with pytest.raises(NotFound):
        read_scenarios(tmp_path / "none.toml")


def test_a_latency_table_is_a_line_from_point_to_point() -> None:
    table = Latency(table=((2, 0.010), (4, 0.014), (8, 0.018)))
    assert [table.usual_s(rows) for rows in (1, 2, 3, 4, 6, 8, 12)] == pytest.approx(
        [0.010, 0.010, 0.012, 0.014, 0.016, 0.018, 0.022]
    )
    assert Latency(table=((4, 0.010),)).usual_s(8) == pytest.approx(0.020)
