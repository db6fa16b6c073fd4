"""Imported models that exporters start from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from salver.builder.importers import Imported, load_model

DIGITS = Path(__file__).parents[3] / "examples" / "digits"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """A trained convolutional network."""
    return load_model(DIGITS / "digits.onnx", data=DIGITS / "val.npz", workdir=tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def external(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """A network whose weights lie beside it, with a symbolic length."""
    folder = tmp_path_factory.mktemp("external")
    weights = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "length", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "length", 8])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "weights").mkdir()
    onnx.save(model, folder / "dense.onnx", save_as_external_data=True, location="weights/all.bin", size_threshold=0)
    return load_model(folder / "dense.onnx", workdir=folder / "imported")


@pytest.fixture(scope="session")
def native_only(digits: Imported) -> Imported:
    """A model that runs in its own framework only."""
    return msgspec.structs.replace(digits, model=msgspec.structs.replace(digits.model, format="sklearn"))
