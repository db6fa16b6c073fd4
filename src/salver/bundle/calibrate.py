"""Makes golden requests: chooses inputs, asks the model, and finds tolerances that another CPU keeps and another model
does not.

A tolerance is four times the largest difference between ways of running the same model on this host: with the runtime's
graph optimization and without (a quantized graph then runs as float operators between roundings: the stand-in for
another CPU's int8 kernels), on one thread and on two, and with float inputs moved by one part in ten thousand (which
flips some roundings of a quantized graph). It is at least what the datatype's precision asks for, and one
percent of the spread of the answers over the golden inputs; and at most a tenth of that spread, so that a model that
answers for another input, or has other weights, is found out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from salver.backends.base import Session, SessionOptions
from salver.bundle.golden import FLOATS, NUMERIC, GoldenRequest, Kind, Tolerance, margins, request_bytes, to_float
from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition, InvalidArgument, SalverError
from salver.core.model import Model
from salver.core.tensors import Signature, TensorSpec
from salver.processing import open_processed

if TYPE_CHECKING:
    import numpy.typing as npt

Answers = list[dict[str, Array]]

NOISE_FACTOR: Final = 4.0
JITTER: Final = 1e-4
SPREAD_FLOOR: Final = 0.01
SPREAD_CAP: Final = 0.1
PRECISION: Final = {"FP64": 1e-4, "FP32": 1e-4, "FP16": 4e-3, "BF16": 3e-2, "INT8": 0.0, "UINT8": 0.0}
"""Relative rounding a float output may gather on its way; FP64 outputs are mostly computed in FP32."""
MAX_BYTES: Final = 16 << 20
_CANDIDATES: Final = 32
_VARIANTS: Final = (SessionOptions(optimize="none"), SessionOptions(threads=2))


def make_golden(
    model: Model, rows: Mapping[str, Array] | None = None, *, count: int = 8, seed: int = 0
) -> tuple[GoldenRequest, ...]:
    """Golden requests for a model, each with one row.

    Args:
        model: opened here several times, one session after another.
        rows: input name -> ``[examples, ...]`` with the signature's dtypes: real examples, from which the requests are
            chosen. None for synthetic inputs, made from ``seed``, that carry nothing of the user's data.
        count: how many; fewer when there are fewer rows, or when they would take over 16 MiB.
        seed: of synthetic inputs, and of what the tolerances are probed with.

    Raises:
        InvalidArgument: rows that do not fit the signature, or a count below 1.
        FailedPrecondition: no synthetic input fits.
    """
    if count < 1:
        raise InvalidArgument(f"golden requests: got count {count}, expected at least 1")
    with open_processed(model) as session:
        if rows is None:
            inputs = synthetic_inputs(session, model.served, count, seed)
        else:
            inputs = list(split_rows(rows, model.served, _CANDIDATES))
        answers = [session.run(one) for one in inputs]
    chosen = choose(answers, model.served, count)
    inputs, answers = [inputs[i] for i in chosen], [answers[i] for i in chosen]
    others = [_answers(model, options, inputs) for options in _VARIANTS]
    others.append(_answers(model, SessionOptions(), [_jitter(one, model.served, seed) for one in inputs]))
    tolerances = {
        spec.name: tolerance(spec, [a[spec.name] for a in answers], [[a[spec.name] for a in o] for o in others])
        for spec in model.served.outputs
    }
    kind: Kind = "synthetic" if rows is None else "real"
    golden = [
        GoldenRequest(inputs=i, expected=a, tolerances=tolerances, kind=kind)
        for i, a in zip(inputs, answers, strict=True)
    ]
    fitting = max(1, MAX_BYTES // max(request_bytes(g) for g in golden))
    return tuple(golden[:fitting])


def split_rows(rows: Mapping[str, Array], signature: Signature, limit: int) -> Iterator[dict[str, Array]]:
    """Up to ``limit`` requests of one row each, evenly spread over the rows.

    An input with a fixed first dimension takes that many rows; one that is given with a dimension more than the
    signature has (examples stacked along a dimension the model does not know) is indexed.
    """
    lengths = {len(rows[spec.name]) for spec in signature.inputs if spec.name in rows}
    if len(lengths) != 1 or 0 in lengths:
        raise InvalidArgument(
            f"golden requests: the inputs need the same number of rows, at least one; got {sorted(lengths)}"
        )
    total = lengths.pop()
    step = max((_rows_taken(spec, rows[spec.name]) for spec in signature.inputs if spec.name in rows), default=1)
    starts = np.unique(np.linspace(0, max(total - step, 0), min(limit, max(total // step, 1))).astype(np.int64))
    for start in starts:
        request = {
            name: array[start, ...] if _is_stacked(array, signature.input(name)) else array[start : start + step]
            for name, array in rows.items()
        }
        request = {name: np.asarray(array, order="C") for name, array in request.items()}
        signature.check(request)
        yield request


def choose(answers: Answers, signature: Signature, count: int) -> list[int]:
    """Numbers of ``count`` requests that tell models apart: half of them from unsure to sure (a sure answer saturates
    and hides a change), the others those whose answers lie farthest from what is chosen already."""
    if len(answers) <= count:
        return list(range(len(answers)))
    vectors = _vectors(answers, signature)
    if vectors is None:
        return [int(i) for i in np.linspace(0, len(answers) - 1, count)]
    chosen = _by_lead(answers, signature, count // 2) or [0]
    nearest = np.min([np.abs(vectors - vectors[i]).max(axis=1) for i in chosen], axis=0)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.abs(vectors - vectors[chosen[-1]]).max(axis=1))
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return sorted(chosen)


def tolerance(spec: TensorSpec, answers: list[Array], others: list[list[Array]]) -> Tolerance:
    """The tolerance of one output, from its answers and from those of other ways of running the same model."""
    if spec.datatype not in NUMERIC:
        return _class_tolerance(answers, others)
    values = [to_float(a, spec.datatype) for a in answers]
    noise = max(
        (_distance(v, to_float(o, spec.datatype)) for other in others for v, o in zip(values, other, strict=True)),
        default=0.0,
    )
    spread = _spread(values)
    precision = PRECISION[spec.datatype]
    finite = [v[np.isfinite(v)] for v in values]
    scale = (
        float(np.sqrt(np.mean(np.square(np.concatenate([v.ravel() for v in finite])))))
        if any(v.size for v in finite)
        else 0.0
    )
    floor = precision * scale + SPREAD_FLOOR * spread
    allowed = max(NOISE_FACTOR * noise, floor)
    if spread:
        allowed = min(allowed, max(SPREAD_CAP * spread, 1.5 * noise))
    return Tolerance(abs=allowed or float(np.finfo(np.float32).tiny), rel=precision if spec.datatype in FLOATS else 0.0)


def _class_tolerance(answers: list[Array], others: list[list[Array]]) -> Tolerance:
    shares = [
        float(np.mean(a != o)) if a.shape == o.shape else 1.0
        for other in others
        for a, o in zip(answers, other, strict=True)
        if a.size
    ]
    noise = max(shares, default=0.0)
    # A few elements of a large map of classes (a segmentation) may sit on a border; a single class may not.
    floor = 0.002 if answers[0].size >= 1000 else 0.0
    return Tolerance(mismatch=min(1.0, max(NOISE_FACTOR * noise, floor)))


def _spread(values: list[npt.NDArray[np.float64]]) -> float:
    """Median over the requests of the largest distance to another one."""
    far = [
        max((_distance(a, b) for j, b in enumerate(values) if i != j and a.shape == b.shape), default=0.0)
        for i, a in enumerate(values)
    ]
    return float(np.median(far)) if far else 0.0


def _distance(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.abs(a[both] - b[both]).max()) if both.any() else 0.0


def _by_lead(answers: Answers, signature: Signature, count: int) -> list[int]:
    """Up to ``count`` requests whose top class leads by little, by more, up to the most; none where no output has
    classes."""
    for spec in signature.outputs:
        if spec.datatype in FLOATS and all(a[spec.name].ndim and a[spec.name].shape[-1] >= 2 for a in answers):
            leads = np.nan_to_num([margins(to_float(a[spec.name], spec.datatype))[1].min(initial=0.0) for a in answers])
            targets = np.linspace(leads.min(), leads.max(), count)
            return list(dict.fromkeys(int(np.abs(leads - target).argmin()) for target in targets))
    return []


def _vectors(answers: Answers, signature: Signature) -> npt.NDArray[np.float64] | None:
    """One vector per answer, each numeric output scaled to a spread of one; None without a common shape."""
    parts = []
    for spec in signature.outputs:
        if spec.datatype not in NUMERIC or len({a[spec.name].shape for a in answers}) != 1:
            continue
        values = np.nan_to_num(np.stack([to_float(a[spec.name], spec.datatype).ravel() for a in answers]))
        spread = float(np.ptp(values)) if values.size else 0.0
        if spread:
            parts.append(values / spread)
    return np.concatenate(parts, axis=1) if parts else None


def _answers(model: Model, options: SessionOptions, inputs: list[dict[str, Array]]) -> Answers:
    with open_processed(model, options) as session:
        return [session.run(one) for one in inputs]


def _jitter(inputs: dict[str, Array], signature: Signature, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    floats = {s.name for s in signature.inputs if s.datatype in ("FP32", "FP64")}
    return {
        name: np.asarray(array * (1.0 + JITTER * rng.standard_normal(array.shape)), array.dtype)
        if name in floats
        else array
        for name, array in inputs.items()
    }


def _is_stacked(array: Array, spec: TensorSpec) -> bool:
    return spec.rank_known and array.ndim == len(spec.shape) + 1


def _rows_taken(spec: TensorSpec, array: Array) -> int:
    first = spec.shape[0] if spec.shape else 1
    return first if isinstance(first, int) and not _is_stacked(array, spec) else 1


_WORDS: Final = ("", "a", "salver", "the quick brown fox", "0", "-1.5", "Ünïcode ✓", "lorem ipsum dolor sit amet")
_SIZES: Final = (8, 1, 16, 32, 64, 128, 224)
_HIGHS: Final = (256, 100, 10, 2)


def synthetic_inputs(session: Session, signature: Signature, count: int, seed: int) -> list[dict[str, Array]]:
    """Inputs made from a seed that the model accepts: normal and uniform numbers of several scales, whole numbers below
    256 (or less, where the model takes them for the rows of a small table), a few fixed words.

    Raises:
        FailedPrecondition: the model refuses all of them.
    """
    last = ""
    for size in _SIZES:
        for high in _HIGHS:
            inputs = [_synthetic(signature, size, high, np.random.default_rng([seed, i]), i) for i in range(count)]
            try:
                for one in inputs:
                    session.run(one)
            except SalverError as error:
                last = error.message
                continue
            return inputs
    raise FailedPrecondition(f"no synthetic input fits this model ({last}); use real examples for the golden requests")


def _synthetic(signature: Signature, size: int, high: int, rng: np.random.Generator, i: int) -> dict[str, Array]:
    batch = signature.batch_dim
    made: dict[str, Array] = {}
    for spec in signature.inputs:
        shape = tuple(d if isinstance(d, int) else 1 if d == batch else size for d in spec.shape)
        made[spec.name] = _random(spec, shape, high, rng, i)
    return made


def _random(spec: TensorSpec, shape: tuple[int, ...], high: int, rng: np.random.Generator, i: int) -> Array:
    if spec.datatype == "BYTES":
        return np.array(rng.choice(np.array(_WORDS, dtype=object), shape), dtype=object).reshape(shape)
    if spec.datatype == "BOOL":
        return np.asarray(rng.random(shape) < 0.5)
    if spec.datatype not in FLOATS:
        return np.asarray(rng.integers(0, min(high, int(np.iinfo(spec.dtype).max) + 1), shape)).astype(spec.dtype)
    values = (
        rng.standard_normal(shape),
        rng.random(shape),
        0.1 * rng.standard_normal(shape),
        3 * rng.standard_normal(shape),
    )
    chosen = np.asarray(values[i % len(values)])
    if spec.datatype == "BF16":
        return (chosen.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return chosen.astype(spec.dtype)
