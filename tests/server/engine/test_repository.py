"""What a source stands for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from salver.core.errors import AlreadyExists, CorruptArtifact, InvalidArgument, NotFound, SalverError
from salver.core.model import Model
from salver.server.engine.repository import discover, open_entry


def place(root: Path, model: Model, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(model.path, root / name)


def test_a_file_is_named_by_its_stem_or_by_the_user(digits: Model, digits_bundle: Path) -> None:
    (raw,) = discover([str(digits.path)])
    assert (raw.name, raw.version) == ("digits", "1")
    (named,) = discover([str(digits.path)], "numbers")
    assert named.name == "numbers"
    (bundle,) = discover([str(digits_bundle)])
    assert (bundle.name, bundle.title) == ("", "digits")
    (more,) = discover([], named={"other": str(digits.path)})
    assert more.name == "other"


def test_a_raw_file_is_wrapped_as_untested_and_a_bundle_is_opened(digits: Model, digits_bundle: Path) -> None:
    raw = open_entry(discover([str(digits.path)])[0])
    assert not raw.tested
    assert raw.signature == digits.signature
    assert open_entry(discover([str(digits_bundle)])[0]).name == "numbers"


def test_a_folder_holds_names_and_versions(tmp_path: Path, digits: Model, digits_bundle: Path) -> None:
    place(
        tmp_path, digits, "a/1/model.onnx", "a/10/model.onnx", "a/2/other.onnx", ".git/1/model.onnx", "a/2/weights.bin"
    )
    (tmp_path / "b" / "3").mkdir(parents=True)
    shutil.copy(digits_bundle, tmp_path / "b" / "3" / "x.salver")
    assert [(e.name, e.version, e.path.name) for e in discover([str(tmp_path)])] == [
        ("a", "1", "model.onnx"),
        ("a", "2", "other.onnx"),
        ("a", "10", "model.onnx"),
        ("b", "3", "x.salver"),
    ]


def test_a_folder_that_is_no_version_is_left_out_and_said(
    tmp_path: Path, digits: Model, caplog: pytest.LogCaptureFixture
) -> None:
    place(tmp_path, digits, "a/1/model.onnx", "a/latest/model.onnx", "a/01/model.onnx")
    assert [e.version for e in discover([str(tmp_path)])] == ["1"]
    assert "latest" in caplog.text
    assert "01" in caplog.text


@pytest.mark.parametrize(
    ("files", "error", "text"),
    [
        ((), NotFound, "<name>/<version>/model.onnx"),
        (("a/readme.txt",), NotFound, "holds no version"),
        (("a/1/readme.txt",), NotFound, "holds no model"),
        (("a/1/x.onnx", "a/1/y.onnx"), InvalidArgument, "several models"),
        (("a b/1/model.onnx",), InvalidArgument, "cannot be a model's name"),
    ],
)
def test_folders_that_do_not_fit(
    tmp_path: Path, digits: Model, files: tuple[str, ...], error: type[SalverError], text: str
) -> None:
    place(tmp_path, digits, *files)
    with pytest.raises(error, match=text):
        discover([str(tmp_path)])


def test_sources_that_do_not_fit(tmp_path: Path, digits: Model) -> None:
    raw = str(digits.path)
    with pytest.raises(NotFound, match="no such file"):
        discover([str(tmp_path / "nothing.onnx")])
    (tmp_path / "x.pkl").write_bytes(b"x")
    with pytest.raises(InvalidArgument, match="salver build"):
        discover([str(tmp_path / "x.pkl")])
    with pytest.raises(InvalidArgument, match="2 sources"):
        discover([raw, raw], "n")
    with pytest.raises(InvalidArgument, match="the folder"):
        discover([str(tmp_path)], "n")
    with pytest.raises(InvalidArgument, match="nothing to serve"):
        discover([])
    with pytest.raises(AlreadyExists, match="given twice"):
        discover([raw, raw])


def test_a_damaged_file_is_refused(tmp_path: Path, digits: Model) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(digits.path.read_bytes()[:1000])
    with pytest.raises(CorruptArtifact, match=r"broken\.onnx"):
        open_entry(discover([str(broken)])[0])
