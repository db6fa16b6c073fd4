"""Inputs on which original and import are compared: the user's own examples, or synthetic ones."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.dataset import Dataset, concat
from salver.core.errors import FailedPrecondition, SalverError
from salver.core.tensors import Signature, TensorSpec
from salver.datasets import bind

MAX_ROWS: Final = 256
_MIN_ROWS: Final = 8
_MAX_ELEMENTS: Final = 1 << 22
_SYNTHETIC_ROWS: Final = 32
_ORIGINAL_S: Final = 5.0
_SIZES: Final = (16, 1, 8, 32, 64, 128, 224, 256, 512, 576)
_INTEGER_HIGHS: Final = (10, 2, 1)
_WORDS: Final = ("good", "bad", "a", "the", "film", "was", "not", "very", "It", "is", "great", "awful")

Inputs = Mapping[str, Array]


class Probe(msgspec.Struct, frozen=True):
    """Rows to run.

    Args:
        inputs: input name -> array ``[rows, ...]``; of a model without batch dimension, the inputs of one run.
        rows: how many; 1 for a model without batch dimension.
        origin: ``data`` or ``synthetic``.
    """

    inputs: dict[str, Array]
    rows: int
    origin: str

    def cut(self, start: int, stop: int) -> dict[str, Array]:
        """Rows ``start:stop``, contiguous."""
        return {name: np.ascontiguousarray(array[start:stop]) for name, array in self.inputs.items()}


def from_data(data: Dataset, signature: Signature) -> Probe:
    """The first rows of a dataset, bound to the inputs; fewer of large ones, and at most `MAX_ROWS`.

    Raises:
        InvalidArgument: the data do not fit the inputs.
    """
    bound = bind(data, signature)
    elements = sum(int(np.prod([d for d in c.shape[1:] if isinstance(d, int)])) for c in bound.columns)
    rows = min(len(bound), MAX_ROWS, max(_MIN_ROWS, _MAX_ELEMENTS // max(1, elements)))
    batch = next(iter(bound.batches(rows)))
    return Probe(concat([batch]).inputs, batch.rows, "data")


def fit_rows(probe: Probe, multiple: int) -> Probe:
    """Cut to a multiple of a fixed batch size, or repeat the rows where there are fewer than one batch."""
    if probe.rows % multiple == 0:
        return probe
    rows = probe.rows - probe.rows % multiple or multiple
    take = np.arange(rows) % probe.rows
    return Probe({name: array[take] for name, array in probe.inputs.items()}, rows, probe.origin)


def resize(probe: Probe, inputs: Sequence[TensorSpec], dim: str, size: int, *, batched: bool) -> Probe:
    """The probe with a named dimension at another size: arrays are cut, or go on from their beginning.

    Args:
        batched: whether the first dimension counts rows, which stay.
    """
    made = dict(probe.inputs)
    for spec in inputs:
        for axis, name in enumerate(spec.shape):
            if name == dim and spec.name in made and not (batched and axis == 0):
                array = made[spec.name]
                made[spec.name] = np.take(array, np.arange(size) % max(array.shape[axis], 1), axis=axis)
    return Probe(made, probe.rows, probe.origin)


def limit_rows(probe: Probe, run: Callable[[Inputs], object], multiple: int) -> Probe:
    """Fewer rows of a slow model, so that running the original takes seconds, not minutes."""
    began = time.perf_counter()
    run(probe.cut(0, multiple))
    row_s = (time.perf_counter() - began) / multiple
    rows = max(_MIN_ROWS, int(_ORIGINAL_S / max(row_s, 1e-9)))
    if rows >= probe.rows:
        return probe
    rows = -(-rows // multiple) * multiple
    return Probe(probe.cut(0, rows), rows, probe.origin)


def synthetic(signature: Signature, run: Callable[[Inputs], object], *, batched: bool, multiple: int = 1) -> Probe:
    """Inputs from a fixed seed that the model accepts: sizes of symbolic dimensions and ranges of integers are tried
    in turn.

    Args:
        run: runs the original; its `SalverError` means that it does not take these inputs.
        batched: whether the first dimension of every input counts rows.
        multiple: the only batch size the original takes, or 1.

    Raises:
        FailedPrecondition: it accepts none of them.
    """
    last: SalverError | None = None
    lasting = {s.shape[-1] for s in signature.inputs if s.shape}
    symbolic = any(isinstance(d, str) for s in signature.inputs for d in s.shape[1 if batched else 0 :])
    for size, high in _settings(symbolic):
        elements = sum(int(np.prod(_inner(s, size, batched, lasting))) for s in signature.inputs)
        rows = min(_SYNTHETIC_ROWS, max(_MIN_ROWS, _MAX_ELEMENTS // max(1, elements))) if batched else 1
        rows = -(-rows // multiple) * multiple
        lead = [rows] if batched else []
        inputs = {s.name: _make(s, high, [*lead, *_inner(s, size, batched, lasting)]) for s in signature.inputs}
        probe = Probe(inputs, rows, "synthetic")
        try:
            run(probe.cut(0, multiple) if batched else inputs)
        except SalverError as error:
            last = error
            continue
        return probe
    raise FailedPrecondition(f"the model runs on no synthetic inputs ({last}); give real examples (--data)")


def _settings(symbolic: bool) -> Iterator[tuple[int, int]]:
    for size in _SIZES if symbolic else (1,):
        for high in _INTEGER_HIGHS:
            yield size, high


def _inner(spec: TensorSpec, size: int, batched: bool, lasting: set[int | str]) -> list[int]:
    """Sizes of the dimensions after the batch: a symbol that is some input's last dimension (a length) has ``size``,
    other symbols (a batch in disguise) 1."""
    shape = (1, "...") if not spec.rank_known else spec.shape
    return [d if isinstance(d, int) else size if d in lasting else 1 for d in shape[1 if batched else 0 :]]


def _make(spec: TensorSpec, high: int, shape: list[int]) -> Array:
    random = np.random.default_rng(zlib.crc32(spec.name.encode()))
    if spec.datatype == "BYTES":
        out = np.empty(shape, dtype=object)
        flat = out.reshape(-1)
        for i in range(flat.size):
            flat[i] = " ".join(random.choice(_WORDS, random.integers(1, 12)).tolist())
        return out
    if spec.datatype == "BOOL":
        return random.integers(0, 2, shape).astype(np.bool_)
    if spec.datatype == "BF16":
        return (random.standard_normal(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if spec.dtype.kind == "f":
        return np.asarray(random.standard_normal(shape)).astype(spec.dtype)
    return np.asarray(random.integers(0, high, shape)).astype(spec.dtype)
