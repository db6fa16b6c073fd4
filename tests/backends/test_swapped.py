"""Files that are not what they were when the model was opened, and its digests were checked: none of them is loaded."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from salver.backends.laid_out import LaidOut
from salver.backends.native import read_blob
from salver.bundle import Bundle, Contents, generate_keys, seal
from salver.core.errors import CorruptArtifact
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP64", shape=("batch", 2)),),
    outputs=(TensorSpec(name="prediction", datatype="FP64", shape=("batch", 1)),),
)


class Touch:
    """A pickle that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_bytes_and_copies_are_checked_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "outer"
    path.write_bytes(b"..content..")
    (tmp_path / "content").write_bytes(b"content")
    blob = Blob(name="a.bin", path=path, offset=2, size_bytes=7, digest=Blob.of(tmp_path / "content").digest)
    assert read_blob(blob) == b"content"
    files = LaidOut({"a.bin": blob})
    assert (files.folder / "a.bin").read_bytes() == b"content"
    files.close()
    path.write_bytes(b"..c0ntent..")
    for load in (lambda: read_blob(blob), lambda: LaidOut({"a.bin": blob})):
        with pytest.raises(CorruptArtifact, match=r"'a\.bin' has changed since the model was opened"):
            load()


def test_code_that_was_put_into_a_signed_bundle_after_it_was_opened_is_not_run(tmp_path: Path) -> None:
    pytest.importorskip("skops", reason="needs pip install 'salver[sklearn]'")
    ran, source, path = tmp_path / "ran", tmp_path / "model.pkl", tmp_path / "m.salver"
    foreign = pickle.dumps(Touch(ran))
    source.write_bytes(foreign.replace(b"touch", b"chmod"))
    model = Model(format="sklearn", signature=SIGNATURE, blobs=(Blob.of(source),))
    private, public = generate_keys(tmp_path / "keys")
    seal(path, Contents(name="m", model=model)).sign(private)
    bundle = Bundle.open(path).trust(public)
    blob = bundle.model.blobs[0]
    with path.open("r+b") as file:
        file.seek(blob.offset)
        file.write(foreign)
    with pytest.raises(CorruptArtifact, match=r"'model\.pkl' has changed since the model was opened"):
        bundle.predict({"x": [[1.0, 2.0]]})
    assert not ran.exists()
