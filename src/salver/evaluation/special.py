"""The few special functions that the tests need, so that certifying a model needs numpy only."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import Final

import numpy as np

from salver.core.arrays import Floats

_NORMAL: Final = NormalDist()
_TINY: Final = 1e-300


@functools.lru_cache(maxsize=8)
def log_factorials(n: int) -> Floats:
    """``log(k!)`` for k = 0..n. Each from `math.lgamma`: a running sum would lose digits at large n."""
    table = np.fromiter((math.lgamma(k + 1.0) for k in range(n + 1)), np.float64, n + 1)
    table.flags.writeable = False
    return table


def normal_quantile(p: float) -> float:
    """Quantile of the standard normal distribution, for 0 < p < 1."""
    return _NORMAL.inv_cdf(p)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularized incomplete beta function I_x(a, b), for a, b > 0.

    Continued fraction of DLMF 8.17.22 (https://dlmf.nist.gov/8.17) by the modified Lentz method.
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, _away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    d = 1.0 / d
    value = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / _away_from_zero(1.0 + even * d)
        c = _away_from_zero(1.0 + even / c)
        value *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1.0 / _away_from_zero(1.0 + odd * d)
        c = _away_from_zero(1.0 + odd / c)
        value *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return math.exp(front) * value / a


def _away_from_zero(x: float) -> float:
    return x if abs(x) > _TINY else _TINY


def beta_quantile(p: float, a: float, b: float) -> float:
    """x with I_x(a, b) = p, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if incomplete_beta(a, b, middle) < p:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def clopper_pearson(successes: int, n: int, alpha: float) -> tuple[float, float]:
    """Exact lower and upper bounds of a proportion, each wrong with probability at most ``alpha``.

    Clopper and Pearson (1934), Biometrika 26:404-413.
    """
    low = beta_quantile(alpha, successes, n - successes + 1) if successes else 0.0
    high = beta_quantile(1.0 - alpha, successes + 1, n - successes) if successes < n else 1.0
    return low, high


def t_cdf(t: float, df: float) -> float:
    """Distribution function of Student's t with ``df`` degrees of freedom."""
    if math.isinf(t):
        return 0.0 if t < 0 else 1.0
    tail = 0.5 * incomplete_beta(0.5 * df, 0.5, df / (df + t * t))
    return tail if t < 0 else 1.0 - tail


@functools.lru_cache(maxsize=1024)
def t_quantile(p: float, df: float) -> float:
    """Quantile of Student's t, for 0 < p < 1."""
    if p == 0.5:
        return 0.0
    tail = min(p, 1.0 - p)
    x = beta_quantile(2.0 * tail, 0.5 * df, 0.5)
    t = math.sqrt(df * (1.0 - x) / max(x, _TINY))
    return -t if p < 0.5 else t
