"""Observe activations: a streaming calibrator whose memory does not grow with the examples.

One pass over the data. Each tensor keeps its extremes and a histogram of fixed size whose range doubles, by merging
neighboring bins, when a larger value comes. Tensors are observed a group at a time, so that the activations held at
once stay below a limit (or one tensor of one example, where that alone is larger).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
from onnx import ModelProto, TensorProto, helper

from salver.backends import Session, SessionOptions, open_session
from salver.builder.passes._graph import calibration_batches
from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import PassNotApplicable
from salver.core.model import Blob, Model
from salver.core.tensors import ANY_RANK, Signature, TensorSpec

Method = Literal["minmax", "entropy", "percentile"]

BINS: Final = 2048
_BATCH: Final = 32
_CHUNK: Final = 1 << 18
_LIMIT_BYTES: Final = 256 << 20
_SIZE_SUFFIX: Final = ":size-of"


class Histogram:
    """Counts of values by magnitude, negative and positive apart, `BINS` bins each.

    The width of a bin is a power of two times the first magnitude seen; it doubles as often as a larger one needs.

    Args:
        counting: False keeps the extremes only.
    """

    def __init__(self, *, counting: bool = True) -> None:
        self._counting = counting
        self.low = np.inf
        self.high = -np.inf
        self.width = 0.0
        self.counts = np.zeros((2, BINS), np.int64)
        self._zeros = 0

    def add(self, values: Array) -> None:
        """Count values. They must be finite; an empty array counts nothing."""
        if values.size == 0:
            return
        flat = values.reshape(-1)
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))
        peak = max(-self.low, self.high)
        if not self._counting:
            return
        if peak == 0.0:
            self._zeros += flat.size
            return
        if self.width == 0.0:
            self.width = peak / BINS
            self.counts[1, 0] = self._zeros
        while self.width * BINS < peak:
            self._double()
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK]
            index = np.minimum(np.abs(chunk.astype(np.float64)) / self.width, BINS - 1).astype(np.int64)
            negative = chunk < 0
            self.counts[0] += np.bincount(index[negative], minlength=BINS)
            self.counts[1] += np.bincount(index[~negative], minlength=BINS)

    def _double(self) -> None:
        self.width *= 2
        merged = self.counts.reshape(2, BINS // 2, 2).sum(axis=2)
        self.counts = np.concatenate([merged, np.zeros_like(merged)], axis=1)

    def percentile(self, percent: float) -> tuple[float, float]:
        """The range that holds ``percent`` of the values, cutting as many below as above, within what was seen."""
        if self.width == 0.0:
            return self.low, self.high
        line = np.concatenate([self.counts[0, ::-1], self.counts[1]])
        edges = np.arange(-BINS, BINS + 1) * self.width
        share = np.cumsum(line) / line.sum()
        tail = (100.0 - percent) / 200.0
        first = int(np.searchsorted(share, tail, side="right"))
        last = int(np.searchsorted(share, 1.0 - tail, side="left"))
        return max(self.low, float(edges[first])), min(self.high, float(edges[last + 1]))

    def entropy(self) -> tuple[float, float]:
        """The range, symmetric around zero, whose int8 grid loses the least information (Kullback-Leibler divergence).

        Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017.
        """
        if self.width == 0.0:
            return self.low, self.high
        counts = self.counts.sum(axis=0).astype(np.float64)
        counts[0] = counts[1]  # zero is exact on every grid: its spike after a ReLU says nothing
        levels = 128 if self.low < 0 else 255
        stops = np.arange(BINS, levels - 1, -4)
        best = int(stops[int(np.argmin([_divergence(counts, int(stop), levels) for stop in stops]))])
        threshold = best * self.width
        low, high = np.clip((self.low, self.high), -threshold, threshold)
        return float(low), float(high)


def _divergence(counts: Array, stop: int, levels: int) -> float:
    """KL(P || Q): P is the histogram clipped at bin ``stop``, Q the same on a grid of ``levels``."""
    inside = counts[:stop]
    clipped = inside.copy()
    clipped[-1] += counts[stop:].sum()
    starts = np.arange(levels) * stop // levels
    nonzero = inside > 0
    sums = np.add.reduceat(inside, starts)
    filled = np.maximum(np.add.reduceat(nonzero.astype(np.float64), starts), 1.0)
    spread = np.repeat(sums / filled, np.diff(np.append(starts, stop))) * nonzero
    p, q = clipped / max(clipped.sum(), 1.0), spread / max(spread.sum(), 1.0)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-9))))


class Calibrator(msgspec.Struct, frozen=True, kw_only=True):
    """How ranges are found.

    Args:
        method: ``minmax`` takes all that was seen; ``percentile`` cuts rare values off; ``entropy`` cuts where the int8
            grid then loses the least information.
        percentile: share of the values kept, in percent.
        threads: threads of the runs.
        limit_bytes: how much of activations may be held at once.
    """

    method: Method = "minmax"
    percentile: float = 99.99
    threads: int = 1
    limit_bytes: int = _LIMIT_BYTES

    def observe(
        self, graph: ModelProto, signature: Signature, tensors: Sequence[str], data: Dataset, folder: Path
    ) -> dict[str, tuple[float, float]]:
        """The range of each tensor over the data.

        Args:
            graph: a graph in which ``tensors`` are fp32.
            folder: where the observed graphs are written.

        Raises:
            PassNotApplicable: no examples, or a tensor is NaN or infinite.
        """
        if len(data) == 0:
            raise PassNotApplicable("there are no calibration examples")
        ranges: dict[str, tuple[float, float]] = {}
        for rows, group in self._groups(graph, signature, tensors, data, folder):
            seen = {name: Histogram(counting=self.method != "minmax") for name in group}
            with _open(graph, signature, group, folder, self.threads) as session:
                for batch in calibration_batches(signature, data, rows):
                    for name, values in session.run(batch.inputs, group).items():
                        _refuse_infinite(name, values)
                        seen[name].add(values)
            ranges.update({name: self._range(histogram) for name, histogram in seen.items()})
        return ranges

    def _range(self, histogram: Histogram) -> tuple[float, float]:
        if not np.isfinite(histogram.low):  # the tensor was empty each time
            return 0.0, 0.0
        if self.method == "percentile":
            return histogram.percentile(self.percentile)
        return histogram.entropy() if self.method == "entropy" else (histogram.low, histogram.high)

    def _groups(
        self, graph: ModelProto, signature: Signature, tensors: Sequence[str], data: Dataset, folder: Path
    ) -> Iterator[tuple[int, list[str]]]:
        """Tensors to observe together, and the batch size: what they hold of one batch stays below the limit."""
        sizes = _sizes(graph, signature, tensors, data, folder)
        rows = max(1, min(_BATCH, self.limit_bytes // max(max(sizes.values(), default=1), 1)))
        group: list[str] = []
        held = 0
        for name in tensors:
            if group and held + sizes[name] * rows > self.limit_bytes:
                yield rows, group
                group, held = [], 0
            group.append(name)
            held += sizes[name] * rows
        if group:
            yield rows, group


def _refuse_infinite(name: str, values: Array) -> None:
    if not np.isfinite(values).all():
        raise PassNotApplicable(
            f"activation '{name}' is NaN or infinite on the calibration examples; exclude the nodes that use it"
        )


def _sizes(
    graph: ModelProto, signature: Signature, tensors: Sequence[str], data: Dataset, folder: Path
) -> dict[str, int]:
    """Bytes of each tensor for one example, found by a run that returns sizes only."""
    measured = ModelProto()
    measured.CopyFrom(graph)
    measured.graph.node.extend(helper.make_node("Size", [name], [name + _SIZE_SUFFIX]) for name in tensors)
    names = [name + _SIZE_SUFFIX for name in tensors]
    with _open(measured, signature, names, folder, 1, TensorProto.INT64) as session:
        batch = next(calibration_batches(signature, data, 1))
        counts = session.run(batch.inputs, names)
    return {name: 4 * int(counts[name + _SIZE_SUFFIX]) // batch.rows for name in tensors}


def _open(
    graph: ModelProto,
    signature: Signature,
    names: Sequence[str],
    folder: Path,
    threads: int,
    kind: int = TensorProto.FLOAT,
) -> Session:
    """A session of a graph that also gives some of its inner tensors."""
    known = {output.name for output in graph.graph.output}
    watched = ModelProto()
    watched.CopyFrom(graph)
    watched.graph.output.extend(helper.make_tensor_value_info(n, kind, None) for n in names if n not in known)
    path = folder / "observed.onnx"
    path.write_bytes(watched.SerializeToString())
    datatype = "FP32" if kind == TensorProto.FLOAT else "INT64"
    extra = tuple(TensorSpec(name=n, datatype=datatype, shape=(ANY_RANK,)) for n in names if n not in known)
    model = Model(
        format="onnx",
        signature=Signature(inputs=signature.inputs, outputs=(*signature.outputs, *extra)),
        blobs=(Blob.of(path),),
    )
    return open_session(model, SessionOptions(threads=threads))
