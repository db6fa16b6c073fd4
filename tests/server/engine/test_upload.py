"""Files that came with a load request."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from salver.core.errors import InvalidArgument, ResourceExhausted
from salver.server.engine.upload import Upload


def test_files_are_laid_out_and_removed() -> None:
    upload = Upload({"1/model.onnx": b"a", "1/model.onnx.data": b"b", "20/model.onnx": b"c"})
    found = {str(p.relative_to(upload.path)): p.read_bytes() for p in upload.path.rglob("*") if p.is_file()}
    assert found == {"1/model.onnx": b"a", "1/model.onnx.data": b"b", "20/model.onnx": b"c"}
    upload.close()
    assert not upload.path.exists()
    upload.close()


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(ResourceExhausted, match="cannot be kept"):
        Upload({"1/model.onnx": b""})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(InvalidArgument):
        Upload({"1/../model.onnx": b""})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # as a disk that is full
    try:
        with pytest.raises(ResourceExhausted, match="cannot be kept"):
            Upload({"1/small.onnx": b"a", "1/model.onnx": bytes(2 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
