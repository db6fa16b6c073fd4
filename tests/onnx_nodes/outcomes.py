"""Run one test through Salver, and say what came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from salver.backends import open_session
from salver.builder.importers import Imported, load_model
from salver.core.dataset import Batch, Dataset
from salver.core.errors import InvalidArgument, SalverError, Unimplemented
from salver.core.tensors import NUMPY_DTYPES, TensorSpec, to_datatype
from tests.onnx_nodes.cases import Case, carried, load_cases

_ROUNDING = 1e-6


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of a test.

    Args:
        result: ``passed``; ``refused`` with a typed error, before anything was served; ``differs`` where the answer is
            not that of the test; ``crashed`` with another error.
        why: the error, or how it differs.
    """

    result: str
    why: str = ""


def run_named(name: str) -> tuple[str, Outcome]:
    """Run the test of a name."""
    return name, run_case(load_cases()[name])


def run_case(case: Case) -> Outcome:
    """Import the model, open it as it would be served, run it on the test's inputs and compare."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            imported = import_case(case, Path(folder))
            for inputs, outputs in case.pairs:
                why = _run(imported, inputs, outputs, case)
                if why:
                    return Outcome(result="differs", why=why)
        except SalverError as error:
            why = error.message.replace(folder, "").replace("/plain/", "")
            return Outcome(result="refused", why=f"{type(error).__name__}: {why}")
        except Exception as error:  # noqa: BLE001  # a test runner tells what it saw
            return Outcome(result="crashed", why=f"{type(error).__name__}: {error}")
    return Outcome(result="passed")


class Example(Dataset):
    """One example, or as many as the inputs have rows."""

    def __init__(self, inputs: dict[str, Any], rows: int) -> None:
        self._inputs, self._rows = inputs, rows

    @property
    def columns(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name=name, datatype=to_datatype(array.dtype), shape=("batch", *array.shape[1:]))
            for name, array in self._inputs.items()
        )

    @property
    def label_spec(self) -> None:
        return None

    @property
    def digest(self) -> str:
        return "sha256:" + "0" * 64

    @property
    def source(self) -> str:
        return "the test's own inputs"

    def __len__(self) -> int:
        return self._rows

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, self._rows, size):
            cut = {name: array[start : start + size] for name, array in self._inputs.items()}
            yield Batch(inputs=cut, labels=None, rows=min(size, self._rows - start))


def import_case(case: Case, folder: Path) -> Imported:
    """Without examples, as a user would at first; with the test's own where made-up ones cannot be run."""
    try:
        return load_model(_copy(case.model), workdir=folder / "plain")
    except SalverError as error:
        if isinstance(error, Unimplemented) or any(isinstance(v, list) or v is None for v in case.pairs[0][0]):
            raise
        first = error
    initialized = {weight.name for weight in case.model.graph.initializer}
    names = [value.name for value in case.model.graph.input if value.name not in initialized]
    values = {name: carried(value) for name, value in zip(names, case.pairs[0][0], strict=True)}
    if not values or any(array.dtype not in NUMPY_DTYPES.values() for array in values.values()):
        raise first
    for given in ({name: array[None] for name, array in values.items()}, values):
        rows = {array.shape[0] if array.shape else -1 for array in given.values()}
        if len(rows) > 1 or min(rows) < 1:
            continue
        try:
            example = Example(given, rows.pop())
            return load_model(_copy(case.model), data=example, workdir=folder / f"examples{len(example)}")
        except SalverError:
            continue
    raise first


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _run(imported: Imported, inputs: list[Any], outputs: list[Any], case: Case) -> str:
    signature = imported.model.signature
    if len(inputs) != len(signature.inputs):
        raise InvalidArgument(f"the model has {len(signature.inputs)} inputs, the test {len(inputs)}")
    given = {spec.name: carried(value) for spec, value in zip(signature.inputs, inputs, strict=True)}
    signature.check(given)
    with open_session(imported.model) as session:
        got = session.run(given)
    for spec, expected in zip(signature.outputs, outputs, strict=True):
        why = differs(got[spec.name], carried(expected), case.rtol, case.atol, spec.datatype)
        if why:
            return f"output '{spec.name}': {why}"
    return ""


def differs(got: Any, expected: Any, rtol: float, atol: float, datatype: str) -> str:
    """How an answer differs, by the rules of `onnx.backend.test`; empty where it does not."""
    if got.shape != expected.shape:
        return f"shape {list(got.shape)}, expected {list(expected.shape)}"
    if got.dtype != expected.dtype:
        return f"dtype {got.dtype}, expected {expected.dtype}"
    if datatype == "BF16":
        got, expected = ((bits.astype(np.uint32) << 16).view(np.float32) for bits in (got, expected))
        rtol = max(rtol, 2**-6)
    if datatype == "FP16":
        rtol = max(rtol, 2**-9)  # two units in the last place
    if got.dtype.kind != "f":
        wrong = int(np.sum(got != expected))
        return f"{wrong} of {got.size} elements differ" if wrong else ""
    with np.errstate(all="ignore"):  # in sums of large terms, rounding is that of the largest
        atol = max(atol, _ROUNDING * float(np.max(np.abs(expected[np.isfinite(expected)]), initial=0.0)))
        near = np.isclose(got.astype(np.float64), expected.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True)
    return f"{int(np.sum(~near))} of {got.size} elements differ" if not near.all() else ""
