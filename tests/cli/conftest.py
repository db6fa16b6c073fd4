from __future__ import annotations

from pathlib import Path

import pytest

from salver.cli import run

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network, built by the command line in a few seconds."""
    folder = tmp_path_factory.mktemp("cli")
    path = folder / "digits.salver"
    line = ["build", str(DIGITS / "digits.onnx"), "--data", str(DIGITS / "val.npz")]
    line += ["--labels", str(DIGITS / "labels.txt"), "--max-drop", "1pp", "--budget", "5s"]
    assert run([*line, "--cache", str(folder / "cache"), "-o", str(path)]) == 0
    return path
