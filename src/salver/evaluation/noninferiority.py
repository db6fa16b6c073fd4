"""Is a candidate not worse than the baseline by more than a margin? Paired, one-sided at 95 %, corrected for choosing.

What is done and why it holds: ``docs/evaluation/method.md``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition, Internal, InvalidArgument
from salver.evaluation.metrics.base import Metric, Paired, Stats
from salver.evaluation.special import clopper_pearson, normal_quantile, t_cdf, t_quantile
from salver.evaluation.trinomial import exact_p_value, exact_upper_bound, score_bound, tango_z
from salver.evaluation.types import ClassQuality, Interval, Margin, Quality, Verdict

ALPHA: Final = 0.05
"""The chance, at most, of accepting any candidate that is worse by the margin or more."""

MAX_FINALISTS: Final = 5

_COUNTABLE: Final = 100_000_000
_BASELINE_ERROR: Final = 5e-4  # spent on the lower bound of the baseline that a relative margin is taken of
_LARGEST_MARGIN: Final = 1.0 - 1e-9
_MARGIN: Final = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*(pp|%|)\s*")


def parse_margin(text: str) -> Margin:
    """Read ``0.5pp`` (percentage points), ``1%`` (of the baseline's own value) or ``0.002`` (the metric's own unit).

    Raises:
        InvalidArgument: anything else, or a share over 100.
    """
    match = _MARGIN.fullmatch(text)
    if not match:
        raise InvalidArgument(
            f"margin '{text}': expected percentage points ('0.5pp'), a share of the baseline's value ('1%') or "
            "a number in "
            "the metric's unit ('0.002')"
        )
    number, unit = float(match[1]), match[2]
    if unit and number > 100.0:
        raise InvalidArgument(f"margin '{text}': expected at most 100{unit}")
    return Margin(value=number / 100.0 if unit else number, relative=unit == "%")


def default_margin(metric: Metric) -> str:
    """The margin where nobody names one: half a percentage point of a share, one percent of anything else."""
    return "0.5pp" if metric.is_share else "1%"


def check_margin(metric: Metric, text: str) -> None:
    """Refuse a margin that means nothing for a metric.

    Raises:
        InvalidArgument: a share may drop by 1 or more, or percentage points of what is no share.
    """
    margin = parse_margin(text)
    if metric.is_share and not margin.relative and margin.value >= 1.0:
        raise InvalidArgument(
            f"margin '{text}': metric '{metric.name}' lies between 0 and 1, so that would allow any drop; for "
            f"percentage points write '{text.strip().removesuffix('pp')}pp', with less than 100"
        )
    if metric.is_share is False and text.strip().endswith("pp"):
        raise InvalidArgument(
            f"margin '{text}': metric '{metric.name}' is no share, so percentage points mean nothing; give a share of "
            "the original's value (--max-drop 1%) or a number in the metric's unit (--max-drop 0.002)"
        )


def format_margin(margin: Margin) -> str:
    """A margin as users write it."""
    return f"{margin.value * 100:g}%" if margin.relative else f"{margin.value * 100:g}pp"


def assess(
    metric: Metric, baseline: Stats, candidate: Stats, margin: Margin, role: Literal["steer", "certify"]
) -> Quality:
    """Compare a candidate with the baseline by the per-example statistics of the same examples.

    The p-value, and the exact bound where there is one, are found only for the role ``certify``.

    Raises:
        FailedPrecondition: there are no examples.
    """
    if not baseline or not len(next(iter(baseline.values()))):
        raise FailedPrecondition(f"metric '{metric.name}': there are no examples to judge by")
    paired = metric.compare(baseline, candidate)
    hits = paired.right or paired.hits
    per_class = _by_class(paired.classes, *hits) if paired.classes is not None and hits else ()
    if paired.right is not None:
        found = _judge_shares(*paired.right, margin, role == "certify")
    elif paired.influence is not None:
        found = _judge_means(paired, *paired.influence, margin, metric.higher_is_better, role == "certify")
    else:
        raise Internal(f"metric '{metric.name}' gave neither right answers nor influence")
    return Quality(
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        value=paired.candidate,
        baseline=paired.baseline,
        examples=len(next(iter(baseline.values()))),
        per_class=per_class,
        role=role,
        **found,
    )


def _judge_shares(first: Array, second: Array, margin: Margin, certify: bool) -> dict[str, Any]:
    n, b, c = len(first), int(np.sum(first & ~second)), int(np.sum(~first & second))
    found: dict[str, Any] = {
        "drop": (b - c) / n,
        "drop_ci": Interval(
            low=score_bound(b, c, n, ALPHA / 2, upper=False), high=score_bound(b, c, n, ALPHA / 2, upper=True)
        ),
        "discordant": b + c,
    }
    if not certify:
        return found | {
            "drop_upper": score_bound(b, c, n, ALPHA, upper=True),
            "method": "score interval for paired proportions (Tango 1998)",
        }
    method = "exact unconditional test on the score statistic (Suissa and Shuster 1991; Tango 1998), score interval"
    if margin.relative:
        low, _ = clopper_pearson(int(first.sum()), n, _BASELINE_ERROR)
        p_value = exact_p_value(b, c, n, min(margin.value * low, _LARGEST_MARGIN)) + _BASELINE_ERROR
        method += ", margin of a lower bound of the baseline (Clopper and Pearson 1934)"
    else:
        p_value = exact_p_value(b, c, n, min(margin.value, _LARGEST_MARGIN))
    return found | {
        "drop_upper": exact_upper_bound(b, c, n, ALPHA),
        "p_value": min(1.0, p_value),
        "method": method,
    }


def _judge_means(
    paired: Paired, own: Array, theirs: Array, margin: Margin, higher_is_better: bool, certify: bool
) -> dict[str, Any]:
    sign = 1.0 if higher_is_better else -1.0
    moved = sign * (own - theirs)
    drop = sign * (paired.baseline - paired.candidate)
    worst = max(paired.worst, float(np.abs(moved).max()))
    found: dict[str, Any] = {
        "drop": drop,
        "drop_ci": Interval(
            low=drop - _half_width(-moved, worst, ALPHA / 2), high=drop + _half_width(moved, worst, ALPHA / 2)
        ),
        "drop_upper": drop + _half_width(moved, worst, ALPHA),
        "method": "studentized influence function corrected for skew (Hall 1992), with a bound for what was not seen",
    }
    if not certify:
        return found
    share = margin.value * math.copysign(1.0, paired.baseline) if margin.relative else 0.0
    room = margin_in_unit(margin, paired.baseline) - drop
    return found | {"p_value": _p_of_mean(moved - share * own, room, worst)}


def _p_of_mean(moved: Array, room: float, worst: float) -> float:
    """p-value of "there is no room": by the spread of what was seen, and by the share of examples that were not."""
    n = len(moved)
    if n < 2 or room <= 0.0:
        return 1.0
    error = _standard_error(moved)
    by_spread = 0.0
    if error > 0.0:
        t, skew = -room / error, _right_skew(moved)
        turned = t + skew * t * t / 3.0 + skew * skew * t**3 / 27.0 + skew / 6.0
        by_spread = t_cdf(max(t, turned), n - 1)
    by_unseen = 0.0 if room >= worst else (1.0 - room / worst) ** n
    return max(by_spread, by_unseen)


def _half_width(moved: Array, worst: float, alpha: float) -> float:
    """How far above its estimate the mean may lie, wrong with probability ``alpha``."""
    n = len(moved)
    unseen = worst * float(1.0 - alpha ** (1.0 / n))
    if n < 2:
        return max(unseen, worst)
    quantile, skew = t_quantile(1.0 - alpha, n - 1), _right_skew(moved)
    if skew > 1e-6:  # the inverse of the transformation in `_p_of_mean`
        turned = (3.0 / skew) * (1.0 - float(np.cbrt(1.0 - skew * (quantile + skew / 6.0))))
        quantile = max(quantile, turned)
    return max(unseen, quantile * _standard_error(moved))


def _right_skew(moved: Array) -> float:
    """Skewness over the square root of n, where rare large losses make a mean look safer than it is; else 0."""
    spread = float(np.std(moved))
    if spread == 0.0:
        return 0.0
    return max(0.0, float(np.mean(((moved - moved.mean()) / spread) ** 3))) / math.sqrt(len(moved))


def _standard_error(moved: Array) -> float:
    return float(np.std(moved, ddof=1)) / math.sqrt(len(moved)) if len(moved) > 1 else 0.0


def _by_class(classes: Array, baseline: Array, candidate: Array) -> tuple[ClassQuality, ...]:
    names, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    first, second = (np.bincount(inverse, weights=a, minlength=len(names)) / counts for a in (baseline, candidate))
    return tuple(
        ClassQuality(label=str(n), examples=int(k), baseline=float(a), candidate=float(b))
        for n, k, a, b in zip(names, counts, first, second, strict=True)
    )


def margin_in_unit(margin: Margin, baseline: float) -> float:
    """The margin in the metric's own unit."""
    return margin.value * abs(baseline) if margin.relative else margin.value


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> tuple[tuple[bool, float], ...]:
    """Holm's step-down correction (1979, Scandinavian Journal of Statistics 6:65-70): for each p-value, in the order
    given, whether its hypothesis is refuted and the level it was held against. Whatever the truth and however the
    p-values depend on one another, the chance of any false refutation is at most ``alpha``."""
    decided: dict[int, tuple[bool, float]] = {}
    going = True
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        level = alpha / (len(p_values) - rank)
        going = going and p_values[index] <= level
        decided[index] = (going, level)
    return tuple(decided[i] for i in range(len(p_values)))


def certify(qualities: Sequence[Quality], margin: Margin, alpha: float = ALPHA) -> tuple[Verdict, ...]:
    """Decide on all finalists of a build together, from what `assess` found in the role ``certify``.

    Raises:
        InvalidArgument: more than `MAX_FINALISTS`, or a quality that was only measured to steer.
    """
    p_values = [q.p_value for q in qualities if q.p_value is not None]
    if len(qualities) > MAX_FINALISTS or len(p_values) != len(qualities):
        raise InvalidArgument(f"certify: expected at most {MAX_FINALISTS} qualities assessed for 'certify'")
    decided = zip(qualities, holm(p_values, alpha), strict=True)
    return tuple(_decide(quality, margin, passed, level) for quality, (passed, level) in decided)


def _decide(quality: Quality, margin: Margin, passed: bool, level: float) -> Verdict:
    allowed = margin_in_unit(margin, quality.baseline)
    drop, limit = format_amount(quality, quality.drop), format_amount(quality, allowed)
    worsens = worsens_by(quality)
    if passed:
        bound = format_amount(quality, max(quality.drop_upper, 0.0))
        gain = format_amount(quality, -quality.drop)
        what = (
            f"{worsens} {drop}"
            if quality.drop > 0
            else f"improves by {gain}"
            if quality.drop < 0
            else "does not change"
        )
        reason = f"{quality.metric} {what}; at 95 % it {worsens} {bound} at most, {limit} is allowed"
        return Verdict(outcome="accepted", gate="quality", reason=reason)
    if quality.drop_ci.low > allowed:
        least = format_amount(quality, quality.drop_ci.low)
        reason = f"worse: {quality.metric} {worsens} {drop}, at least {least} at 95 %; {limit} is allowed"
        return Verdict(outcome="rejected", gate="quality", reason=reason)
    if quality.drop >= allowed:
        reason = (
            f"{quality.metric} {worsens} {drop} on {quality.examples:,} examples; {limit} is allowed, and more "
            "examples are not expected to change that"
        )
        return Verdict(outcome="rejected", gate="quality", reason=reason)
    more = max(quality.examples // 20 + 1, examples_needed(quality, allowed, level) - quality.examples)
    bound = format_amount(quality, quality.drop_upper)
    many = f"about {more:,} more examples" if more <= _COUNTABLE else "more examples than anyone has"
    what = f"{worsens} {drop}" if quality.drop > 0 else f"improves by {format_amount(quality, -quality.drop)}"
    return Verdict(
        outcome="undecided",
        gate="quality",
        more_examples=more,
        reason=f"{quality.metric} {what if quality.drop else 'does not change'}, and {worsens} up to {bound} at 95 %; "
        f"{limit} is allowed: {many} would decide",
    )


def worsens_by(quality: Quality) -> str:
    """How a metric gets worse: an accuracy drops by, an error rises by."""
    return "drops by" if quality.higher_is_better else "rises by"


def examples_needed(quality: Quality, allowed: float, level: float) -> int:
    """About how many examples would certify a candidate that goes on as it did: the same rates of disagreement, or
    the same spread, at the level given."""
    n, room = quality.examples, allowed - quality.drop
    z = -normal_quantile(level)
    if quality.discordant < 0:
        half_width = quality.drop_upper - quality.drop
        return math.ceil(n * (z / -normal_quantile(ALPHA) * half_width / room) ** 2)
    if quality.discordant == 0:
        return math.ceil(math.log(level) / math.log1p(-min(allowed, _LARGEST_MARGIN)))
    b = (quality.discordant / n + quality.drop) / 2.0
    c = b - quality.drop
    per_example = float(tango_z(b, c, 1.0, allowed))  # grows with the square root of the number of examples
    return math.ceil((z / per_example) ** 2)


def format_amount(quality: Quality, amount: float) -> str:
    """A difference in the metric's unit: percentage points for shares."""
    if quality.discordant >= 0 or quality.metric in ("macro-f1", "auc"):
        return f"{amount * 100:.2f} pp"
    return f"{amount:.4g}"
