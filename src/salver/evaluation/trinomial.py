"""Paired proportions: an exact test of "not worse by the margin", and the score interval.

Of n paired examples, b are right with the baseline only and c with the candidate only; (b, c) is trinomial with
probabilities p_b and p_c, and the drop is p_b - p_c. The hypothesis to refute is: drop >= margin.

- Order of the outcomes: the score statistic with restricted maximum likelihood, Tango (1998), Statistics in Medicine
  17:891-908.
- p-value: the supremum, over the nuisance parameter p_c, of the exact probability of an outcome at least as favorable:
  Suissa and Shuster (1991), Biometrics 47:361-372; Lloyd and Moldovan (2008), Statistics in Medicine 27:3540-3549.
- The nuisance is searched in an exact confidence set only, whose error is added: Berger and Boos (1994), JASA
  89:1012-1016.

The supremum is bounded from above, not sampled on a grid. The rejection region contains, with (b, c), every outcome
with a smaller b or a larger c. So for all p_c in [x, y] its probability is at most that at ``p_b = x + margin, p_c =
y``, and intervals are split until the bound is tight. What is returned is the bound: coarse search costs power, never
validity.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Final

import numpy as np

from salver.core.arrays import Floats
from salver.evaluation.special import clopper_pearson, log_factorials, normal_quantile

if TYPE_CHECKING:
    import numpy.typing as npt

NUISANCE_ERROR: Final = 1e-6
"""Share of the error that the confidence set of the nuisance parameter may spend."""

_TRUNCATED: Final = 1e-12  # more than the mass left out of every sum below
_TIGHT: Final = 0.01  # relative width at which the bound of the supremum is tight enough
_MAX_POINTS: Final = 4000
_CHUNK_ELEMENTS: Final = 1 << 20


def tango_z(b: npt.ArrayLike, c: npt.ArrayLike, n: float, margin: float) -> Floats:
    """Tango's score statistic of the hypothesis drop = margin; very negative speaks for a smaller drop."""
    b, c = np.asarray(b, np.float64), np.asarray(c, np.float64)
    linear = b + c - margin * (2.0 * n - b + c)
    constant = c * margin * (1.0 - margin)
    root = np.sqrt(np.maximum(linear * linear + 8.0 * n * constant, 0.0))
    # The larger root of 2 n q^2 - linear q - constant; the second form does not cancel.
    far = np.where(linear < 0.0, root - linear, 1.0)
    q = np.where(linear < 0.0, 2.0 * constant / np.where(far > 0.0, far, 1.0), (linear + root) / (4.0 * n))
    q = np.maximum(q, max(0.0, -margin))
    variance = n * (2.0 * q + margin * (1.0 - margin))
    numerator = b - c - n * margin
    safe = np.where(variance > 0.0, variance, 1.0)
    certain = np.where(numerator == 0.0, 0.0, np.copysign(np.inf, numerator))
    return np.asarray(np.where(variance > 0.0, numerator / np.sqrt(safe), certain), np.float64)


def score_bound(b: float, c: float, n: int, alpha: float, *, upper: bool) -> float:
    """One-sided score bound of the drop p_b - p_c, by inverting `tango_z`. Two of them at 0.025 are the 95 %
    interval."""
    target = normal_quantile(1.0 - alpha) * (-1.0 if upper else 1.0)
    estimate = (b - c) / n
    low, high = (estimate, 1.0) if upper else (-1.0, estimate)
    for _ in range(60):
        middle = 0.5 * (low + high)
        z = float(tango_z(b, c, n, middle))
        if z > target:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


@functools.lru_cache(maxsize=4096)
def exact_p_value(b: int, c: int, n: int, margin: float) -> float:
    """p-value of the hypothesis that the drop is at least ``margin`` (-1 < margin < 1), exact and unconditional.

    Reject it, and so call the candidate not worse, when the p-value is at most the error allowed. With b = c = 0 it is
    ``(1 - margin) ** n`` (and `NUISANCE_ERROR`): a margin of 0.005 needs 598 examples without a disagreement.
    """
    if n == 0:
        return 1.0
    z = float(tango_z(b, c, n, margin))
    if math.isinf(z):
        return 0.0 if z < 0 else 1.0
    smallest, largest = max(0.0, -margin), (1.0 - margin) / 2.0
    low, high = clopper_pearson(c, n, NUISANCE_ERROR / 2.0)
    low, high = min(max(low, smallest), largest), max(min(high, largest), smallest)
    region = _Region(n, margin, z, low, high)
    return min(1.0, _supremum(region, low, high, margin) + NUISANCE_ERROR)


def exact_upper_bound(b: int, c: int, n: int, alpha: float) -> float:
    """The smallest margin that `exact_p_value` accepts at ``alpha`` (from above, to a thousandth of the standard
    error): a one-sided upper bound of the drop."""
    estimate = (b - c) / n
    bound = score_bound(b, c, n, alpha, upper=True)
    error = max(bound - estimate, 1.0 / n) / normal_quantile(1.0 - alpha)
    low, high = estimate, 1.0
    for _ in range(40):  # about linear in the normal score, so that two or three steps are enough
        p = exact_p_value(b, c, n, bound) if bound < 1.0 else 0.0
        excess = normal_quantile(min(max(p, 1e-12), 1.0 - 1e-12)) - normal_quantile(alpha)
        if excess <= 0.0:
            high = min(high, bound)
            if excess > -0.001 or high - low < 1e-9:
                break
        else:
            low = max(low, bound)
        bound += (excess + 0.0003) * error
        if not low < bound < high:
            bound = 0.5 * (low + high)
    return high


def _supremum(region: _Region, low: float, high: float, margin: float) -> float:
    edges = np.linspace(math.sqrt(low), math.sqrt(high), 33) ** 2
    starts, stops = edges[:-1], edges[1:]
    settled, seen, points = 0.0, 0.0, 0
    while True:
        bounds = region.probability(starts + margin, stops)
        seen = max(seen, float(region.probability(starts + margin, starts).max()))
        points += len(starts)
        open_ = bounds > seen * (1.0 + _TIGHT) + NUISANCE_ERROR
        settled = max(settled, float(bounds[~open_].max(initial=0.0)))
        if not open_.any() or points > _MAX_POINTS:
            return max(settled, float(bounds.max()))
        pieces = np.linspace(starts[open_], stops[open_], 5)
        starts, stops = pieces[:-1].ravel(), pieces[1:].ravel()


class _Region:
    """Outcomes at least as favorable as the one observed: ``b <= edge(c)``, with an edge that does not fall in c.

    Its probability is the sum over c of P(C = c) P(B <= edge(c) | C = c). The conditional probabilities follow from one
    another by adding a few binomial terms (all positive), so one evaluation costs the length of the edge, not its area:

        F(k; m - 1) = F(k; m) + pi * f(k; m - 1)        F(k + 1; m) = F(k; m) + f(k + 1; m)
    """

    def __init__(self, n: int, margin: float, z: float, low: float, high: float) -> None:
        self.n = n
        self.factorials = log_factorials(n)
        first = max(0, math.floor(n * low - 9.0 * math.sqrt(n * low * (1.0 - low)) - 20.0))
        last = min(n, math.ceil(n * high + 9.0 * math.sqrt(n * high * (1.0 - high)) + 40.0))
        self.c = np.arange(first, last + 1)
        self.edge = np.maximum.accumulate(self._find_edge(margin, z))
        pi = (low + margin) / (1.0 - low)
        m = n - first
        self.skipped = max(0, math.floor(m * pi - 10.0 * math.sqrt(m * pi * max(1.0 - pi, 0.0)) - 30.0))
        self._lay_path()

    def _find_edge(self, margin: float, z: float) -> npt.NDArray[np.int64]:
        limit = z + 1e-9 * (1.0 + abs(z))
        low = np.full(len(self.c), -1)
        high = self.n - self.c + 1
        while np.any(high - low > 1):
            middle = (low + high) // 2
            inside = tango_z(np.maximum(middle, 0), self.c, self.n, margin) <= limit
            low, high = (
                np.where(inside & (high - low > 1), middle, low),
                np.where(inside | (high - low <= 1), high, middle),
            )
        return np.asarray(low, np.int64)

    def _lay_path(self) -> None:
        c, k, n = self.c, self.edge, self.n
        begin = np.arange(min(self.skipped, k[0] + 1), k[0] + 1)
        rises = np.diff(k)
        # One step per c: first the term for one trial less, then one term for each by which the edge rises.
        sizes = rises + 1
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(sizes) else np.zeros(0, np.int64)
        step = np.repeat(np.arange(len(rises)), sizes)
        within = np.arange(int(sizes.sum())) - np.repeat(starts, sizes)
        self.begin_terms = len(begin)
        self.starts = starts + len(begin)
        j = np.concatenate([begin, k[:-1][step] + within])
        m = np.concatenate([np.full(len(begin), n - c[0]), (n - c[:-1] - 1)[step]])
        self.weighted = np.concatenate([np.zeros(len(begin), bool), within == 0])
        valid = (j >= 0) & (j <= m)
        j, rest = np.where(valid, j, 0), np.where(valid, m - j, 0)
        f = self.factorials
        self.terms = np.where(valid, f[j + rest] - f[j] - f[rest], -np.inf)
        self.j, self.rest = j.astype(np.float64), rest.astype(np.float64)
        self.c_terms = f[n] - f[c] - f[n - c]

    def probability(self, p_b: Floats, p_c: Floats) -> Floats:
        """Upper bound of the region's probability, exact but for `_TRUNCATED`, at each pair of parameters."""
        size = max(1, _CHUNK_ELEMENTS // (len(self.terms) + len(self.c) + 1))
        parts = [self._probability(p_b[i : i + size], p_c[i : i + size]) for i in range(0, len(p_b), size)]
        return np.concatenate(parts)

    def _probability(self, p_b: Floats, p_c: Floats) -> Floats:
        pi = np.clip(p_b / (1.0 - p_c), 1e-300, 1.0)[:, None]
        log_not = np.log(np.maximum(1.0 - pi, 1e-300))
        terms = np.exp(self.terms + self.j * np.log(pi) + self.rest * log_not)
        np.multiply(terms, pi, out=terms, where=self.weighted)
        below = np.empty((len(pi), len(self.c)))
        below[:, 0] = terms[:, : self.begin_terms].sum(axis=1)
        if len(self.starts):
            below[:, 1:] = np.add.reduceat(terms, self.starts, axis=1)
        np.cumsum(below, axis=1, out=below)
        q = np.clip(p_c, 1e-300, 1.0)[:, None]
        weights = np.exp(self.c_terms + self.c * np.log(q) + (self.n - self.c) * np.log1p(-q))
        inside = np.minimum((weights * np.minimum(below, 1.0)).sum(axis=1), 1.0)
        outside = np.maximum(1.0 - weights.sum(axis=1), 0.0)
        return np.asarray(np.minimum(inside + outside + _TRUNCATED, 1.0), np.float64)
