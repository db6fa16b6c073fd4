"""Folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument
from salver.datasets import open_dataset
from salver.testing.datasets import DatasetConformance, read_all

Image = pytest.importorskip("PIL.Image")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), dtype=np.uint8)
CLASSES = ["cat", "cat", "dog", "dog", "dog"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, (pixels, name) in enumerate(zip(PIXELS, CLASSES, strict=True)):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


class TestImages(DatasetConformance):
    @pytest.fixture
    def case(self, folder: Path) -> tuple[Dataset, dict[str, Array]]:
        return open_dataset(folder), {"image": PIXELS, "label": np.array(CLASSES, dtype=object)}


def test_layout_mode_and_size_are_settings(folder: Path) -> None:
    assert open_dataset(folder, layout="chw").columns[0].shape == ("batch", 3, 4, 3)
    assert open_dataset(folder, mode="gray").columns[0].shape == ("batch", 4, 3)
    assert open_dataset(folder, size=(8, 9)).columns[0].shape == ("batch", 8, 9, 3)
    np.testing.assert_array_equal(read_all(open_dataset(folder, layout="chw"))["image"], PIXELS.transpose(0, 3, 1, 2))


def test_files_are_given_as_they_are_where_a_model_decodes_them_itself(folder: Path) -> None:
    files = open_dataset(folder, mode="file")
    (column,) = files.columns
    assert (column.datatype, column.shape, column.binary) == ("BYTES", ("batch",), True)
    given = [element.encode("latin-1") for element in read_all(files)["image"]]
    assert given == [path.read_bytes() for path in sorted(folder.glob("*/*.png"))]


def test_an_image_of_another_size_is_named(folder: Path) -> None:
    Image.new("RGB", (7, 7)).save(folder / "dog" / "odd.png")
    with pytest.raises(InvalidArgument, match=r"odd\.png.*\[7, 7, 3\].*size=\(height, width\)"):
        read_all(open_dataset(folder))


def test_a_damaged_image_is_named(folder: Path) -> None:
    (folder / "dog" / "2.png").write_bytes((folder / "dog" / "2.png").read_bytes()[:40])
    with pytest.raises(InvalidArgument, match=r"2\.png.*damaged"):
        read_all(open_dataset(folder))


def test_a_stray_file_is_not_skipped(folder: Path) -> None:
    (folder / "dog" / "notes.txt").write_text("x")
    with pytest.raises(InvalidArgument, match=r"notes\.txt' is not an image"):
        open_dataset(folder)


def test_a_folder_without_classes_has_no_labels(folder: Path) -> None:
    assert open_dataset(folder / "cat").label_spec is None


def test_an_empty_folder_has_zero_examples(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="zero examples"):
        open_dataset(tmp_path)
