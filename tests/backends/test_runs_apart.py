"""Which models get a process of their own, and that nothing of them is imported for an ONNX model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from salver.backends import BACKENDS, BUILTIN, runs_apart
from salver.core.errors import MissingExtra, Unimplemented
from tests.server.engine.bench import adds

FRAMEWORKS = ("sklearn", "skops", "xgboost", "lightgbm", "catboost", "pandas", "scipy", "torch", "tensorflow", "keras")
RUN = """
import sys
from pathlib import Path
import numpy as np
from salver.server.engine.repository import needs_process, open_model
from salver.backends import open_session
assert not needs_process(Path({path!r}))
session = open_session(open_model(Path({path!r}), "m").model)
session.run({{"x": np.zeros((1, 2), np.float32)}})
print([name for name in {names!r} if name in sys.modules])
"""


@pytest.mark.parametrize("name", BUILTIN)
def test_the_table_says_what_the_backends_do(name: str) -> None:
    try:
        backend = BACKENDS.get(name)()
    except MissingExtra as missing:
        pytest.skip(str(missing))
    assert {runs_apart(format) for format in backend.formats} == {backend.isolated}


def test_a_format_that_nobody_runs_is_named() -> None:
    with pytest.raises(Unimplemented, match="no backend runs format 'abacus'"):
        runs_apart("abacus")


def test_an_onnx_model_is_served_without_any_framework(tmp_path) -> None:
    path = adds(tmp_path / "m.onnx", 1)
    code = RUN.format(path=str(path), names=FRAMEWORKS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
