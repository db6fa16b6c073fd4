"""For authors of backends: the suite every backend must pass."""

from __future__ import annotations

import abc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import pytest

from salver.backends import Backend, Session, SessionOptions
from salver.core.arrays import Array
from salver.core.errors import CorruptArtifact, FailedPrecondition, InvalidArgument, NotFound, UnknownName
from salver.core.model import Blob, Model


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A model, inputs for it and the answers that are right.

    Args:
        model: with a symbolic batch dimension.
        inputs, expected: name -> array, four rows.
        atol: absolute tolerance for floats; 0 means bit for bit.
    """

    model: Model
    inputs: dict[str, Array]
    expected: dict[str, Array]
    atol: float = 0.0


class BackendConformance(abc.ABC):
    """Subclass it, name the backend and give cases: at least one numeric model and, where the format has them, one
    model for each datatype."""

    backend: ClassVar[type[Backend]]

    @pytest.fixture
    @abc.abstractmethod
    def cases(self, tmp_path: Path) -> list[Case]:
        """Models in a format this backend runs."""

    @pytest.fixture
    def sessions(self, cases: list[Case]) -> list[tuple[Case, Session]]:
        return [(case, self.backend().load(case.model, SessionOptions())) for case in cases]

    def test_answers_are_right_at_every_batch_size(self, sessions: list[tuple[Case, Session]]) -> None:
        for case, session in sessions:
            for rows in (1, 3, 4):
                outputs = session.run({name: array[:rows] for name, array in case.inputs.items()})
                assert list(outputs) == list(session.signature.output_names)
                for name, expected in case.expected.items():
                    assert outputs[name].dtype == session.signature.output(name).dtype
                    same(outputs[name], expected[:rows], case.atol)

    def test_only_the_outputs_wanted_come_in_the_order_wanted(self, sessions: list[tuple[Case, Session]]) -> None:
        for case, session in sessions:
            wanted = list(reversed(session.signature.output_names))
            assert list(session.run(case.inputs, wanted)) == wanted
            assert list(session.run(case.inputs, wanted[:1])) == wanted[:1]

    def test_the_file_alone_tells_the_signature(self, cases: list[Case]) -> None:
        for case in cases:
            found = self.backend().describe(case.model.blobs[0])
            given = case.model.signature
            assert [(s.name, s.datatype) for s in found.inputs] == [(s.name, s.datatype) for s in given.inputs]
            assert [(s.name, s.datatype) for s in found.outputs] == [(s.name, s.datatype) for s in given.outputs]
            assert found.batch_dim is not None

    def test_threads_do_not_disturb_each_other(self, sessions: list[tuple[Case, Session]]) -> None:
        def run_one_row(job: tuple[Case, Session, int]) -> None:
            case, session, row = job
            outputs = session.run({name: array[row : row + 1] for name, array in case.inputs.items()})
            for name, expected in case.expected.items():
                same(outputs[name], expected[row : row + 1], case.atol)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run_one_row, [(*one, row % 4) for row in range(64) for one in sessions]))

    def test_inputs_are_left_alone_and_outputs_are_ours(self, sessions: list[tuple[Case, Session]]) -> None:
        for case, session in sessions:
            inputs = {name: array.copy() for name, array in case.inputs.items()}
            first = session.run(inputs)
            kept = {name: array.copy() for name, array in first.items()}
            session.run(inputs)
            for name, array in inputs.items():
                same(array, case.inputs[name])
            for name, array in first.items():
                same(array, kept[name])

    def test_close_may_be_called_twice_and_ends_the_session(self, sessions: list[tuple[Case, Session]]) -> None:
        for case, session in sessions:
            session.close()
            session.close()
            with pytest.raises(FailedPrecondition):
                session.run(case.inputs)

    def test_wrong_inputs_are_a_typed_error_and_the_session_lives(self, sessions: list[tuple[Case, Session]]) -> None:
        for case, session in sessions:
            name, array = next(iter(case.inputs.items()))
            with pytest.raises(InvalidArgument):
                session.run({**case.inputs, name: array[None]})
            with pytest.raises(InvalidArgument):
                session.run({})
            session.run(case.inputs)

    def test_a_damaged_file_is_refused(self, cases: list[Case], tmp_path: Path) -> None:
        whole = cases[0].model.blobs[0].read()
        for name, content in (("half", whole[: len(whole) // 2]), ("noise", b"\x93no model" * 50), ("empty", b"")):
            path = tmp_path / name
            path.write_bytes(content)
            model = msgspec.structs.replace(cases[0].model, blobs=(Blob.of(path),))
            with pytest.raises(CorruptArtifact):
                self.backend().load(model, SessionOptions())

    def test_a_missing_file_is_not_found(self, cases: list[Case], tmp_path: Path) -> None:
        blob = msgspec.structs.replace(cases[0].model.blobs[0], path=tmp_path / "gone")
        with pytest.raises(NotFound):
            self.backend().load(msgspec.structs.replace(cases[0].model, blobs=(blob,)), SessionOptions())

    def test_a_model_inside_another_file_runs(self, cases: list[Case], tmp_path: Path) -> None:
        case = cases[0]
        blob = case.model.blobs[0]
        path = tmp_path / "outer"
        path.write_bytes(b"before" + blob.read() + b"after")
        inner = msgspec.structs.replace(blob, path=path, offset=len(b"before"))
        with self.backend().load(msgspec.structs.replace(case.model, blobs=(inner,)), SessionOptions()) as session:
            for name, expected in case.expected.items():
                same(session.run(case.inputs)[name], expected, case.atol)

    def test_a_provider_that_is_not_there_is_named_with_those_that_are(self, cases: list[Case]) -> None:
        with pytest.raises(UnknownName, match=self.backend().providers()[0]):
            self.backend().load(cases[0].model, SessionOptions(provider="abacus"))

    def test_it_says_what_is_behind_it(self) -> None:
        assert self.backend().versions()
        assert self.backend().formats


def same(got: Array, expected: Array, atol: float = 0.0) -> None:
    """Assert equality, NaN equal to NaN."""
    assert got.shape == expected.shape
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol)
    else:
        assert got.tolist() == expected.tolist()
