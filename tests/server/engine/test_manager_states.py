"""The repository against a model of it: whatever is done in whatever order, what answers is what should."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from salver.core.errors import SalverError
from tests.server.engine.bench import Bench, adds

VERSIONS = st.sampled_from(["1", "2", "3", "10"])
LABELS = st.sampled_from(["stable", "canary"])
KEPT = 2


class RepositoryMachine(RuleBasedStateMachine):
    """One model under the policy ``latest:2``."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="salver-test-"))
        self.writes = 0
        self.disk: dict[str, float | None] = {"1": 0.0}  # None where the file is broken
        self.applied: dict[str, float | None] = {}
        self.served: dict[str, float] = {}
        self.labels: dict[str, str] = {}
        self.kept: dict[str, str] = {}
        self.wanted = True
        self.loop = asyncio.new_event_loop()
        adds(self.root / "m" / "1" / "model.onnx", 0.0)
        self.bench = Bench(self.root, versions=f"latest:{KEPT}")
        self.play(self.bench.manager.start())
        self.expect_refresh()

    def play(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def expect_refresh(self) -> bool:
        """What a load should do; whether it should succeed."""
        self.wanted = True
        self.applied = dict(self.disk)
        there = sorted(self.disk, key=int)
        if not there:
            return False
        labelled = {*self.labels.values(), *self.kept.values()}
        chosen = [version for version in there if version in there[-KEPT:] or version in labelled]
        for version in chosen:
            value = self.disk[version]
            if value is not None:
                self.served[version] = value
        if not self.served:
            lower = [version for version in there if int(version) < int(chosen[0]) and self.disk[version] is not None]
            self.served = {version: self.disk[version] for version in lower[-1:]}
        if self.served:
            self.labels.update({label: version for label, version in self.kept.items() if version in self.served})
            self.kept = {}
        sound = all(self.disk[version] is not None for version in chosen)
        if sound:
            self.served = {v: value for v, value in self.served.items() if v in chosen or v in labelled}
        return sound

    @rule(version=VERSIONS)
    def write(self, version: str) -> None:
        self.writes += 1
        self.disk[version] = float(self.writes)
        adds(self.root / "m" / version / "model.onnx", float(self.writes))

    @rule(version=VERSIONS)
    def break_file(self, version: str) -> None:
        self.writes += 1
        self.disk[version] = None
        folder = self.root / "m" / version
        folder.mkdir(exist_ok=True)
        (folder / "model.new").write_bytes(bytes(1 + self.writes))
        (folder / "model.new").replace(folder / "model.onnx")

    @rule(version=VERSIONS)
    def remove(self, version: str) -> None:
        self.disk.pop(version, None)
        shutil.rmtree(self.root / "m" / version, ignore_errors=True)

    @rule()
    def load(self) -> None:
        sound = self.expect_refresh()
        try:
            self.play(self.bench.load("m"))
        except SalverError:
            assert not sound
        else:
            assert sound

    @rule()
    def unload(self) -> None:
        self.play(self.bench.unload("m"))
        self.kept.update(self.labels)
        self.served, self.labels, self.wanted = {}, {}, False

    @rule()
    def look(self) -> None:
        if self.wanted and self.applied != self.disk:
            self.expect_refresh()
        self.play(self.bench.poll())

    @rule(label=LABELS, version=VERSIONS)
    def move_label(self, label: str, version: str) -> None:
        try:
            self.bench.manager.move_label("m", label, version)
        except SalverError:
            assert version not in self.served
        else:
            assert version in self.served
            self.labels[label] = version

    @rule(label=LABELS)
    def drop_label(self, label: str) -> None:
        self.bench.manager.move_label("m", label, None)
        self.labels.pop(label, None)
        self.kept.pop(label, None)

    @invariant()
    def what_answers_is_what_should(self) -> None:
        self.play(self.settle())
        ready = {entry.version for entry in self.bench.manager.index() if entry.state == "READY"}
        assert ready == set(self.served)
        for version, value in self.served.items():
            assert self.play(self.bench.ask("m", version)) == value
        for label, version in self.labels.items():
            assert self.bench.engine.find("m", label).version == version
        if self.served:
            assert self.bench.engine.find("m").version == max(self.served, key=int)
        assert len(self.bench.engine.metrics.records) <= len(self.bench.engine.models())

    async def settle(self) -> None:
        """Let what was replaced go."""
        while self.bench.manager._tasks:
            await asyncio.wait(self.bench.manager._tasks)

    def teardown(self) -> None:
        self.play(self.bench.manager.stop())
        assert self.bench.engine.close()
        self.play(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.root)


TestRepositoryMachine = RepositoryMachine.TestCase
TestRepositoryMachine.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
