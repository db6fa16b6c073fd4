"""The onnx package's own backend tests as data: a model, inputs and the outputs that are right."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data"
KINDS = ("simple", "pytorch-operator", "pytorch-converted")
NODE_RTOL, NODE_ATOL = 1e-3, 1e-7  # those of onnx.backend.test


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One test: a model, and pairs of inputs and outputs in the order of the graph's."""

    name: str
    kind: str
    model: onnx.ModelProto
    pairs: list[tuple[list[Any], list[Any]]]
    rtol: float = NODE_RTOL
    atol: float = NODE_ATOL


@cache
def load_cases() -> dict[str, Case]:
    """All tests that need no download, by name, in a fixed order."""
    found = {case.name: case for case in (*_nodes(), *_files())}
    return dict(sorted(found.items()))


def _nodes() -> Iterator[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package makes its own expectations with overflows
        from onnx.backend.test.loader import load_model_tests

        tests = load_model_tests(kind="node")
    for test in tests:
        pairs = [([_plain(i) for i in inputs], [_plain(o) for o in outputs]) for inputs, outputs in test.data_sets]
        yield Case(name=test.name, kind="node", model=test.model, pairs=pairs, rtol=test.rtol, atol=test.atol)


def _files() -> Iterator[Case]:
    for kind in KINDS:
        for folder in sorted((FOLDER / kind).iterdir()):
            if not (folder / "model.onnx").is_file():
                continue
            model = onnx.load(folder / "model.onnx")
            initialized = {weight.name for weight in model.graph.initializer}
            inputs = [value.type for value in model.graph.input if value.name not in initialized]
            outputs = [value.type for value in model.graph.output]
            sets = sorted(folder.glob("test_data_set_*"))
            pairs = [(_protos(s, "input", inputs), _protos(s, "output", outputs)) for s in sets]
            yield Case(name=folder.name, kind=kind, model=model, pairs=pairs)


def _protos(folder: Path, kind: str, types: list[onnx.TypeProto]) -> list[Any]:
    values: list[Any] = []
    for number, declared in enumerate(types):
        content = (folder / f"{kind}_{number}.pb").read_bytes()
        if declared.HasField("sequence_type"):
            values.append(numpy_helper.to_list(onnx.SequenceProto.FromString(content)))
        elif declared.HasField("optional_type"):
            values.append(numpy_helper.to_optional(onnx.OptionalProto.FromString(content)))
        else:
            values.append(numpy_helper.to_array(onnx.TensorProto.FromString(content)))
    return values


def _plain(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def carried(value: Any) -> Any:
    """An array as Salver carries it: bfloat16 as its bits, strings as objects of `str`."""
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16)
    if array.dtype.kind in "OUS":
        made = np.empty(array.shape, object)
        for i, item in np.ndenumerate(array):
            made[i] = item.decode() if isinstance(item, bytes) else str(item)
        return made
    return array
