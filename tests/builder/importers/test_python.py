"""A Python class, imported: its files are copied, its code is run only when it is trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.backends import open_session
from salver.builder.importers import ImportOptions, load_model
from salver.core.dataset import Dataset
from salver.core.errors import ParityFailed, PermissionDenied
from salver.datasets import open_dataset
from salver.testing.importers import ImporterConformance

TEXT = """
class Counter:
    inputs = "x:float32[batch,2]"
    outputs = "y:float32[batch,2]"

    def predict(self, x):
        return x + {more}
"""


class TestPython(ImporterConformance):
    importer_name = "python"
    suffix = ".py"
    options = ImportOptions(trust_pickle=True)

    @pytest.fixture
    def source(self, tmp_path: Path) -> Any:
        (tmp_path / "counter.py").write_text(TEXT.format(more=1))
        return tmp_path / "counter.py"

    @pytest.fixture
    def data(self) -> Dataset:
        return open_dataset({"x": np.arange(40, dtype=np.float32).reshape(20, 2)})


def test_a_folder_comes_with_all_that_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "counter"
    (folder / "data").mkdir(parents=True)
    (folder / "model.py").write_text("from helper import MORE\n" + TEXT.format(more="MORE"))
    (folder / "helper.py").write_text("MORE = 5\n")
    (folder / "data" / "words.txt").write_text("a b")
    imported = load_model(folder, workdir=tmp_path / "out", trust_pickle=True)
    assert [b.name for b in imported.model.blobs] == ["model.py", "data/words.txt", "helper.py"]
    with open_session(imported.model) as session:
        assert session.run({"x": np.zeros((1, 2), np.float32)})["y"].tolist() == [[5.0, 5.0]]


def test_its_code_is_not_run_without_trust(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "m.py").write_text(f"open({str(marker)!r}, 'w').close()\n{TEXT.format(more=1)}")
    with pytest.raises(PermissionDenied, match="importing it runs its code"):
        load_model(tmp_path / "m.py", workdir=tmp_path / "out")
    assert not marker.exists()


def test_one_that_answers_otherwise_each_time_is_caught(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("import numpy\n" + TEXT.format(more="numpy.random.random()"))
    with pytest.raises(ParityFailed, match="output 'y'"):
        load_model(tmp_path / "m.py", workdir=tmp_path / "out", trust_pickle=True)
