"""A trial that crashes, hangs, eats memory or fails costs that trial, and says why."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from salver.builder.importers import load_model
from salver.builder.search.isolate import run_isolated
from salver.builder.search.splits import split
from salver.builder.search.spool import spool
from salver.builder.search.trial import TrialSpec
from salver.datasets import bind, open_dataset
from salver.evaluation.types import Margin

PLUGIN = '''
"""Passes that misbehave, registered as any plug-in is."""
import ctypes, time
import numpy as np
from salver.builder.passes.base import Pass
from salver.core.config import Config
from salver.core.errors import PassNotApplicable

class Nothing(Config, frozen=True, kw_only=True):
    pass

class Base(Pass):
    Config = Nothing

class Segfault(Base):
    name = "segfault"
    def apply(self, model, context):
        ctypes.string_at(0)

class Hang(Base):
    name = "hang"
    def apply(self, model, context):
        time.sleep(600)

class Greedy(Base):
    name = "greedy"
    def apply(self, model, context):
        hoard = []
        while True:
            hoard.append(np.empty(1 << 30, np.uint8))  # never touched: costs the machine nothing

class Raises(Base):
    name = "raises"
    def apply(self, model, context):
        raise ValueError("the plug-in has a defect")

class Declines(Base):
    name = "declines"
    def apply(self, model, context):
        raise PassNotApplicable("there is nothing to fold")
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "plugin"
    info = folder / "misbehaving-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "misbehaving.py").write_text(textwrap.dedent(PLUGIN))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1.0\n")
    names = ("segfault", "hang", "greedy", "raises", "declines")
    rows = "\n".join(f"{name} = misbehaving:{name.title()}" for name in names)
    (info / "entry_points.txt").write_text(f"[salver.passes]\n{rows}\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])


@pytest.fixture
def spec(tmp_path: Path) -> TrialSpec:
    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "eye",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [weights],
    )
    path = tmp_path / "eye.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    model = load_model(path, workdir=tmp_path / "import").model
    data = open_dataset({"x": np.random.default_rng(0).random((60, 4), np.float32), "label": np.arange(60) % 4})
    parts = split(bind(data, model.signature), None, 0)
    splits = {}
    for role, part in (("calibrate", parts.calibrate), ("steer", parts.steer), ("certify", parts.certify)):
        splits[role] = str(spool(part, tmp_path / role).folder)
    return TrialSpec(
        kind="steer",
        model=model,
        recipe=(),
        splits=splits,
        metric="accuracy",
        margin=Margin(value=0.005),
        threads=1,
        batch=1,
        tools={},
        workdir=str(tmp_path / "trial"),
        scores=str(tmp_path / "scores.npz"),
        models_dir=str(tmp_path / "models"),
    )


def with_pass(spec: TrialSpec, name: str) -> TrialSpec:
    fields = {f: getattr(spec, f) for f in spec.__struct_fields__}
    return TrialSpec(**{**fields, "recipe": ({"pass": name, "config": {}},)})


def test_a_sound_trial_is_measured(spec: TrialSpec) -> None:
    result = run_isolated(spec, timeout_s=60)
    assert result.outcome == "measured", result.reason
    assert result.evaluation is not None
    assert result.evaluation.steer[0].drop == 0.0
    assert result.evaluation.latency[0].p50_ms > 0
    assert result.evaluation.invariance is not None
    assert result.evaluation.invariance.invariant


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("name", "outcome", "reason"),
    [
        ("segfault", "failed", "crashed (SIGSEGV)"),
        ("greedy", "failed", "ran out of memory"),
        ("raises", "failed", "the plug-in has a defect"),
        ("declines", "not-applicable", "there is nothing to fold"),
    ],
)
def test_a_bad_trial_says_why(spec: TrialSpec, name: str, outcome: str, reason: str) -> None:
    result = run_isolated(with_pass(spec, name), timeout_s=60)
    assert result.outcome == outcome
    assert reason in result.reason


@pytest.mark.usefixtures("plugin")
def test_a_trial_that_hangs_is_stopped(spec: TrialSpec) -> None:
    result = run_isolated(with_pass(spec, "hang"), timeout_s=4)
    assert result.outcome == "failed"
    assert "did not finish within 4 s" in result.reason
