"""JAX in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.backends import open_session
from salver.builder.importers import ImportOptions, load_model
from salver.core.dataset import Dataset
from salver.core.errors import CorruptArtifact, InvalidArgument, NotFound, Unimplemented
from salver.core.specs import parse_inputs
from salver.datasets import open_dataset
from salver.testing.importers import ImporterConformance

jax = pytest.importorskip("jax", reason="pip install 'salver[jax]'")

from salver.backends._jax import export  # noqa: E402  # after the check for JAX

RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((6, 4)).astype(np.float32)
INPUTS = parse_inputs("x:float32[batch,6]")


def classify(x: Any) -> Any:
    """A softmax over a dense layer."""
    return {"scores": jax.nn.softmax(jax.numpy.tanh(x @ W))}


class TestFunction(ImporterConformance):
    importer_name = "jax"
    suffix = ".stablehlo"
    options = ImportOptions(inputs=INPUTS)

    @pytest.fixture
    def source(self) -> Any:
        return classify

    @pytest.fixture
    def data(self) -> Dataset:
        return open_dataset({"x": RANDOM.standard_normal((20, 6)).astype(np.float32)})

    def test_it_recognizes_its_source_and_nothing_else(self, importer: Any, source: Any) -> None:
        assert importer.recognizes(source)
        assert importer.recognizes(Path("net.stablehlo"))
        assert not importer.recognizes(Path("notes.txt"))
        assert not importer.recognizes(object())

    def test_a_missing_file_is_named(self, importer: Any, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="missing"):
            importer.load(tmp_path / "missing.stablehlo", tmp_path, None, ImportOptions())


class TestFile(ImporterConformance):
    importer_name = "jax"
    suffix = ".stablehlo"

    @pytest.fixture
    def source(self, tmp_path: Path) -> Any:
        path = tmp_path / "net.stablehlo"
        path.write_bytes(export(classify, INPUTS))
        return path

    @pytest.fixture
    def data(self) -> Dataset:
        return open_dataset({"x": RANDOM.standard_normal((20, 6)).astype(np.float32)})


def test_sizes_and_lengths_stay_open(tmp_path: Path) -> None:
    imported = load_model(
        lambda ids, mask: (ids * mask).sum(axis=1, keepdims=True),
        inputs=parse_inputs("ids:int64[batch,length]; mask:int64[batch,length]"),
        workdir=tmp_path,
    )
    assert [s.shape for s in imported.model.signature.inputs] == [("batch", "length"), ("batch", "length")]
    with open_session(imported.model) as session:
        for length in (1, 9):
            ones = np.ones((3, length), np.int64)
            assert session.run({"ids": ones * 2, "mask": ones})["output"].tolist() == [[2 * length]] * 3


def test_flax_modules(tmp_path: Path) -> None:
    flax = pytest.importorskip("flax", reason="pip install flax")
    from flax import linen, nnx

    class Net(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.inner = nnx.Linear(6, 8, rngs=rngs)
            self.outer = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.outer(nnx.relu(self.inner(x)))

    new = load_model(Net(nnx.Rngs(0)), inputs=INPUTS, workdir=tmp_path / "nnx")
    assert new.model.signature.outputs[0].shape == ("batch", 3)
    dense = linen.Dense(3)
    bound = dense.bind(dense.init(jax.random.key(0), np.zeros((1, 6), np.float32)))
    old = load_model(bound, inputs=INPUTS, workdir=tmp_path / "linen")
    assert old.model.signature.outputs[0].shape == ("batch", 3)
    assert flax.__version__


def test_functions_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_jax_nets.py").write_text("def scale(x):\n    return x * 2\ndef make():\n    return scale\n")
    monkeypatch.chdir(tmp_path)
    for name in ("scale", "make"):
        imported = load_model(f"my_jax_nets:{name}", inputs=INPUTS, workdir=tmp_path / name)
        assert imported.model.lineage[0].name == "scale"
    with pytest.raises(NotFound, match="no 'absent'"):
        load_model("my_jax_nets:absent", inputs=INPUTS)
    del sys.modules["my_jax_nets"]


def test_where_jax2onnx_is_installed_a_function_becomes_onnx(tmp_path: Path) -> None:
    pytest.importorskip("jax2onnx", reason="pip install jax2onnx")

    def two(second: Any, first: Any) -> Any:
        return {"z": jax.numpy.tanh(first @ W), "a": second * 2}

    inputs = parse_inputs("second:float32[batch,3]; first:float32[batch,6]")
    imported = load_model(two, inputs=inputs, workdir=tmp_path)
    assert imported.model.format == "onnx"
    assert imported.native is not None
    assert [s.name for s in imported.model.signature.inputs] == ["second", "first"]
    assert set(imported.model.signature.output_names) == {"a", "z"}


def test_what_is_missing_is_asked_for_with_an_example() -> None:
    with pytest.raises(InvalidArgument, match=r"--input 'x:float32\[batch,784\]'"):
        load_model(classify)
    with pytest.raises(InvalidArgument, match="leave --weights out"):
        load_model(classify, inputs=INPUTS, weights="w.npz")


def test_branches_on_values_are_refused_in_words_that_help() -> None:
    def branch(x: Any) -> Any:
        return x if x.sum() > 0 else -x

    with pytest.raises(Unimplemented, match="JAX cannot export"):
        load_model(branch, inputs=INPUTS)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    content = export(classify, INPUTS)
    for name, data in (("half", content[: len(content) // 2]), ("noise", b"\x00no model" * 40), ("empty", b"")):
        path = tmp_path / f"{name}.stablehlo"
        path.write_bytes(data)
        with pytest.raises(CorruptArtifact, match=name):
            load_model(path)
