from __future__ import annotations

import numpy as np
import pytest

from salver.core.errors import FailedPrecondition, InvalidArgument
from salver.core.tensors import TensorSpec
from salver.evaluation import RowRunner, Scores, count_new_nonfinite, fixed_batch, make_metric, score
from salver.evaluation.runner import widen
from tests.evaluation.conftest import Rows


def run_all(session, rows, size=16):
    runner = RowRunner(session)
    parts = [runner.run(b.inputs, b.rows)["y"] for b in rows.batches(runner.batch or size)]
    return np.concatenate(parts)


@pytest.mark.parametrize(
    ("batch", "fixed", "note"),
    [("batch", None, ""), (8, 8, "filled up"), (1, 1, "one by one"), (None, 1, "one by one")],
)
def test_a_model_may_be_particular_about_batches(open_network, rows, batch, fixed, note):
    expected = run_all(open_network(), rows)
    session = open_network(batch)
    assert fixed_batch(session.signature) == fixed
    assert note in RowRunner(session).note
    assert run_all(session, rows) == pytest.approx(expected, abs=1e-5)


def test_scores_do_not_depend_on_the_batch_size_and_survive_a_file(open_network, rows, tmp_path):
    session = open_network()
    metrics = [make_metric(name, session.signature) for name in ("accuracy", "top-2", "agreement")]
    small, large = (score(session, rows, metrics, size) for size in (5, 64))
    small.save(tmp_path / "scores.npz")
    again = Scores.read(tmp_path / "scores.npz")
    for metric in metrics:
        values = {metric.value(s.stats[metric.name]) for s in (small, large, again)}
        assert len(values) == 1
    assert again.rows == 53


def test_new_nan_and_infinity_are_counted_and_old_ones_are_not(open_network, rows, tmp_path):
    plain, logarithm = open_network(), open_network(op="Log")
    agreement = [make_metric("agreement", plain.signature)]
    baseline, candidate = score(plain, rows, agreement), score(logarithm, rows, agreement)
    expected = int((run_all(plain, rows) <= 0).sum())
    assert count_new_nonfinite(baseline, candidate) == expected > 0
    candidate.save(tmp_path / "scores.npz")
    assert count_new_nonfinite(Scores.read(tmp_path / "scores.npz"), candidate) == 0
    assert count_new_nonfinite(candidate, baseline) == 0


def test_data_that_does_not_fit_is_named(open_network, rows):
    session = open_network()
    metric = [make_metric("accuracy", session.signature)]
    with pytest.raises(FailedPrecondition, match="needs labels"):
        score(session, Rows({"x": np.zeros((3, 2), np.float32)}), metric)
    with pytest.raises(InvalidArgument, match=r"input 'x': got shape \[3, 5\]"):
        score(session, Rows({"x": np.zeros((3, 5), np.float32)}, np.zeros(3, int)), metric)
    with pytest.raises(InvalidArgument, match="no column for input 'x'; it has z"):
        score(open_network(1), Rows({"z": np.zeros((3, 2), np.float32)}, np.zeros(3, int)), metric)


def test_bf16_patterns_become_numbers():
    spec = TensorSpec(name="y", datatype="BF16", shape=("batch",))
    assert widen(np.array([0x3F80, 0xC000, 0x7F80], np.uint16), spec).tolist() == [1.0, -2.0, float("inf")]
