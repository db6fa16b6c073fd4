from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from salver.core.errors import CorruptArtifact, NotFound
from salver.core.model import Blob, Model, digest_bytes, digest_file
from salver.core.tensors import Signature

NOTHING = Signature(inputs=(), outputs=())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(b"0123456789")
    return path


def test_digests(file: Path) -> None:
    expected = "sha256:" + hashlib.sha256(b"0123456789").hexdigest()
    assert digest_file(file) == digest_bytes(b"0123456789") == digest_bytes(memoryview(b"0123456789")) == expected


def test_a_blob_is_a_whole_file(file: Path) -> None:
    blob = Blob.of(file)
    assert (blob.name, blob.size_bytes, blob.is_whole_file) == ("model.bin", 10, True)
    assert blob.read() == bytes(blob.map()) == b"0123456789"
    with pytest.raises(NotFound, match="no such file"):
        Blob.of(file.with_name("other"))


def test_a_blob_is_a_part_of_a_file(file: Path) -> None:
    blob = Blob(name="part", path=file, offset=3, size_bytes=4, digest=digest_bytes(b"3456"))
    assert blob.read() == bytes(blob.map()) == b"3456"
    assert not blob.is_whole_file
    assert bytes(Blob(name="none", path=file, size_bytes=0, digest="").map()) == b""


def test_a_truncated_file_is_named(file: Path) -> None:
    blob = Blob(name="part", path=file, offset=8, size_bytes=4, digest="")
    with pytest.raises(CorruptArtifact, match=r"'part' is truncated \(2 of 4 bytes\)"):
        blob.read()
    with pytest.raises(CorruptArtifact, match="'part' is truncated"):
        blob.map()


def test_a_model_is_its_content(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "weights.bin"
    other.write_bytes(b"abc")
    one = Model(format="onnx", signature=NOTHING, blobs=(Blob.of(file),))
    two = Model(format="onnx", signature=NOTHING, blobs=(Blob.of(file), Blob.of(other)))
    renamed = Model(format="onnx", signature=NOTHING, blobs=(Blob.of(file), Blob.of(other, "w.bin")))
    assert one.digest == digest_file(file)
    assert len({one.digest, two.digest, renamed.digest}) == 3
    assert (one.path, two.size_bytes) == (file, 13)
