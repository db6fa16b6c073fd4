"""The streaming calibrator."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper

from salver.builder.passes.calibrate import BINS, Calibrator, Histogram
from salver.core.dataset import Dataset
from salver.core.model import Model
from salver.testing.passes import ArrayDataset, save_model
from tests.builder.passes.graphs import graph

FLOATS = arrays(np.float32, st.integers(0, 40), elements=st.floats(-(2.0**60), 2.0**60, width=32))


@given(st.lists(FLOATS, max_size=6))
def test_a_histogram_loses_no_value_and_knows_the_extremes(parts: list[np.ndarray]) -> None:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    everything = np.concatenate([np.zeros(0, np.float32), *parts])
    assert histogram.counts.shape == (2, BINS)
    if everything.any():
        assert histogram.counts.sum() == everything.size
    if everything.size:
        assert (histogram.low, histogram.high) == (everything.min(), everything.max())
        for low, high in (histogram.percentile(99.0), histogram.entropy()):
            assert histogram.low <= low <= high <= histogram.high


def test_percentile_agrees_with_numpy_to_a_bin() -> None:
    values = np.random.default_rng(0).standard_t(3, 100_000).astype(np.float32)
    histogram = Histogram()
    for part in np.array_split(values, 37):
        histogram.add(part)
    low, high = histogram.percentile(99.0)
    expected = np.percentile(values, [0.5, 99.5])
    assert np.abs(np.array([low, high]) - expected).max() <= histogram.width * 1.01


def test_entropy_cuts_a_lone_outlier_off() -> None:
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(np.append(values, np.float32(60)))
    low, high = histogram.entropy()
    assert 3 < high < 20
    assert -20 < low < -3


def test_ranges_are_those_of_the_activations(model: Model, data: Dataset, tmp_path: Path) -> None:
    proto = onnx.load(model.path)
    ranges = Calibrator().observe(proto, model.signature, ["image", "c", "h"], data, tmp_path)
    images = next(data.batches(64)).inputs["image"]
    assert ranges["image"] == (images.min(), images.max())
    few = Calibrator(limit_bytes=1).observe(proto, model.signature, ["image", "c", "h"], data, tmp_path)
    for name, found in ranges.items():
        assert few[name] == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("examples", [64, 512])
def test_memory_is_bounded_whatever_the_number_of_examples(examples: int, tmp_path: Path) -> None:
    size, layers = 1 << 15, 6
    nodes = [helper.make_node("Sqrt", [f"t{i}"], [f"t{i + 1}"]) for i in range(layers)]
    shape: list[int | str] = ["batch", size]
    model = save_model(
        graph(nodes, {}, {"t0": (TensorProto.FLOAT, shape)}, {f"t{layers}": shape}), tmp_path / "wide.onnx"
    )
    data = ArrayDataset({"t0": np.ones((examples, size), np.float32)})
    names = [f"t{i}" for i in range(1, layers + 1)]
    limit = 4 << 20
    tracemalloc.start()
    try:
        Calibrator(method="percentile", limit_bytes=limit).observe(
            onnx.load(model.path), model.signature, names, data, tmp_path
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * limit
