"""`module:function`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import FailedPrecondition, InvalidArgument, NotFound
from salver.datasets import open_dataset
from salver.testing.datasets import DatasetConformance, read_all

MODULE = """
import numpy as np

def arrays():
    return {"x": np.arange(10.0).reshape(5, 2), "y": np.arange(5)}

def examples():
    for i in range(5):
        yield {"x": np.array([2 * i, 2 * i + 1], float), "t": f"text {i}"}, i

def unlabelled():
    return [({"x": 1.0}, None), ({"x": 2.0}, None)]

def ragged():
    yield {"x": np.zeros(2)}, 0
    yield {"x": np.zeros(3)}, 0

def breaks():
    yield {"x": 1}, 0
    raise RuntimeError("disk on fire")

def wrong():
    return [1, 2]

calls = []

def shrinking():
    calls.append(1)
    return [({"x": 1}, 0)] * (3 - len(calls))
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"examples_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


class TestFunction(DatasetConformance):
    @pytest.fixture(params=["arrays", "examples"])
    def case(self, module: str, request: pytest.FixtureRequest) -> tuple[Dataset, dict[str, Array]]:
        expected: dict[str, Array] = {"x": np.arange(10.0).reshape(5, 2)}
        if request.param == "examples":
            expected["t"] = np.array([f"text {i}" for i in range(5)], dtype=object)
        expected["y" if request.param == "arrays" else "label"] = np.arange(5)
        return open_dataset(f"{module}:{request.param}"), expected


def test_examples_may_have_no_label(module: str) -> None:
    assert open_dataset(f"{module}:unlabelled").label_spec is None


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("missing", NotFound, "has no function 'missing'"),
        ("ragged", InvalidArgument, r"row 2, column 'x': got FP64 \[3\]"),
        ("breaks", FailedPrecondition, "raised RuntimeError after row 1: disk on fire"),
        ("wrong", InvalidArgument, "row 1: got a int, expected"),
    ],
)
def test_what_goes_wrong_is_named(module: str, function: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_dataset(f"{module}:{function}")


def test_a_function_that_does_not_repeat_itself_is_refused(module: str) -> None:
    dataset = open_dataset(f"{module}:shrinking")
    with pytest.raises(InvalidArgument, match="gave 2 examples at first and 1 now"):
        read_all(dataset)


def test_a_missing_module_is_named() -> None:
    with pytest.raises(NotFound, match="no module named 'nowhere_to_be_found'"):
        open_dataset("nowhere_to_be_found:f")
