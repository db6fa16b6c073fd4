"""Conformance of the `processing` family: subclass `ProcessingConformance` once per step."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.errors import UnknownName
from salver.core.tensors import TensorSpec
from salver.processing import PROCESSING, ProcessingStep


class ProcessingConformance:
    """What every step keeps.

    A member's test sets the attributes and has a fixture ``rows``: what the step reads, three rows or more.

    Args:
        step: the step as declared: its name, and its settings.
        files: what these name.
        given: what there is before the step; nothing for one that reads what clients send.
        wanted: the graph's inputs, for a step before it.
        pads: whether it fills rows up to the longest, so that a row alone is the beginning of that row in a batch.
    """

    step: dict[str, Any]
    files: dict[str, bytes] = {}
    given: tuple[TensorSpec, ...] = ()
    wanted: tuple[TensorSpec, ...] = ()
    pads: bool = False

    @pytest.fixture
    def rows(self) -> dict[str, Array]:
        """What the step reads."""
        raise NotImplementedError

    def make(self, settings: Mapping[str, Any] | None = None) -> ProcessingStep:
        """The step, not bound yet; ``settings`` are added to those of `step`."""
        member = PROCESSING.get(self.step["step"])
        given = {**self.step, **(settings or {})}
        config = member.Config.from_data({key: value for key, value in given.items() if key != "step"})
        return member(config, self.files.__getitem__)

    def bind(self, step: ProcessingStep) -> tuple[TensorSpec, ...]:
        """Fit the step to its place."""
        known = {spec.name: spec for spec in self.given}
        for name in step.consumes:
            if name not in known:
                known[name] = step.raw(name, "batch")
        return step.bind(known, {spec.name: spec for spec in self.wanted})

    def test_is_registered_under_its_name(self) -> None:
        member = PROCESSING.get(self.step["step"])
        assert issubclass(member, ProcessingStep)
        assert member.name == self.step["step"]

    def test_its_settings_are_plain_data_that_reads_back(self) -> None:
        member = PROCESSING.get(self.step["step"])
        config = member.Config.from_data({key: value for key, value in self.step.items() if key != "step"})
        assert member.Config.from_data(config.to_data()) == config

    def test_a_setting_that_does_not_exist_is_named(self) -> None:
        with pytest.raises(UnknownName, match="no_such_setting"):
            self.make({"no_such_setting": 1})

    def test_it_makes_what_it_says(self, rows: dict[str, Array]) -> None:
        step = self.make()
        specs = self.bind(step)
        made = step.run(rows)
        assert {spec.name for spec in specs} == set(made)
        count = len(next(iter(rows.values())))
        for spec in specs:
            array = made[spec.name]
            assert array.dtype == spec.dtype
            assert len(array.shape) == len(spec.shape)
            assert array.shape[0] == count
            assert all(a == b for a, b in zip(array.shape[1:], spec.shape[1:], strict=True) if isinstance(b, int))

    def test_a_row_is_answered_alike_whatever_stands_beside_it(self, rows: dict[str, Array]) -> None:
        step = self.make()
        self.bind(step)
        together = step.run(rows)
        for row in range(len(next(iter(rows.values())))):
            alone = step.run({name: array[row : row + 1] for name, array in rows.items()})
            for name, array in alone.items():
                beside = together[name][row : row + 1]
                if self.pads:
                    beside = beside[:, : array.shape[1]]
                np.testing.assert_array_equal(array, beside)

    def test_it_leaves_its_input_and_answers_alike_on_all_threads(self, rows: dict[str, Array]) -> None:
        step = self.make()
        self.bind(step)
        kept = {name: array.copy() for name, array in rows.items()}
        expected = step.run(rows)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(step.run, [rows] * 8))
        for answer in answers:
            for name, array in answer.items():
                np.testing.assert_array_equal(array, expected[name])
        for name, array in kept.items():
            np.testing.assert_array_equal(array, rows[name])
