from __future__ import annotations

import numpy as np

from salver.evaluation import check_invariance

ROWS = {"x": np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)}


def test_a_float_network_is_invariant(open_network):
    found = check_invariance(open_network(), ROWS)
    assert found.invariant
    assert found.batch_sizes == (2, 8, 32)
    assert found.max_rel < 1e-6
    assert found.label_flips == 0
    assert found.reason == ""


def test_dynamic_quantization_is_not(open_network):
    session = open_network(int8=True)
    small, beside = np.array([[0.1, 0.2]], np.float32), np.array([[0.1, 0.2], [50, -80]], np.float32)
    alone, together = session.run({"x": small})["y"][0], session.run({"x": beside})["y"][0]
    assert np.abs(alone - together).max() > 1e-3  # the trap itself
    found = check_invariance(session, ROWS)
    assert not found.invariant
    assert found.max_rel > 1e-3
    assert "batch-mates change its answers" in found.reason
    assert "not merged" in found.reason


def test_one_real_row_is_enough_to_find_it(open_network):
    assert not check_invariance(open_network(int8=True), {"x": ROWS["x"][:1]}).invariant


def test_a_fixed_batch_is_reported_not_tried(open_network):
    for batch, words in ((1, "takes one example at a time"), (8, "has its batch fixed at 8")):
        found = check_invariance(open_network(batch), ROWS)
        assert not found.invariant
        assert found.batch_sizes == ()
        assert words in found.reason
