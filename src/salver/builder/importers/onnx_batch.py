"""Establish the batch dimension of an ONNX graph, by running it, and complete the shapes of its outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
import onnx

from salver.builder.importers.onnx_check import infer_shapes
from salver.builder.importers.onnx_edit import set_leading
from salver.builder.importers.onnx_signature import read_signature, set_shape, shape_of
from salver.builder.importers.parity import Run
from salver.builder.importers.probes import Probe
from salver.core.arrays import Array
from salver.core.errors import SalverError
from salver.core.tensors import ANY_RANK, Signature, TensorSpec

BATCH: Final = "batch"
_TRIED_ROWS: Final = 3

Open = Callable[[onnx.ModelProto], Run]
"""Loads a graph without the runtime's own optimizations."""


class Leading(msgspec.Struct, frozen=True):
    """What the first dimensions of the inputs say.

    Args:
        batched: whether every input may have one row per example.
        fixed: the size, when it is a number.
    """

    batched: bool
    fixed: int | None = None


def read_leading(signature: Signature) -> Leading:
    """Symbolic first dimensions of any names, or one number for all (of inputs that have further dimensions)."""
    if not signature.inputs or any(not s.rank_known or not s.shape for s in signature.inputs):
        return Leading(False)
    first = {s.shape[0] for s in signature.inputs}
    if all(isinstance(d, str) for d in first):
        return Leading(True)
    (size, *others) = first
    if isinstance(size, int) and not others and size > 0 and all(len(s.shape) > 1 for s in signature.inputs):
        return Leading(True, size)
    return Leading(False)


def with_batch(signature: Signature) -> Signature:
    """The signature of a batched model with its leading dimensions named ``batch``."""
    inputs = tuple(TensorSpec(name=s.name, datatype=s.datatype, shape=(BATCH, *s.shape[1:])) for s in signature.inputs)
    return Signature(inputs=inputs, outputs=signature.outputs)


def establish_batch(
    model: onnx.ModelProto, leading: Leading, probe: Probe, open_graph: Open
) -> tuple[onnx.ModelProto, str]:
    """Give inputs and outputs one leading dimension ``batch`` where runs prove that they have one.

    Returns:
        The graph, changed or as it was, and a note for the user (empty when nothing needs saying).
    """
    if not leading.batched:
        return model, "the inputs share no batch dimension: requests are run one at a time"
    changed = set_leading(model, BATCH)
    reason = _refutation(model, changed, leading, probe, open_graph)
    if leading.fixed is None:
        return (model, f"{reason}: requests are run one at a time") if reason else (changed, "")
    if reason:
        return model, f"the batch dimension is fixed at {leading.fixed}: {reason}"
    return (
        changed,
        f"the batch dimension was fixed at {leading.fixed} and is dynamic now: other sizes gave the same rows",
    )


def _refutation(
    model: onnx.ModelProto, changed: onnx.ModelProto, leading: Leading, probe: Probe, open_graph: Open
) -> str:
    """Why the leading dimension is no batch dimension; empty when it is one."""
    fixed = leading.fixed or 1
    rows = min(probe.rows, _TRIED_ROWS * fixed)
    try:
        run = open_graph(changed)
        got = {size: run(probe.cut(0, size)) for size in sorted({1, rows})}
    except SalverError as error:
        return f"the graph does not run with another batch size ({error})"
    for size, outputs in got.items():
        for name, array in outputs.items():
            if not np.shape(array) or np.shape(array)[0] != size:
                return f"output '{name}' has shape {list(np.shape(array))} for {size} rows"
    if leading.fixed is None:
        return ""
    reference = open_graph(model)
    parts = [reference(probe.cut(start, start + fixed)) for start in range(0, rows, fixed)]
    for size, outputs in got.items():
        for name, array in outputs.items():
            expected = np.concatenate([part[name] for part in parts])[:size]
            if not _equal(expected, array):
                return f"output '{name}' of a row changes with the number of rows"
    return ""


def _equal(a: Array, b: Array) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind == "f":
        return bool(np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-4, atol=1e-5, equal_nan=True))
    return bool(np.all(a == b))


def complete_outputs(model: onnx.ModelProto, probe: Probe, batched: bool, open_graph: Open) -> str:
    """Fill in what the graph does not say of its outputs' shapes, and mend what it says wrongly: by shape inference,
    then by runs.

    Returns:
        A note, when strict shape inference failed.
    """
    inferred, note = infer_shapes(model)
    symbols = {d for s in read_signature(model.graph).inputs for d in s.shape if isinstance(d, str)}
    for value, better in zip(model.graph.output, inferred.graph.output, strict=True):
        shape, found = shape_of(value), shape_of(better)
        if shape == (ANY_RANK,):
            shape = tuple(f"?{value.name}_{i}" for i in range(len(found))) if found != (ANY_RANK,) else shape
        if len(shape) == len(found) and ANY_RANK not in shape:
            set_shape(value, tuple(_known(old, new, symbols) for old, new in zip(shape, found, strict=True)))
    specs = read_signature(model.graph).outputs
    closed = symbols <= {BATCH}
    try:
        run = open_graph(model)
        sizes = sorted({1, min(probe.rows, _TRIED_ROWS)}) if batched else [0]
        runs = [run(probe.cut(0, size) if size else probe.inputs) for size in sizes]
    except SalverError:
        return note  # a batch fixed above 1: the shapes stay as they are
    for value, spec in zip(model.graph.output, specs, strict=True):
        seen = [np.shape(outputs[spec.name]) for outputs in runs]
        set_shape(value, _observed(spec, seen, symbols, closed))
    return note


def _known(old: int | str, new: int | str, symbols: set[str]) -> int | str:
    return new if isinstance(old, str) and old not in symbols and (isinstance(new, int) or new in symbols) else old


def _observed(spec: TensorSpec, seen: list[tuple[int, ...]], symbols: set[str], closed: bool) -> tuple[int | str, ...]:
    """The shape with unknown dimensions filled in: numbers only where no other symbolic dimension could change them."""
    ranks = {len(shape) for shape in seen}
    if len(ranks) > 1:
        return spec.shape
    shape = spec.shape if spec.rank_known else tuple(f"?{spec.name}_{i}" for i in range(ranks.pop()))
    if len(shape) != len(seen[0]):
        return spec.shape
    made: list[int | str] = []
    for axis, dim in enumerate(shape):
        sizes = {s[axis] for s in seen}
        if isinstance(dim, int) and sizes != {dim}:
            dim = f"?{spec.name}_{axis}"  # some converters declare a size that is not the one they give
        unknown = isinstance(dim, str) and dim not in symbols
        made.append(sizes.pop() if unknown and closed and len(sizes) == 1 else dim)
    return tuple(made)
