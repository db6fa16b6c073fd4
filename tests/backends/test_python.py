"""A Python class passes the suite, whatever kind of function its ``predict`` is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest

from salver.backends import SessionOptions
from salver.backends._python import PythonBackend
from salver.core.errors import CorruptArtifact, FailedPrecondition, Internal, InvalidArgument, PermissionDenied
from salver.core.model import Blob, Model
from salver.testing.backends import BackendConformance, Case

CLASS = '''
class Scaled:
    """Multiplies."""

    inputs = "x:float32[batch,3]"
    outputs = "y:float32[batch,3]; total:float32[batch]"

    def load(self, folder):
        self.factor = 3

    def predict(self, x):
        return {"y": self.factor * x, "total": x.sum(axis=1)}
'''
KINDS = {
    "function": "def predict(self, x):\n        return x + 1",
    "coroutine": "async def predict(self, x):\n        await asyncio.sleep(0)\n        return x + 1",
    "generator": "def predict(self, x):\n        for row in x:\n            yield row[None] + 1",
    "async generator": "async def predict(self, x):\n        for row in x:\n            yield {'y': row[None] + 1}",
}
HEAD = "import asyncio\n\nclass One:\n    inputs = 'x:float32[batch,2]'\n    outputs = 'y:float32[batch,2]'\n\n    "


def model_of(folder: Path, text: str, **beside: str) -> Model:
    blobs = []
    for name, content in {"model.py": text, **beside}.items():
        (folder / name).write_text(content)
        blobs.append(Blob.of(folder / name))
    signature = PythonBackend().describe(blobs[0])
    return Model(format="python", signature=signature, blobs=tuple(blobs), trusted=True)


class TestPython(BackendConformance):
    backend = PythonBackend

    @pytest.fixture
    def cases(self, tmp_path: Path) -> list[Case]:
        x = np.arange(12, dtype=np.float32).reshape(4, 3)
        model = model_of(tmp_path, CLASS)
        return [Case(model=model, inputs={"x": x}, expected={"y": 3 * x, "total": x.sum(axis=1)})]


@pytest.mark.parametrize("kind", KINDS)
def test_predict_may_be_any_kind_of_function(tmp_path: Path, kind: str) -> None:
    x = np.zeros((3, 2), np.float32)

    async def within_a_loop() -> None:
        with PythonBackend().load(model_of(tmp_path, HEAD + KINDS[kind]), SessionOptions()) as session:
            assert session.run({"x": x})["y"].tolist() == (x + 1).tolist()

    asyncio.run(within_a_loop())


def test_files_beside_it_come_along(tmp_path: Path) -> None:
    text = "from helper import FACTOR\n\n" + HEAD + "def load(self, folder):\n        "
    text += "self.more = float((folder / 'words' / 'more.txt').read_text())\n\n    "
    text += "def predict(self, x):\n        return FACTOR * x + self.more"
    for factor in (2, 3):
        folder = tmp_path / str(factor)
        (folder / "words").mkdir(parents=True)
        model = model_of(folder, text, **{"helper.py": f"FACTOR = {factor}", "words/more.txt": "0.5"})
        blobs = tuple(msgspec.structs.replace(b, name=str(b.path.relative_to(folder))) for b in model.blobs)
        with PythonBackend().load(msgspec.structs.replace(model, blobs=blobs), SessionOptions()) as session:
            assert session.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[factor + 0.5] * 2]
    astray = msgspec.structs.replace(model, blobs=(model.blobs[0], msgspec.structs.replace(blobs[1], name="../h.py")))
    with pytest.raises(CorruptArtifact, match="leads out of the model's folder"):
        PythonBackend().load(astray, SessionOptions())


def test_its_code_is_not_run_without_trust(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    model = model_of(tmp_path, f"open({str(marker)!r}, 'w').close()\n{HEAD}{KINDS['function']}")
    with pytest.raises(PermissionDenied, match="holds a Python class: loading it runs code"):
        PythonBackend().load(msgspec.structs.replace(model, trusted=False), SessionOptions())
    why = "the bundle is not signed by key a; it is signed by b"
    with pytest.raises(PermissionDenied, match=f"loading it runs code, and {why}"):
        PythonBackend().load(msgspec.structs.replace(model, trusted=False, distrust=why), SessionOptions())
    assert not marker.exists()
    PythonBackend().load(model, SessionOptions()).close()
    assert marker.exists()


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("x = 1", CorruptArtifact, "one class with the method 'predict'; it has none"),
        (HEAD + "def predict(self, x): ...\nclass Two:\n    def predict(self): ...", CorruptArtifact, "One, Two"),
        ("class A:\n    def predict(self, x): ...", InvalidArgument, "does not say its inputs and outputs"),
        (
            "class A:\n    inputs = 'x'\n    outputs = ''\n    def predict(self, x): ...",
            InvalidArgument,
            "cannot read 'x'",
        ),
        ("class A(:", CorruptArtifact, "is no Python file"),
    ],
)
def test_a_class_that_says_too_little_is_refused(tmp_path: Path, text: str, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        model_of(tmp_path, text)


def test_what_it_raises_is_named(tmp_path: Path) -> None:
    model = model_of(tmp_path, HEAD + "def predict(self, x):\n        raise KeyError('word')")
    with PythonBackend().load(model, SessionOptions()) as session, pytest.raises(Internal, match="KeyError: 'word'"):
        session.run({"x": np.zeros((1, 2), np.float32)})
    model = model_of(tmp_path, HEAD + "def load(self, f):\n        1 / 0\n\n    def predict(self, x): ...")
    with pytest.raises(FailedPrecondition, match="class 'One' raised ZeroDivisionError while it was loaded"):
        PythonBackend().load(model, SessionOptions())


def test_wrong_answers_are_named(tmp_path: Path) -> None:
    model = model_of(tmp_path, HEAD + "def predict(self, x):\n        return x[:1]")
    with PythonBackend().load(model, SessionOptions()) as session, pytest.raises(Internal, match="for 3 rows"):
        session.run({"x": np.zeros((3, 2), np.float32)})
