"""A plug-in backend that does what a model must not, when a request asks it to: see `install`."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import time
from pathlib import Path

from salver.backends.base import Backend, Session
from salver.bundle import Contents, seal
from salver.core.errors import CorruptArtifact
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="INT64", shape=("batch", 1)),),
    outputs=(TensorSpec(name="y", datatype="INT64", shape=("batch", 1)),),
)


def segfault():
    """A crash inside the runtime."""
    ctypes.string_at(0)


def hang():
    """One that lets other threads run."""
    time.sleep(600)


def hold():
    """One that does not."""
    ctypes.PyDLL(None).sleep(600)


def leave():
    """An exit where nobody expects one."""
    os._exit(7)


def pause():
    """A run that takes its time."""
    time.sleep(0.5)


def pid():
    """Who answers."""
    return os.getpid()


def burn():
    """A run that keeps a core busy."""
    end_s = time.thread_time() + 0.003
    while time.thread_time() < end_s:
        pass


# The value of x that asks for each: none that a warm-up makes up.
SEGFAULT, HANG, HOLD, LEAVE, PAUSE, PID, BURN = range(1_000_000_001, 1_000_000_008)
DEEDS = {SEGFAULT: segfault, HANG: hang, HOLD: hold, LEAVE: leave, PAUSE: pause, PID: pid, BURN: burn}


class RogueSession(Session):
    signature = SIGNATURE

    def __init__(self, run_s):
        self._run_s = run_s

    def run(self, inputs, outputs=None):
        if self._run_s:
            time.sleep(self._run_s)
        y = inputs["x"] + 1
        for row in y:
            if (deed := DEEDS.get(int(row[0]) - 1)) is not None:
                row[0] = deed() or 0
        return {"y": y}

    def close(self):
        pass


class RogueBackend(Backend):
    name = "rogue"
    formats = ("rogue",)
    isolated = False

    def versions(self):
        return {"rogue": "1"}

    def providers(self):
        return ("cpu",)

    def load(self, model, options):
        """The model's file says what goes wrong while it is loaded: nothing; ``corrupt``; ``segfault``; ``hang``; or
        ``while FILE``, a crash as long as there is that file. With ``sleepy`` every run waits: it gets a lane.
        """
        word, _, path = model.blobs[0].read().decode().partition(" ")
        if word == "corrupt":
            raise CorruptArtifact("the rogue model is corrupt")
        if word == "hang":
            hang()
        if word == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "while" and Path(path).exists():
            os.kill(os.getpid(), signal.SIGSEGV)
        return RogueSession(0.001 if word == "sleepy" else 0.0)

    def describe(self, blob):
        return SIGNATURE


def install(folder):
    """Make the plug-in; the folder is to be on the path of the process that loads it."""
    info = folder / "rogue-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(__file__, folder / "rogue.py")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rogue\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[salver.backends]\nrogue = rogue:RogueBackend\n")
    return folder


def make_bundle(path, told=""):
    """A bundle of a rogue model; see `RogueBackend.load`."""
    file = Path(f"{path}.rogue")
    file.write_text(told or "good")
    seal(path, Contents(name=path.stem, model=Model(format="rogue", signature=SIGNATURE, blobs=(Blob.of(file),))))
    return path
