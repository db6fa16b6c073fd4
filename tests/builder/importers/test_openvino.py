"""OpenVINO IR in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salver.builder.exporters import export_model, find_exporter
from salver.builder.importers import load_model
from salver.core.dataset import Dataset
from salver.core.errors import CorruptArtifact, InvalidArgument, NotFound
from salver.datasets import open_dataset
from salver.testing.importers import ImporterConformance

pytest.importorskip("openvino", reason="pip install 'salver[openvino]'")
DIGITS = Path(__file__).parents[3] / "examples" / "digits"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network as IR."""
    folder = tmp_path_factory.mktemp("ir")
    imported = load_model(DIGITS / "digits.onnx", workdir=folder / "onnx")
    (folder / "ir").mkdir()
    export_model(imported, find_exporter("openvino"), folder / "ir" / "digits.xml")
    return folder / "ir"


class TestOpenvino(ImporterConformance):
    importer_name = "openvino"
    suffix = ".xml"

    @pytest.fixture
    def source(self, files: Path) -> Path:
        return files / "digits.xml"

    @pytest.fixture
    def data(self) -> Dataset:
        return open_dataset(DIGITS / "val.npz")


def test_what_is_missing_or_wrong_is_named(files: Path, tmp_path: Path) -> None:
    alone = tmp_path / "digits.xml"
    alone.write_bytes((files / "digits.xml").read_bytes())
    with pytest.raises(NotFound, match=r"digits\.bin"):
        load_model(alone)
    (tmp_path / "digits.bin").write_bytes((files / "digits.bin").read_bytes()[:100])
    with pytest.raises(CorruptArtifact):
        load_model(alone)
    other = tmp_path / "feed.xml"
    other.write_text("<rss></rss>")
    with pytest.raises(CorruptArtifact, match="no OpenVINO IR"):
        load_model(other)
    with pytest.raises(InvalidArgument, match="no output has as many classes"):
        load_model(files / "digits.xml", labels=("a", "b"))


def test_labels_and_answers_of_the_network(files: Path, tmp_path: Path) -> None:
    imported = load_model(files / "digits.xml", labels=tuple("0123456789"), workdir=tmp_path)
    assert imported.model.signature.outputs[0].labels == tuple("0123456789")
    assert imported.model.signature.batch_dim == "batch"
    assert "there is no way from IR to ONNX" in imported.model.notes[-1]
    assert np.isclose(imported.parity.outputs[0].max_abs, 0)
