"""An export that is bound to some sizes is compared at these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from salver.backends import find_backend
from salver.builder.exporters import ExportOptions
from salver.builder.exporters.prove import prove
from salver.builder.importers import Imported
from salver.core.errors import ParityFailed
from salver.core.model import Blob, Model
from salver.datasets import open_dataset


@pytest.mark.parametrize(
    ("rows", "length", "sizes"), [(3, 5, (3,)), (1, 5, (1,)), (None, 5, (1, 7, 8)), (3, None, (3,))]
)
def test_the_sizes_are_those_of_the_export(
    external: Imported, tmp_path: Path, rows: int | None, length: int | None, sizes: tuple[int, ...]
) -> None:
    data = open_dataset({"x": np.random.default_rng(0).random((8, 9, 16), dtype=np.float32)})
    found = prove(external.model, bind(external, tmp_path, rows, length), data, ExportOptions())
    assert found.batch_sizes == sizes
    assert not found.dims
    assert found.outputs[0].max_abs <= 1e-6


def test_another_answer_at_that_size_is_refused(external: Imported, tmp_path: Path) -> None:
    with pytest.raises(ParityFailed, match="output 'y'"):
        prove(external.model, bind(external, tmp_path, 3, 5, times=2), None, ExportOptions())


def bind(imported: Imported, folder: Path, rows: int | None, length: int | None, times: int = 1) -> Model:
    """The model in one file, its free dimensions bound to these sizes, its weights multiplied."""
    graph = onnx.load(str(imported.model.blobs[0].path))
    for tensor in graph.graph.initializer:
        tensor.raw_data = (onnx.numpy_helper.to_array(tensor) * np.float32(times)).tobytes()
    for value in (*graph.graph.input, *graph.graph.output):
        for axis, size in enumerate((rows, length)):
            if size is not None:
                value.type.tensor_type.shape.dim[axis].dim_value = size
    onnx.save(graph, folder / "bound.onnx")
    blob = Blob.of(folder / "bound.onnx")
    return Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob,))
