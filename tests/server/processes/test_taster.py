"""A version is tried in a process of its own, which ends whatever the model does."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from salver.core.errors import Code
from salver.server.engine.folder import Told
from salver.server.engine.planned import Plan
from salver.server.engine.repository import shelve
from salver.server.processes.child import Child
from salver.server.processes.orders import pack, unpack
from salver.server.processes.taster import taste_apart
from salver.server.settings import ServeSettings
from tests.server.processes import rogue


def plan_of(folder: Path, told: str) -> Plan:
    (folder / "rogue" / "1").mkdir(parents=True)
    rogue.make_bundle(folder / "rogue" / "1" / "rogue.salver", told)
    return Plan(shelve(folder / "rogue", "rogue"), Told(), ("1",), ("1",))


def children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


@pytest.mark.parametrize(
    ("told", "code", "message"),
    [
        ("good", None, ""),
        ("corrupt", Code.FAILED_PRECONDITION, "the rogue model is corrupt"),
        ("segfault", Code.FAILED_PRECONDITION, r"version 1 of model 'rogue' was killed by signal 11 \(SIGSEGV\)"),
        ("hang", Code.FAILED_PRECONDITION, "was not ready within 1.5 s"),
    ],
)
def test_whatever_a_model_does_is_told_and_leaves_nothing(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, code: Code | None, message: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(plugin))
    before = children(), len(list(Path("/proc/self/fd").iterdir()))
    limit_s = 1.5 if told == "hang" else 60.0
    settings = ServeSettings(load_timeout_s=limit_s, log_level="error")
    failure = asyncio.run(taste_apart("rogue", "1", plan_of(tmp_path, told), settings))
    assert (failure and failure.code) == code
    if failure is not None:
        with pytest.raises(type(failure.error), match=message):
            raise failure.error
    assert (children(), len(list(Path("/proc/self/fd").iterdir()))) == before


def test_no_process_is_no_verdict_on_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(Child, "spawn", refuse)  # as fork(2) does where there are too many processes
    failure = asyncio.run(taste_apart("rogue", "1", plan_of(tmp_path, "good"), ServeSettings()))
    assert failure is not None
    assert failure.code == Code.UNAVAILABLE


def test_a_plan_arrives_as_it_was(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "good")
    assert unpack(pack(plan)) == plan
    assert unpack(pack(plan)).source("1") == plan.source("1")
