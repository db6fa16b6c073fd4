"""The family, its containment of libraries, and the main promise on a real network."""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import magika
import numpy as np
import pytest

from salver.backends import find_backend, open_session
from salver.builder.passes import PASSES, PassContext, make_pass
from salver.builder.passes._quiet import contained
from salver.core.errors import CorruptArtifact, MissingExtra, UnknownName
from salver.core.model import Blob, Model
from salver.testing.passes import ArrayDataset


def test_an_unknown_pass_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="'int8-static'"):
        make_pass("int8-statik")


def test_every_pass_that_gives_no_speed_says_so() -> None:
    silent = set()
    for name in PASSES.names():
        with contextlib.suppress(MissingExtra):
            if not PASSES.get(name).gives_speed:
                silent.add(name)
    assert silent == {"int8-dynamic", "int8-static"}


def test_a_truncated_model_is_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(model.path.read_bytes()[:-100])
    cut = Model(format="onnx", signature=model.signature, blobs=(Blob.of(path),))
    with pytest.raises(CorruptArtifact):
        make_pass("bf16").apply(cut, PassContext(workdir=tmp_path))


def test_containment_restores_everything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters), tempfile.tempdir, list(warnings.filters), sys.stdout)
    with contained(tmp_path) as folder:
        print("noise")
        warnings.warn("noise", stacklevel=1)
        assert Path(tempfile.mkdtemp()).parent == folder
    assert (list(root.handlers), list(root.filters), tempfile.tempdir, list(warnings.filters), sys.stdout) == before
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_magikas_network_shrinks_without_loss(tmp_path: Path) -> None:
    """Files of this very environment: their first and last bytes, padded with 256, as magika reads them."""
    source = next(Path(magika.__file__).parent.rglob("model.onnx"))
    blob = Blob.of(source)
    model = Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob,))
    files = [p for p in sorted(Path(np.__file__).parent.rglob("*.py")) if p.stat().st_size > 4096][:24]
    rows = np.stack([_ends(path.read_bytes(), model.signature.inputs[0].shape[1]) for path in files])
    data = ArrayDataset({"bytes": rows[:8]})
    (tmp_path / "out").mkdir()
    result = make_pass("int8-static").apply(model, PassContext(workdir=tmp_path / "out", calibration=data))
    assert result.size_bytes * 3.5 < model.size_bytes
    with open_session(model) as before, open_session(result) as after:
        (expected,) = before.run({"bytes": rows[8:]}).values()
        (got,) = after.run({"bytes": rows[8:]}).values()
    assert np.mean(expected.argmax(1) == got.argmax(1)) >= 0.9


def _ends(content: bytes, width: int | str) -> np.ndarray:
    half = int(width) // 2
    body = np.frombuffer(content, np.uint8).astype(np.int32)
    return np.concatenate([body[:half], body[-half:]])
