"""What a process notes of its models, read after its end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from salver.core.tensors import Signature, TensorSpec
from salver.server.engine.marks import Marks
from salver.testing.engine import FunctionSession

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=("batch",)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch",)),),
)


@pytest.fixture
def fd() -> Iterator[int]:
    made = Marks.create()
    yield made
    os.close(made)


def test_only_what_runs_or_is_loaded_is_noted(fd: int) -> None:
    marks, seen = Marks(fd), []

    def look(inputs: dict) -> dict:
        seen.append(Marks.read(fd))
        if inputs["x"][0] < 0:
            raise ValueError("negative")
        return {"y": inputs["x"]}

    session = marks.watch("ä" * 255, FunctionSession(SIGNATURE, look))
    assert session.signature == SIGNATURE
    session.run({"x": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match="negative"):
        session.run({"x": -np.ones(1, np.float32)})
    assert seen == [(["ä" * 255], [])] * 2
    with marks.loading("other"), marks.loading("other"):
        assert Marks.read(fd) == ([], ["other"])
    assert Marks.read(fd) == ([], [])


def test_one_thread_that_ends_leaves_the_others_noted(fd: int) -> None:
    marks, inside, go_on = Marks(fd), threading.Event(), threading.Event()

    def wait(inputs: dict) -> dict:
        if inputs["x"][0]:
            inside.set()
            go_on.wait(20)
        return {"y": inputs["x"]}

    session = marks.watch("m", FunctionSession(SIGNATURE, wait))
    thread = threading.Thread(target=session.run, args=({"x": np.ones(1, np.float32)},))
    thread.start()
    inside.wait(20)
    session.run({"x": np.zeros(1, np.float32)})
    assert Marks.read(fd) == (["m"], [])
    go_on.set()
    thread.join()
    assert Marks.read(fd) == ([], [])


def test_more_models_than_there_is_room_for_are_not_noted(fd: int) -> None:
    marks = Marks(fd)
    for number in range(4100):
        with marks.loading(f"m{number}"):
            pass
    with marks.loading("m7"), marks.loading("m4099"):
        assert Marks.read(fd) == ([], ["m7"])


def test_a_killed_process_has_told(fd: int) -> None:
    code = f"import os; from salver.server.engine.marks import Marks; m = Marks({fd}); "
    code += "c = m.loading('a'); c.__enter__(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], pass_fds=(fd,), check=False)
    assert Marks.read(fd) == ([], ["a"])
