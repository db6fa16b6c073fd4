"""A part of the onnx package's backend tests, each time; `make node-tests` runs all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.onnx_nodes.cases import load_cases
from tests.onnx_nodes.outcomes import import_case, run_case
from tests.onnx_nodes.record import explain, read_record, versions

EVERY = 12
"""A test of so many is run."""

RECORD = read_record()


def test_every_test_that_does_not_pass_is_explained() -> None:
    assert [name for name, outcome in RECORD.others.items() if not explain(name, outcome)] == []
    assert {outcome.result for outcome in RECORD.others.values()} <= {"refused", "differs"}


@pytest.mark.parametrize("part", range(6))
def test_outcomes_are_those_of_the_record(part: int) -> None:
    wrong = []
    for name in list(load_cases())[::EVERY][part::6]:
        outcome = run_case(load_cases()[name])
        if outcome.result not in ("passed", "refused") and name not in RECORD.others:
            wrong.append((name, outcome))  # whatever the versions: never an unexplained answer, never another error
        if versions() == RECORD.versions:
            known = RECORD.others.get(name)
            assert outcome.result == (known.result if known else "passed"), (name, outcome)
    assert wrong == []


@pytest.mark.parametrize("name", [name for name, found in RECORD.others.items() if found.result == "differs"])
def test_a_deviation_of_the_runtime_is_named_in_the_notes(name: str, tmp_path: Path) -> None:
    case = load_cases()[name]
    notes = import_case(case, tmp_path).model.notes
    assert any("node '" in note and ("ONNX Runtime's" in note or "random" in note) for note in notes)
