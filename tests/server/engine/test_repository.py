"""What a source stands for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from salver.core.errors import AlreadyExists, CorruptArtifact, InvalidArgument, NotFound, SalverError
from salver.core.model import Model
from salver.server.engine.repository import Shelf, Sources, open_model


def place(root: Path, model: Model, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(model.path, root / name)


def look(*sources: Path, name: str = "", **named: Path) -> dict[str, Shelf]:
    made = Sources([str(source) for source in sources], name, {own: str(path) for own, path in named.items()})
    made.check()
    return made.look()


def test_a_file_is_named_by_its_stem_by_the_user_or_by_its_bundle(digits: Model, digits_bundle: Path) -> None:
    assert look(digits.path)["digits"].files == {"1": digits.path}
    assert list(look(digits.path, name="numbers")) == ["numbers"]
    assert look(digits_bundle)["numbers"].files == {"1": digits_bundle}
    assert list(look(other=digits.path)) == ["other"]


def test_a_raw_file_is_wrapped_as_untested_and_a_bundle_is_opened(digits: Model, digits_bundle: Path) -> None:
    raw = open_model(digits.path, "net")
    assert (raw.name, raw.tested) == ("net", False)
    assert raw.signature == digits.signature
    assert open_model(digits_bundle, "").name == "numbers"


def test_a_folder_holds_names_and_versions(tmp_path: Path, digits: Model, digits_bundle: Path) -> None:
    place(
        tmp_path, digits, "a/1/model.onnx", "a/10/model.onnx", "a/2/other.onnx", ".git/1/model.onnx", "a/2/weights.bin"
    )
    (tmp_path / "a" / "11").mkdir()
    (tmp_path / "b" / "3").mkdir(parents=True)
    shutil.copy(digits_bundle, tmp_path / "b" / "3" / "x.salver")
    found = look(tmp_path)
    assert {name: {v: path.name for v, path in shelf.files.items()} for name, shelf in found.items()} == {
        "a": {"1": "model.onnx", "2": "other.onnx", "10": "model.onnx"},
        "b": {"3": "x.salver"},
    }
    assert list(found["a"].files) == ["1", "2", "10"]
    assert found["a"].empty == ("11",)


def test_a_folder_that_is_no_version_is_left_out_and_said(
    tmp_path: Path, digits: Model, caplog: pytest.LogCaptureFixture
) -> None:
    place(tmp_path, digits, "a/1/model.onnx", "a/latest/model.onnx", "a/01/model.onnx")
    assert list(look(tmp_path)["a"].files) == ["1"]
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
        look(tmp_path)


def test_one_folder_that_does_not_fit_leaves_the_others(tmp_path: Path, digits: Model) -> None:
    place(tmp_path, digits, "good/1/model.onnx", "bad/readme.txt")
    found = look(tmp_path)
    assert found["good"].fault is None
    assert "holds no version" in str(found["bad"].fault)


def test_sources_that_do_not_fit(tmp_path: Path, digits: Model) -> None:
    with pytest.raises(NotFound, match="no such file"):
        look(tmp_path / "nothing.onnx")
    (tmp_path / "x.pkl").write_bytes(b"x")
    with pytest.raises(InvalidArgument, match="salver build"):
        look(tmp_path / "x.pkl")
    with pytest.raises(InvalidArgument, match="2 sources"):
        look(digits.path, digits.path, name="n")
    with pytest.raises(InvalidArgument, match="the folder"):
        look(tmp_path, name="n")
    with pytest.raises(InvalidArgument, match="nothing to serve"):
        look()
    with pytest.raises(AlreadyExists, match="given twice"):
        look(digits.path, digits.path)


def test_bundles_of_one_name_are_told_apart(tmp_path: Path, digits_bundle: Path) -> None:
    copy = tmp_path / "copy.salver"
    shutil.copy(digits_bundle, copy)
    found = look(digits_bundle, copy)
    assert found["numbers"].fault is None
    assert "given twice" in str(found["copy"].fault)


def test_nothing_yet_is_enough_where_models_may_come(tmp_path: Path) -> None:
    sources = Sources([str(tmp_path)])
    sources.check(may_be_empty=True)
    assert sources.look() == {}


def test_the_stamp_changes_with_the_files(tmp_path: Path, digits: Model) -> None:
    place(tmp_path, digits, "a/1/model.onnx")
    sources = Sources([str(tmp_path)])
    stamps = [sources.look()["a"].stamp]

    def changed() -> bool:
        stamps.append(sources.look()["a"].stamp)
        return stamps[-1] != stamps[-2]

    assert not changed()
    (tmp_path / "a" / "1" / "weights.bin").write_bytes(b"x")
    assert changed()
    replaced = tmp_path / "new.onnx"
    shutil.copy2(tmp_path / "a" / "1" / "model.onnx", replaced)
    replaced.rename(tmp_path / "a" / "1" / "model.onnx")  # same size, same time: another file
    assert changed()
    (tmp_path / "a" / "model.toml").write_text("lanes = 2")
    assert changed()
    (tmp_path / "a" / "2").mkdir()
    assert changed()
    assert not changed()


def test_a_damaged_file_is_refused(tmp_path: Path, digits: Model) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(digits.path.read_bytes()[:1000])
    with pytest.raises(CorruptArtifact, match=r"broken\.onnx"):
        open_model(broken, "broken")
    damaged = tmp_path / "damaged.salver"
    damaged.write_bytes(b"not a bundle")
    assert list(look(damaged)) == ["damaged"]
