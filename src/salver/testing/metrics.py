"""Conformance suite of the `metrics` family."""

from __future__ import annotations

import io

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition
from salver.evaluation.metrics.base import Metric, Stats, join


class MetricConformance:
    """Subclass it as ``Test...``, and give a metric and a batch of real-looking outputs and labels for it."""

    def make_metric(self) -> Metric:
        """The metric."""
        raise NotImplementedError

    def make_batch(self, rows: int, seed: int) -> tuple[dict[str, Array], Array | None]:
        """Outputs and labels of some rows; another seed gives other outputs, the labels depend on the rows only."""
        raise NotImplementedError

    def test_batches_joined_are_the_whole(self) -> None:
        metric = self.make_metric()
        outputs, labels = self.make_batch(60, 0)
        parts = [
            metric.reduce({k: v[s] for k, v in outputs.items()}, None if labels is None else labels[s])
            for s in (slice(0, 7), slice(7, 32), slice(32, 60))
        ]
        whole = metric.reduce(outputs, labels)
        assert metric.value(join(parts)) == pytest.approx(metric.value(whole), abs=1e-12)

    def test_statistics_are_by_example_and_need_no_pickle(self) -> None:
        metric = self.make_metric()
        stats = metric.reduce(*self.make_batch(40, 0))
        assert all(len(array) == 40 for array in stats.values())
        file = io.BytesIO()
        np.savez(file, **stats)  # type: ignore[arg-type]  # its stub takes the keywords for its own flags
        file.seek(0)
        with np.load(file, allow_pickle=False) as content:
            again: Stats = {name: content[name] for name in content.files}
        assert metric.value(again) == metric.value(stats)

    def test_a_model_is_no_worse_than_itself(self) -> None:
        metric = self.make_metric()
        stats = metric.reduce(*self.make_batch(40, 0))
        paired = metric.compare(stats, stats)
        assert paired.baseline == paired.candidate
        for pair in (paired.right, paired.influence):
            if pair is not None:
                assert np.array_equal(*pair)

    def test_influence_sums_to_zero_or_right_answers_average_to_the_value(self) -> None:
        metric = self.make_metric()
        paired = metric.compare(metric.reduce(*self.make_batch(60, 0)), metric.reduce(*self.make_batch(60, 1)))
        assert (paired.right is None) != (paired.influence is None)
        if paired.right is not None:
            assert paired.right[1].mean() == pytest.approx(paired.candidate)
        if paired.influence is not None:
            assert paired.influence[1].sum() == pytest.approx(0.0, abs=1e-8)
            assert paired.worst > 0.0

    def test_missing_labels_are_named(self) -> None:
        metric = self.make_metric()
        outputs, _ = self.make_batch(5, 0)
        if metric.needs_labels:
            with pytest.raises(FailedPrecondition, match="needs labels"):
                metric.reduce(outputs, None)
        else:
            metric.reduce(outputs, None)
