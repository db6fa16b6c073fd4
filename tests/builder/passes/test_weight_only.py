"""weight-only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from salver.backends import open_session
from salver.builder.passes import make_pass
from salver.builder.passes._weight_only import pack_blocks
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument
from salver.core.model import Model
from salver.testing.passes import ArrayDataset, PassConformance, save_model
from tests.builder.passes.graphs import graph, recurrent_graph


class TestWeightOnly(PassConformance):
    pass_name = "weight-only"
    configs = (
        {},
        {"method": "blocks"},
        {"method": "blocks", "block_size": 16, "int8_compute": True},
        {"exclude_nodes": ["output"]},
    )
    max_change = 0.1

    def test_quarters_the_file(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        assert self.run_pass(model, data, tmp_path / "out", {}).size_bytes < 0.4 * model.size_bytes

    def test_four_bits_are_smaller_than_eight(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        eight = self.run_pass(model, data, tmp_path / "8", {"method": "blocks"})
        four = self.run_pass(model, data, tmp_path / "4", {"method": "blocks", "bits": 4})
        assert four.size_bytes < eight.size_bytes
        assert "MatMulNBits" in {node.op_type for node in onnx.load(four.path).graph.node}

    def test_embeddings_are_stored_per_row(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        table = (rng.normal(size=(50, 16)) * np.logspace(-3, 3, 50)[:, None]).astype(np.float32)
        model = save_model(
            graph(
                [helper.make_node("Gather", ["table", "ids"], ["y"], name="embed")],
                {"table": table},
                {"ids": (TensorProto.INT64, ["batch"])},
                {"y": ["batch", 16]},
            ),
            tmp_path / "embed.onnx",
        )
        ids = ArrayDataset({"ids": np.arange(50)})
        result = self.run_pass(model, ids, tmp_path / "out", {})
        scale = next(t for t in onnx.load(result.path).graph.initializer if t.name == "table:scale")
        assert list(scale.dims) == [50, 1]

    @pytest.mark.parametrize("config", [{}, {"method": "blocks"}])
    def test_embeddings_and_recurrent_layers_shrink(self, tmp_path: Path, config: dict[str, Any]) -> None:
        model = save_model(recurrent_graph(), tmp_path / "lstm.onnx")
        data = ArrayDataset({"ids": np.random.default_rng(1).integers(0, 40, (9, 6))})
        result = self.run_pass(model, data, tmp_path / "out", config)
        floats = {t.name for t in onnx.load(result.path).graph.initializer if t.data_type == TensorProto.FLOAT}
        assert not floats & {"table", "w", "r", "dense"}
        with open_session(model) as before, open_session(result) as after:
            inputs = next(data.batches(9)).inputs
            assert np.abs(before.run(inputs)["scores"] - after.run(inputs)["scores"]).max() < 0.1

    def test_settings_that_cannot_be_are_refused(self) -> None:
        with pytest.raises(InvalidArgument, match="block_size: got 24"):
            make_pass(self.pass_name, {"method": "blocks", "block_size": 24})
        with pytest.raises(InvalidArgument, match="bits"):
            make_pass(self.pass_name, {"bits": 4})


@given(st.integers(1, 9), st.integers(1, 70), st.sampled_from([4, 8]), st.sampled_from([16, 32]), st.integers(0, 99))
def test_blocks_unpack_to_the_matrix_within_a_step(rows: int, columns: int, bits: int, size: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    packed, scales = pack_blocks(matrix, bits, size)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*scales.shape, size) if bits == 4 else packed
    restored = (codes.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
    error = np.abs(restored.reshape(rows, -1)[:, :columns] - matrix)
    assert np.all(error <= np.abs(scales).repeat(size, axis=1)[:, :columns] * 1.001)
