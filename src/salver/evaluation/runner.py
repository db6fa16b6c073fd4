"""Runs a session over a data set and keeps what the metrics need of each example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from salver.backends import Session
from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import Internal, InvalidArgument, format_shape
from salver.core.tensors import Signature, TensorSpec
from salver.evaluation.metrics.base import Metric, Stats, join

_STATS: Final = "stats"
_NONFINITE: Final = "nonfinite"


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """What one model did on one data set.

    Args:
        rows: number of examples.
        stats: metric name -> its per-example statistics.
        nonfinite: output name -> positions (in the output of all examples, flattened) that are NaN or infinite.
        note: what was done to make the examples fit a model with a fixed batch; empty when nothing was.
    """

    rows: int
    stats: dict[str, Stats]
    nonfinite: dict[str, Array]
    note: str = ""

    def save(self, path: Path) -> None:
        """Write to an ``.npz`` file that needs no pickle."""
        arrays = {f"{_STATS}/{m}/{k}": a for m, stats in self.stats.items() for k, a in stats.items()}
        arrays |= {f"{_NONFINITE}/{k}": a for k, a in self.nonfinite.items()}
        keys = np.array(list(arrays), np.str_)
        # Names of metrics and outputs hold slashes and colons, which file names inside an archive should not.
        content: dict[str, Any] = {f"a{i}": a for i, a in enumerate(arrays.values())}
        with path.open("wb") as file:
            np.savez(file, keys=keys, rows=np.array(self.rows), note=np.array(self.note), **content)

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Read what `save` wrote."""
        stats: dict[str, Stats] = {}
        nonfinite: dict[str, Array] = {}
        with np.load(path, allow_pickle=False) as content:
            for i, key in enumerate(content["keys"].tolist()):
                kind, _, rest = key.partition("/")
                if kind == _NONFINITE:
                    nonfinite[rest] = content[f"a{i}"]
                else:
                    metric, _, name = rest.partition("/")  # names of metrics hold no slash
                    stats.setdefault(metric, {})[name] = content[f"a{i}"]
            return cls(rows=int(content["rows"]), stats=stats, nonfinite=nonfinite, note=str(content["note"]))


def score(session: Session, dataset: Dataset, metrics: Sequence[Metric], batch_size: int = 64) -> Scores:
    """Run all examples once and reduce each batch for every metric.

    Args:
        session: the model.
        dataset: examples bound to the model's inputs (column names are input names).
        metrics: their names differ.
        batch_size: examples per run, where the model leaves that open.

    Raises:
        FailedPrecondition, InvalidArgument: labels are missing or do not fit, or the data does not fit the model.
        Internal: the model failed, or gave another number of rows than it was given.
    """
    rows_runner = RowRunner(session)
    parts: dict[str, list[Stats]] = {metric.name: [] for metric in metrics}
    nonfinite: dict[str, list[Array]] = {spec.name: [] for spec in session.signature.outputs}
    seen = dict.fromkeys(nonfinite, 0)
    for batch in dataset.batches(rows_runner.batch or batch_size):
        outputs = rows_runner.run(batch.inputs, batch.rows)
        for name, array in outputs.items():
            if array.dtype.kind == "f":
                bad = np.flatnonzero(~np.isfinite(array))
                if len(bad):
                    nonfinite[name].append(bad + seen[name])
            seen[name] += array.size
        for metric in metrics:
            parts[metric.name].append(metric.reduce(outputs, batch.labels))
    return Scores(
        rows=len(dataset),
        stats={name: join(part) for name, part in parts.items()},
        nonfinite={name: np.concatenate(found) for name, found in nonfinite.items() if found},
        note=rows_runner.note,
    )


def count_new_nonfinite(baseline: Scores, candidate: Scores) -> int:
    """Elements that are NaN or infinite in the candidate's outputs and finite in the baseline's."""
    none = np.zeros(0, np.int64)
    return sum(len(np.setdiff1d(found, baseline.nonfinite.get(k, none))) for k, found in candidate.nonfinite.items())


def fixed_batch(signature: Signature) -> int | None:
    """Examples per run that a model insists on: None when it takes any number, 1 when it takes one example at a
    time."""
    if signature.batch_dim is not None:
        return None
    first = {spec.shape[0] if spec.shape else None for spec in (*signature.inputs, *signature.outputs)}
    (size,) = first if len(first) == 1 else (None,)
    return size if isinstance(size, int) else 1


class RowRunner:
    """Runs examples on a model whatever it does about batches.

    - a symbolic batch dimension: as many as given;
    - a fixed batch N: N at a time, the last run filled up with copies of its last example, which are dropped again;
    - no batch dimension: one at a time, without the leading axis where the model's inputs have none.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._outputs = session.signature.outputs
        self.batch = fixed_batch(session.signature)
        self.note = _NOTES.get(self.batch, f"the batch is fixed at {self.batch}; the last run was filled up")

    def run(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Outputs ``[rows, ...]``, BF16 widened to FP32.

        Raises:
            InvalidArgument: the inputs do not fit the model.
            Internal: the model gave another number of rows.
        """
        if self.batch is None:
            self._session.signature.check(inputs)
            return self._read(self._session.run(inputs), rows)
        parts = [self._run_fixed(inputs, start, rows) for start in range(0, rows, self.batch)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run_fixed(self, inputs: Mapping[str, Array], start: int, rows: int) -> dict[str, Array]:
        size = self.batch or 1
        stop = min(start + size, rows)
        picked = np.minimum(np.arange(start, start + size), stop - 1)
        given = {spec.name: self._fit(spec, inputs, picked) for spec in self._session.signature.inputs}
        self._session.signature.check(given)
        return {k: v[: stop - start] for k, v in self._read(self._session.run(given), size).items()}

    @staticmethod
    def _fit(spec: TensorSpec, inputs: Mapping[str, Array], picked: Array) -> Array:
        if spec.name not in inputs:
            raise InvalidArgument(f"the data has no column for input '{spec.name}'; it has {', '.join(sorted(inputs))}")
        array = inputs[spec.name][picked]
        return _fit_rank(spec, array)

    def _read(self, outputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        read = {}
        for spec in self._outputs:
            array = widen(outputs[spec.name], spec)
            if self.batch == 1 and not (array.ndim and array.shape[0] == 1):
                array = array[None]
            if not array.ndim or array.shape[0] != rows:
                raise Internal(f"output '{spec.name}' has shape {format_shape(array.shape)} for {rows} examples")
            read[spec.name] = array
        return read


def _fit_rank(spec: TensorSpec, array: Array) -> Array:
    return array[0, ...] if spec.rank_known and array.ndim == len(spec.shape) + 1 else array


def fit_run(signature: Signature, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Rows as the model takes them in one run: without the leading axis where its inputs have none."""
    return {spec.name: _fit_rank(spec, inputs[spec.name]) for spec in signature.inputs if spec.name in inputs}


_NOTES: Final[dict[int | None, str]] = {None: "", 1: "the model has no batch dimension; examples were run one by one"}


def widen(array: Array, spec: TensorSpec) -> Array:
    """BF16 bit patterns as FP32; other arrays as they are."""
    if spec.datatype != "BF16":
        return array
    return np.asarray((array.astype(np.uint32) << 16).view(np.float32))
