from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import betainc

from salver.evaluation import special


@pytest.mark.parametrize("a", [0.5, 1.0, 7.0, 350.0, 50_000.0])
@pytest.mark.parametrize("b", [0.5, 3.0, 40.0, 20_000.0])
def test_incomplete_beta_is_that_of_scipy(a, b):
    middle = a / (a + b)
    for x in (0.0, 1e-9, middle / 2, middle, min(1.0, middle * 1.1), 1.0):
        assert special.incomplete_beta(a, b, x) == pytest.approx(betainc(a, b, x), rel=1e-8, abs=1e-13)


@pytest.mark.parametrize("df", [1, 2, 9, 400])
@pytest.mark.parametrize("p", [0.001, 0.05, 0.5, 0.975])
def test_student_t_is_that_of_scipy(df, p):
    assert special.t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-7, abs=1e-9)
    assert special.t_cdf(special.t_quantile(p, df), df) == pytest.approx(p, rel=1e-7)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 598), (1, 30), (15, 30), (30, 30), (990, 1000)])
def test_clopper_pearson_is_that_of_scipy(k, n):
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert special.clopper_pearson(k, n, 0.025) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_log_factorials_keep_their_digits():
    table = special.log_factorials(200_000)
    assert table[:4] == pytest.approx(np.log([1, 1, 2, 6]))
    assert table[200_000] == pytest.approx(np.log(np.arange(1, 200_001)).sum(), rel=1e-13)
