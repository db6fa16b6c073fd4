"""How far one output is from another."""

from __future__ import annotations

import math

import numpy as np
import pytest

from salver.evaluation.parity import ULP_BINS, compare_output, join_parity
from salver.evaluation.tolerance import tolerance_for


@pytest.mark.parametrize(("datatype", "dtype"), [("FP16", np.float16), ("FP32", np.float32), ("FP64", np.float64)])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 100])
def test_units_in_the_last_place_are_counted_on_both_sides_of_zero(datatype: str, dtype: type, steps: int) -> None:
    start = np.array([1.5, -1.5, 0.0, 1000.0], dtype)
    moved = start
    for _ in range(steps):
        moved = np.nextafter(moved, dtype(np.inf))
    found, _ = compare_output("y", start, moved, datatype, 1.0, None)
    expected = [0] * (math.ceil(math.log2(steps + 1)) + 1)
    expected[-1] = 4
    assert list(found.ulps) == expected


def test_bfloat16_is_compared_as_the_numbers_it_stands_for() -> None:
    bits = np.array([0x3F80, 0xBF80], np.uint16)  # 1 and -1
    found, failure = compare_output("y", bits, bits + np.uint16(1), "BF16", 1e-4, None)
    assert (found.ulps, found.max_abs, failure) == ((0, 2), 2.0**-7, "")


def test_zeros_of_both_signs_and_nans_are_equal_and_infinity_is_far() -> None:
    a = np.array([0.0, np.nan, np.inf, 1.0], np.float32)
    b = np.array([-0.0, np.nan, np.inf, np.inf], np.float32)
    found, failure = compare_output("y", a, b, "FP32", 1e-4, None)
    assert (found.ulps[0], sum(found.ulps), len(found.ulps)) == (3, 4, ULP_BINS)
    assert "element 0" in failure


def test_relative_and_mean_differences_are_of_all_elements_of_all_runs() -> None:
    a = np.zeros((2, 2), np.float32)
    first, _ = compare_output("y", a, a + np.float32(1e-5), "FP32", 1e-4, None)
    second, _ = compare_output("y", np.zeros((6, 2), np.float32), np.zeros((6, 2), np.float32), "FP32", 1e-4, None)
    both = join_parity(first, second)
    assert both.elements == 16
    assert both.mean_abs == pytest.approx(1e-5 / 4, rel=1e-3)
    assert (both.max_rel, both.ulps[0]) == (first.max_rel, 12)


def test_a_label_may_differ_only_where_scores_are_tied() -> None:
    a, b = np.array([1, 2, 3]), np.array([1, 2, 0])
    assert "row 3" in compare_output("label", a, b, "INT64", 1e-4, None)[1]
    found, failure = compare_output("label", a, b, "INT64", 1e-4, np.array([False, False, True]))
    assert (failure, found.label_agreement) == ("", pytest.approx(2 / 3))


def test_the_tolerance_grows_with_depth_and_with_the_coarseness_of_the_type() -> None:
    shallow, _ = tolerance_for("FP32", 1)
    assert shallow == 1e-4
    values = [tolerance_for(t, d)[0] for t, d in (("FP32", 100), ("FP32", 1000), ("FP16", 10), ("BF16", 10))]
    assert values == sorted(values)
    assert values[0] > shallow
    assert tolerance_for("BF16", 10**6)[0] == pytest.approx(2.0**-4, rel=0.02)
    assert "FP16 over 10 operators" in tolerance_for("FP16", 10)[1]
