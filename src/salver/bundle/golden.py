"""Golden requests: inputs with the answers they gave when the model was sealed, replayed wherever it is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import numpy as np

from salver.backends.base import Session
from salver.core.arrays import Array, array_bytes
from salver.core.errors import SalverError, format_shape
from salver.core.tensors import Signature, to_datatype

if TYPE_CHECKING:
    import numpy.typing as npt

Kind = Literal["real", "synthetic"]

FLOATS: Final = ("FP16", "BF16", "FP32", "FP64")
NUMERIC: Final = (*FLOATS, "INT8", "UINT8")
"""Datatypes whose values are amounts. Wider integers, booleans and strings are taken for classes: equal or not."""


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """How far an answer may be from the stored one.

    Args:
        abs, rel: an element ``a`` fits ``e`` when ``|a - e| <= abs + rel * |e|``; NaN fits NaN, infinity itself.
        mismatch: for classes (integers wider than 8 bits, booleans, strings): share of elements that may differ.
    """

    abs: float = 0.0
    rel: float = 0.0
    mismatch: float = 0.0


class GoldenRequest(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One request and its answer.

    Args:
        inputs, expected: name -> array with the dtype of the signature.
        tolerances: output name -> tolerance.
        kind: whether the inputs are the user's own examples or made from a seed.
    """

    inputs: dict[str, Array]
    expected: dict[str, Array]
    tolerances: dict[str, Tolerance]
    kind: Kind


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One answer that is not the stored one.

    Args:
        request: number of the golden request.
        output: name of the output; empty when the model could not be run.
        reason: one sentence with what came and what was expected.
        ratio: the difference as a multiple of what is allowed.
    """

    request: int
    output: str
    reason: str
    ratio: float


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay found.

    Args:
        requests: how many were replayed.
        worst_output, worst_ratio: the output that came closest to its tolerance, or exceeded it most, and the largest
            difference as a multiple of what is allowed.
        differences: the answers that are wrong.
    """

    requests: int
    worst_output: str
    worst_ratio: float
    differences: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """Whether every answer was right."""
        return not self.differences

    def __str__(self) -> str:
        if self.ok:
            return f"{self.requests} golden requests gave the stored answers"
        first = self.differences[0]
        wrong = len({d.request for d in self.differences})
        return (
            f"{wrong} of {self.requests} golden requests gave other answers than the stored ones; "
            f"request {first.request}: {first.reason}"
        )


def replay(session: Session, golden: Sequence[GoldenRequest]) -> ReplayReport:
    """Run golden requests on a session and compare. A model that refuses them is a difference, not an error."""
    differences: list[Difference] = []
    worst, worst_ratio = "", 0.0
    for number, request in enumerate(golden):
        try:
            got = session.run(request.inputs, list(request.expected))
        except SalverError as error:
            differences.append(Difference(request=number, output="", reason=error.message, ratio=math.inf))
            continue
        for name, expected in request.expected.items():
            ratio, reason = compare(got[name], expected, request.tolerances[name], _datatype(session.signature, name))
            if ratio >= worst_ratio:
                worst, worst_ratio = name, ratio
            if reason:
                text = f"output '{name}': {reason}"
                differences.append(Difference(request=number, output=name, reason=text, ratio=ratio))
    return ReplayReport(
        requests=len(golden), worst_output=worst, worst_ratio=worst_ratio, differences=tuple(differences)
    )


def compare(got: Array, expected: Array, tolerance: Tolerance, datatype: str) -> tuple[float, str]:
    """Compare one output.

    Returns:
        The difference as a multiple of what is allowed, and what is wrong (empty when nothing is).
    """
    if got.shape != expected.shape:
        return math.inf, f"got shape {format_shape(got.shape)}, expected {format_shape(expected.shape)}"
    if got.dtype.kind != expected.dtype.kind or got.dtype.itemsize != expected.dtype.itemsize:
        return math.inf, f"got datatype {to_datatype(got.dtype)}, expected {datatype}"
    if expected.size == 0:
        return 0.0, ""
    if datatype not in NUMERIC:
        return _compare_classes(got, expected, tolerance)
    given, wanted = to_float(got, datatype), to_float(expected, datatype)
    return _compare_numbers(given, wanted, tolerance)


def to_float(array: Array, datatype: str) -> npt.NDArray[np.float64]:
    """Values as float64; BF16 bit patterns are read as the numbers they stand for."""
    if datatype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def margins(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Top-1 class and its lead over the second, for each row of the last dimension (at least 2 long)."""
    top = np.argmax(values, axis=-1)
    two = np.partition(values, -2, axis=-1)[..., -2:]
    return top, two[..., 1] - two[..., 0]


def _compare_classes(got: Array, expected: Array, tolerance: Tolerance) -> tuple[float, str]:
    differ = np.atleast_1d(np.asarray(got != expected))
    share = float(differ.mean())
    if share <= tolerance.mismatch:
        return share / tolerance.mismatch if tolerance.mismatch else 0.0, ""
    where = tuple(int(i) for i in np.argwhere(differ)[0])
    a, e = np.atleast_1d(got)[where], np.atleast_1d(expected)[where]
    ratio = share / tolerance.mismatch if tolerance.mismatch else math.inf
    return ratio, f"got {str(a)[:60]!r}, expected {str(e)[:60]!r} ({int(differ.sum())} of {differ.size} differ)"


def _compare_numbers(
    got: npt.NDArray[np.float64], expected: npt.NDArray[np.float64], tolerance: Tolerance
) -> tuple[float, str]:
    finite = np.isfinite(expected)
    if not np.array_equal(got[~finite], expected[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return math.inf, "NaN or infinity where there was none, or the reverse"
    if not finite.any():
        return 0.0, ""
    difference = np.where(finite, np.abs(np.where(finite, got, 0.0) - np.where(finite, expected, 0.0)), 0.0)
    allowed = tolerance.abs + tolerance.rel * np.where(finite, np.abs(expected), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num(difference / allowed, nan=0.0, posinf=np.inf)
    ratio = float(ratios.max())
    if ratio > 1.0:
        at = np.unravel_index(int(ratios.argmax()), ratios.shape)
        return ratio, f"got {got[at]:.6g}, expected {expected[at]:.6g} ± {allowed[at]:.2g}"
    if expected.ndim and expected.shape[-1] >= 2 and finite.all():
        top, lead = margins(expected)
        sure = lead > tolerance.abs + tolerance.rel * np.abs(expected).max(axis=-1)
        flipped = sure & (np.argmax(got, axis=-1) != top)
        if flipped.any():
            return max(ratio, math.nextafter(1.0, 2.0)), f"the top class changed in {int(flipped.sum())} rows"
    return ratio, ""


def _datatype(signature: Signature, output: str) -> str:
    return signature.output(output).datatype


def request_bytes(request: GoldenRequest) -> int:
    """About how much a request takes in a bundle."""
    return sum(array_bytes(a) for arrays in (request.inputs, request.expected) for a in arrays.values())
