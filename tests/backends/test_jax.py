"""JAX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from salver.backends import SessionOptions
from salver.core.model import Blob, Model
from salver.core.specs import parse_inputs
from salver.testing.backends import BackendConformance, Case, same

jax = pytest.importorskip("jax", reason="pip install 'salver[jax]'")

from salver.backends._jax import JaxBackend, export  # noqa: E402  # after the check for JAX

W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def make(path: Path, function: object, inputs: str) -> Model:
    """A function, exported."""
    path.write_bytes(export(function, parse_inputs(inputs)))  # type: ignore[arg-type]  # a function of arrays
    return Model(format="stablehlo", signature=JaxBackend().describe(Blob.of(path)), blobs=(Blob.of(path),))


def double(x: object) -> object:
    return x + x  # type: ignore[operator]  # a traced array


class TestJax(BackendConformance):
    backend = JaxBackend

    @pytest.fixture
    def cases(self, tmp_path: Path) -> list[Case]:
        x = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)
        dense = make(tmp_path / "dense", lambda x: {"y": jax.numpy.tanh(x @ W)}, "x:float32[batch,4]")
        made = [Case(model=dense, inputs={"x": x}, expected={"y": np.tanh(x @ W)}, atol=1e-5)]
        for kind in ("float64", "float16", "int64", "int8", "uint16"):
            values = (x * 10).astype(kind)
            model = make(tmp_path / kind, double, f"x:{kind}[n,4]".replace("[n", "[batch"))
            made.append(Case(model=model, inputs={"x": values}, expected={"output": values + values}))
        return made


def test_bfloat16_travels_as_bits(tmp_path: Path) -> None:
    model = make(tmp_path / "net", double, "x:bfloat16[batch,2]")
    assert [s.datatype for s in (*model.signature.inputs, *model.signature.outputs)] == ["BF16", "BF16"]
    with JaxBackend().load(model, SessionOptions()) as session:
        same(session.run({"x": np.full((2, 2), 0x3F80, np.uint16)})["output"], np.full((2, 2), 0x4000, np.uint16))


def test_inputs_have_the_order_of_the_signature_whatever_that_of_the_file(tmp_path: Path) -> None:
    model = make(tmp_path / "net", lambda z, a: z - a, "z:float32[batch]; a:float32[batch]")
    with JaxBackend().load(model, SessionOptions()) as session:
        inputs = {"z": np.array([5], np.float32), "a": np.array([3], np.float32)}
        assert session.run(inputs)["output"] == 2


THREADS = """
import sys
from pathlib import Path
import numpy as np
from salver.backends import SessionOptions, find_backend
from salver.core.model import Blob, Model

blob = Blob.of(Path(sys.argv[1]))
backend = find_backend("stablehlo")
model = Model(format="stablehlo", signature=backend.describe(blob), blobs=(blob,))
with backend.load(model, SessionOptions(threads=int(sys.argv[2]))) as session:
    session.run({"x": np.ones((2, 4), np.float32)})
print(sum(t.joinpath("comm").read_text().strip() == "tf_XLAEigen" for t in Path("/proc/self/task").iterdir()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc, which Linux has")
def test_the_first_session_of_a_process_says_how_many_threads_there_are(tmp_path: Path) -> None:
    make(tmp_path / "net", lambda x: x @ W, "x:float32[batch,4]")
    for threads in ("1", "3"):
        command = [sys.executable, "-c", THREADS, str(tmp_path / "net"), threads]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split()[-1] == threads
