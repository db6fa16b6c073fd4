from __future__ import annotations

import math

import numpy as np
import pytest

from salver.core.errors import FailedPrecondition, InvalidArgument
from salver.core.tensors import Signature, TensorSpec
from salver.evaluation import assess, certify, examples_needed, holm, make_metric, parse_margin
from salver.evaluation.trinomial import exact_p_value
from salver.evaluation.types import Margin

SIGNATURE = Signature(inputs=(), outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch",)),))
ACCURACY = make_metric("accuracy", SIGNATURE)
MSE = make_metric("mse", SIGNATURE)
MARGIN = Margin(value=0.01)


def answers(right: np.ndarray) -> dict[str, np.ndarray]:
    return {"answer": np.where(right, "a", "b"), "label": np.full(len(right), "a")}


def paired(lost: int, won: int, n: int, baseline: float = 0.9):
    """Right answers of both: so many lost, so many won."""
    first = np.arange(n) < round(baseline * n)
    second = first.copy()
    second[:lost] = False
    second[n - won :] = True
    return answers(first), answers(second)


def judge(lost: int, won: int, n: int, margin: Margin = MARGIN):
    return assess(ACCURACY, *paired(lost, won, n), margin, "certify")


@pytest.mark.parametrize(
    ("text", "value", "relative"),
    [
        ("0.5pp", 0.005, False),
        ("1%", 0.01, True),
        ("0.002", 0.002, False),
        (" 2 pp ", 0.02, False),
        ("1e-3", 0.001, False),
    ],
)
def test_margins_are_read(text, value, relative):
    margin = parse_margin(text)
    assert margin.value == pytest.approx(value)
    assert margin.relative is relative


@pytest.mark.parametrize("text", ["", "pp", "-1pp", "1 percent", "nan", "0.5 p p", "101%", "1,5pp"])
def test_other_margins_are_refused(text):
    with pytest.raises(InvalidArgument, match="margin"):
        parse_margin(text)


def test_a_good_candidate_is_accepted_with_its_numbers():
    quality = judge(3, 3, 2000)
    (verdict,) = certify([quality], MARGIN)
    assert verdict.outcome == "accepted"
    assert quality.drop == 0.0
    assert quality.discordant == 6
    assert quality.drop_upper < 0.01
    assert quality.drop_ci.low < 0.0 < quality.drop_ci.high


def test_a_bad_candidate_is_rejected_because_worse():
    (verdict,) = certify([judge(200, 0, 1000)], MARGIN)
    assert verdict.outcome == "rejected"
    assert verdict.reason.startswith("worse: accuracy drops by 20.00 pp")


def test_an_estimate_over_the_margin_is_not_worth_more_examples():
    (verdict,) = certify([judge(8, 2, 500)], MARGIN)
    assert verdict.outcome == "rejected"
    assert "more examples are not expected to change that" in verdict.reason


def test_too_few_examples_are_undecided_and_the_number_named_is_enough():
    quality = judge(2, 1, 300)
    (verdict,) = certify([quality], MARGIN)
    assert verdict.outcome == "undecided"
    n = 300 + verdict.more_examples
    lost, won = math.ceil(2 * n / 300), math.floor(n / 300)
    assert judge(lost, won, round(n * 1.25)).p_value <= 0.05
    assert judge(lost, won, round(n * 0.8)).p_value > 0.05


def test_the_598_rule_reaches_the_verdict():
    half_a_point = Margin(value=0.005)
    (few,) = certify([judge(0, 0, 500, half_a_point)], half_a_point)
    (enough,) = certify([judge(0, 0, 598, half_a_point)], half_a_point)
    assert (few.outcome, few.more_examples, enough.outcome) == ("undecided", 98, "accepted")
    assert examples_needed(judge(0, 0, 10, half_a_point), 0.005, 0.01) == math.ceil(math.log(0.01) / math.log(0.995))


def test_a_relative_margin_is_of_a_lower_bound_of_the_baseline():
    absolute, relative = judge(3, 1, 1500, Margin(value=0.009)), judge(3, 1, 1500, Margin(value=0.01, relative=True))
    assert relative.p_value > absolute.p_value  # 1 % of a 90 % that is only known from below
    assert "Clopper" in relative.method


def test_holm_steps_down_and_stops():
    assert [passed for passed, _ in holm([0.01, 0.04, 0.02])] == [True, True, True]
    assert [passed for passed, _ in holm([0.03, 0.03, 0.2])] == [False, False, False]
    assert [passed for passed, _ in holm([0.04, 0.001, 0.026])] == [False, True, False]
    assert holm([]) == ()


def test_five_finalists_at_most_and_only_certified_ones():
    with pytest.raises(InvalidArgument, match="at most 5"):
        certify([judge(0, 0, 700)] * 6, MARGIN)
    with pytest.raises(InvalidArgument, match="certify"):
        certify([assess(ACCURACY, *paired(0, 0, 10), MARGIN, "steer")], MARGIN)


def test_nothing_to_judge_by_is_an_error():
    empty = answers(np.zeros(0, bool))
    with pytest.raises(FailedPrecondition, match="no examples"):
        assess(ACCURACY, empty, empty, MARGIN, "steer")


def test_classes_are_kept_apart():
    label = np.array(["a"] * 50 + ["b"] * 50)
    baseline, candidate = (
        {"answer": label, "label": label},
        {"answer": np.array(["a"] * 60 + ["b"] * 40), "label": label},
    )
    first, second = assess(ACCURACY, baseline, candidate, MARGIN, "steer").per_class
    assert (first.label, first.examples, first.baseline, first.candidate) == ("a", 50, 1.0, 1.0)
    assert (second.label, second.candidate) == ("b", 0.8)


def simulate(rng, n, loss, win, candidates):
    """Counts (b, c) of candidates with these rates of loss and win."""
    return rng.multinomial(n, [loss, win, 1.0 - loss - win], size=candidates)[:, :2]


@pytest.mark.parametrize(("n", "win"), [(300, 0.03), (800, 0.0), (800, 0.005), (1500, 0.001)])
def test_certification_is_honest_when_candidates_are_chosen_by_the_steering_examples(n, win):
    """2,500 builds of 8 candidates, each worse by exactly the margin; the 5 that look best while steering are
    certified."""
    rng = np.random.default_rng(n)
    builds, false = 2500, 0
    for _ in range(builds):
        steer = simulate(rng, 400, win + 0.01, win, 8)
        finalists = np.argsort(steer[:, 0] - steer[:, 1], kind="stable")[:5]
        found = simulate(rng, n, win + 0.01, win, 8)[finalists]
        p_values = [exact_p_value(int(b), int(c), n, 0.01) for b, c in found]
        false += any(passed for passed, _ in holm(p_values))
    assert false / builds <= 0.05 + 2.0 * math.sqrt(0.05 * 0.95 / builds)


@pytest.mark.parametrize(("n", "rate"), [(1200, 0.0), (3000, 0.003), (6000, 0.01)])
def test_candidates_without_a_drop_are_nearly_all_accepted_given_enough_examples(n, rate):
    rng = np.random.default_rng(n)
    counts = simulate(rng, n, rate, rate, 2000)
    accepted = np.mean([exact_p_value(int(b), int(c), n, 0.01) <= 0.05 for b, c in counts])
    assert accepted >= 0.95


def losses(rng, n, kind):
    """Losses of a baseline and of a candidate whose mean is larger by exactly 5 %."""
    error = rng.normal(size=n)
    baseline = error**2
    if kind == "jitter":
        return baseline, (error + rng.normal(scale=math.sqrt(0.05), size=n)) ** 2
    rare = rng.random(n) < 0.01  # 5.0 more on one example of a hundred
    wobble = rng.normal(scale=1e-3, size=n) if kind == "rare, with jitter" else 0.0
    return baseline, baseline + 5.0 * rare + wobble


@pytest.mark.parametrize("kind", ["jitter", "rare", "rare, with jitter"])
@pytest.mark.parametrize("n", [100, 1000])
def test_certification_of_a_mean_is_honest(kind, n):
    rng = np.random.default_rng(n)
    margin = Margin(value=0.05)
    runs, false = 400, 0
    for _ in range(runs):
        baseline, candidate = losses(rng, n, kind)
        quality = assess(MSE, {"loss": baseline}, {"loss": candidate}, margin, "certify")
        false += quality.p_value <= 0.05
    assert false / runs <= 0.05 + 2.0 * math.sqrt(0.05 * 0.95 / runs)


def test_a_mean_that_does_not_rise_is_accepted_given_enough_examples():
    rng = np.random.default_rng(1)
    error = rng.normal(size=4000)
    for margin in (Margin(value=0.05), Margin(value=0.05, relative=True)):
        quality = assess(MSE, {"loss": error**2}, {"loss": (error + 1e-3) ** 2}, margin, "certify")
        assert certify([quality], margin)[0].outcome == "accepted"


def test_equal_losses_on_few_examples_prove_nothing():
    loss = {"loss": np.random.default_rng(0).chisquare(1, 50)}
    margin = Margin(value=0.01, relative=True)
    quality = assess(MSE, loss, loss, margin, "certify")
    assert quality.drop == 0.0
    assert quality.drop_upper > 0.0
    (verdict,) = certify([quality], margin)
    assert verdict.outcome == "undecided"
    assert verdict.more_examples > 500


@pytest.mark.parametrize("name", ["auc", "macro-f1", "r2"])
def test_intervals_of_smooth_metrics_cover_the_truth(name):
    """Two models of equal quality by construction: the true drop is 0."""
    rng = np.random.default_rng(7)
    metric = make_metric(name, SIGNATURE)
    covered = 0
    for _ in range(200):
        truth = rng.normal(size=300) if name == "r2" else rng.integers(0, 2, 300)
        scores = [truth + rng.normal(scale=0.7, size=300) for _ in range(2)]
        stats = [metric.reduce({"y": s - (0.5 if name == "macro-f1" else 0.0)}, truth) for s in scores]
        interval = assess(metric, stats[0], stats[1], MARGIN, "steer").drop_ci
        covered += interval.low <= 0.0 <= interval.high
    assert covered >= 0.95 * 200 - 2.0 * math.sqrt(200 * 0.05 * 0.95)
