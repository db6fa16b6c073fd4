"""TensorFlow Lite files: floats, 8-bit weights, integers throughout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.backends import open_session
from salver.builder.importers import load_model
from salver.core.errors import CorruptArtifact
from tests import tensorflow_nets as nets

pytest.importorskip("ai_edge_litert", reason="pip install 'salver[litert]'")


class TestTflite(nets.KerasImports):
    importer_name = "tflite"
    suffix = ".tflite"

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        path = tmp_path_factory.mktemp("source") / "net.tflite"
        path.write_bytes(nets.tflite())
        return path


@pytest.mark.parametrize("precision", ["source", "dynamic", "int8"])
def test_every_precision_gives_litert_s_answers(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(nets.tflite(precision))
    x, y = nets.digits()
    given = np.round(x[:200] * 255 - 128).astype(np.int8) if precision == "int8" else x[:200]
    imported = load_model(path, data={"image": given}, workdir=tmp_path / "out")
    assert imported.model.signature.inputs[0].datatype == ("INT8" if precision == "int8" else "FP32")
    assert imported.native is not None
    with open_session(imported.model) as session, open_session(imported.native) as original:
        (got,), (expected,) = session.run({"image": given}).values(), original.run({"image": given}).values()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert (got.argmax(1) == y[:200]).mean() > 0.85


def test_what_rounds_otherwise_than_litert_is_kept_as_it_is_with_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(nets.tflite("dynamic"))
    imported = load_model(path, data={"image": nets.digits()[0][:50]}, workdir=tmp_path / "out")
    assert imported.model.format == "tflite"
    assert "the original gives" in imported.model.notes[-1]
    assert imported.parity.batch_sizes == (1, 7, 50)


@pytest.mark.parametrize("content", [b"", b"rubbish" * 100, "half"])
def test_damaged_files_are_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "net.tflite"
    whole = nets.tflite()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(CorruptArtifact, match=r"net\.tflite"):
        load_model(path, workdir=tmp_path / "out")
