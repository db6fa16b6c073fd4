"""The same model as its framework keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from salver.builder.passes import PassContext, make_pass
from salver.core.dataset import Dataset
from salver.core.errors import PassNotApplicable
from salver.core.model import Model
from salver.testing.passes import PassConformance, save_model
from tests.builder.passes.graphs import cnn

FRAMEWORK = "a framework"


def kept(model: Model, path: Path, *, times: float = 1.0, output: str = "") -> Model:
    """The model in another file, which stands for what a framework keeps.

    Args:
        times: what the weights are multiplied by.
        output: another name for the output.
    """
    graph = onnx.load(model.path)
    graph.producer_name = FRAMEWORK
    for weight in graph.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(times), weight.name))
    if output:
        old = graph.graph.output[0].name
        graph.graph.output[0].name = output
        graph.graph.node.append(onnx.helper.make_node("Identity", [old], [output]))
    return save_model(graph, path)


class TestNative(PassConformance):
    pass_name = "native"
    max_change = 1e-6

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        self.native = kept(made := cnn(tmp_path), tmp_path / "kept.onnx")
        return made

    def run_pass(self, model: Model, data: Dataset | None, workdir: Path, config: dict[str, Any]) -> Model:
        workdir.mkdir()
        context = PassContext(workdir=workdir, calibration=data, native=getattr(self, "native", None))
        return make_pass(self.pass_name, config).apply(model, context)

    def test_leaves_the_source_and_no_stray_files(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        before = model.path.read_bytes()
        result = self.run_pass(model, data, tmp_path / "out", {})
        assert model.path.read_bytes() == before
        assert result.blobs == self.native.blobs  # which lie where the import put them
        assert not list((tmp_path / "out").iterdir())

    def test_other_answers_are_found(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        self.native = kept(model, tmp_path / "other.onnx", times=1.01)
        with pytest.raises(PassNotApplicable, match="onnxruntime gives other answers"):
            self.run_pass(model, data, tmp_path / "out", {})

    def test_other_names_are_refused(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        self.native = kept(model, tmp_path / "other.onnx", output="answer")
        with pytest.raises(PassNotApplicable, match=r"other names: image, .*answer"):
            self.run_pass(model, data, tmp_path / "out", {})

    def test_what_passes_made_is_not_thrown_away(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        (tmp_path / "half").mkdir()
        made = make_pass("fp16").apply(model, PassContext(workdir=tmp_path / "half"))
        with pytest.raises(PassNotApplicable, match="imported original"):
            self.run_pass(made, data, tmp_path / "out", {})
