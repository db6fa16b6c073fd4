"""A model that ends its process ends no other."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from salver.backends import SessionOptions
from salver.backends.apart import LIMIT_S, ApartSession, describe_judged, open_as_served, open_judged
from salver.core.errors import CorruptArtifact, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec
from salver.evaluation.memory import PeakMemory

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=("batch", 2)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch", 2)),),
)
CODE = """
import os
import time

class Fragile:
    inputs = "x:float32[batch,2]"
    outputs = "y:float32[batch,2]"

    def load(self, folder):
        if os.path.exists(os.path.join(folder, "ends")):
            os.abort()
        if os.path.exists(os.path.join(folder, "hangs")):
            time.sleep(600)

    def predict(self, x):
        print("words on the stream of answers")
        if x[0, 0] == 1:
            raise ValueError("one is refused")
        if x[0, 0] == 2:
            os.abort()
        return x * 2
"""


def open_fragile(folder: Path, *beside: str, limit_s: float = LIMIT_S) -> ApartSession:
    (folder / "model.py").write_text(CODE)
    for name in beside:
        (folder / name).write_text("")
    blobs = tuple(Blob.of(folder / name) for name in ("model.py", *beside))
    return ApartSession("python", blobs, SIGNATURE, SessionOptions(), trusted=True, limit_s=limit_s)


def test_it_answers_refuses_and_says_what_killed_it(tmp_path: Path) -> None:
    with open_fragile(tmp_path) as session:
        assert session.signature == SIGNATURE
        assert session.run({"x": np.full((3, 2), 4, np.float32)})["y"].tolist() == [[8.0, 8.0]] * 3
        with pytest.raises((InvalidArgument, Internal), match="one is refused"):
            session.run({"x": np.ones((1, 2), np.float32)})
        assert session.run({"x": np.zeros((1, 2), np.float32)}, ["y"])["y"].tolist() == [[0.0, 0.0]]
        with pytest.raises(CorruptArtifact, match=r"'model\.py' ended the process.*SIGABRT.*convert it again"):
            session.run({"x": np.full((1, 2), 2, np.float32)})
    with pytest.raises(FailedPrecondition, match="closed"):
        session.run({"x": np.zeros((1, 2), np.float32)})


def test_what_the_other_process_takes_is_counted(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        """
class Busy:
    inputs = "x:float32[batch,2]"
    outputs = "y:float32[batch,2]"

    def load(self, folder):
        self.kept = b"x" * (64 << 20)

    def predict(self, x):
        return x + sum(range(2_000_000)) * 0
"""
    )
    model = Model(format="python", signature=SIGNATURE, blobs=(Blob.of(tmp_path / "model.py"),), trusted=True)
    with PeakMemory() as peak:
        session = open_as_served(model, SessionOptions())
    with session:
        assert peak.growth_bytes > 64 << 20
        assert session.elsewhere_ns == 0
        began_ns = time.process_time_ns()
        session.run({"x": np.zeros((1, 2), np.float32)})
        assert session.elsewhere_ns > 10 * (time.process_time_ns() - began_ns) > 0


def test_large_tensors_go_there_and_back(tmp_path: Path) -> None:
    with open_fragile(tmp_path) as session:
        x = np.random.default_rng(0).normal(size=(400_000, 2)).astype(np.float32)  # more than a pipe holds
        x[0, 0] = 0
        assert (session.run({"x": x})["y"] == 2 * x).all()


def test_one_that_ends_its_process_while_it_loads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match="SIGABRT"):
        open_fragile(tmp_path, "ends")


def test_one_that_hangs_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded, match=r"'model\.py' was stopped: .* no answer within 0\.5 s"):
        open_fragile(tmp_path, "hangs", limit_s=0.5)


def test_errors_of_the_backend_keep_their_type(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="pip install 'salver[litert]'")
    path = tmp_path / "net.tflite"
    path.write_bytes(b"rubbish" * 20)
    with pytest.raises(CorruptArtifact, match="no TensorFlow Lite model"):
        describe_judged("tflite", Blob.of(path))
    model = Model(format="tflite", signature=SIGNATURE, blobs=(Blob.of(path),))
    with pytest.raises(CorruptArtifact, match="no TensorFlow Lite model"):
        open_judged(model)
