"""Conformance of the `passes` family: subclass `PassConformance` once per member."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from salver.backends import find_backend, open_session
from salver.builder.passes import PASSES, Pass, PassContext, make_pass
from salver.core.dataset import Batch, Dataset
from salver.core.errors import InvalidArgument, PassNotApplicable
from salver.core.model import Blob, Model, digest_bytes
from salver.core.tensors import Signature, TensorSpec, to_datatype


class ArrayDataset(Dataset):
    """Examples held in memory: input name -> array of shape ``[rows, ...]``."""

    def __init__(self, inputs: dict[str, np.ndarray[Any, Any]]) -> None:
        self._inputs = inputs

    @property
    def columns(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name=k, datatype=to_datatype(v.dtype), shape=("batch", *v.shape[1:]))
            for k, v in self._inputs.items()
        )

    @property
    def label_spec(self) -> TensorSpec | None:
        return None

    @property
    def digest(self) -> str:
        return digest_bytes(b"".join(v.tobytes() for v in self._inputs.values()))

    @property
    def source(self) -> str:
        return "arrays in memory"

    def __len__(self) -> int:
        return len(next(iter(self._inputs.values())))

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, len(self), size):
            part = {k: v[start : start + size] for k, v in self._inputs.items()}
            yield Batch(inputs=part, labels=None, rows=len(next(iter(part.values()))))


class PassConformance:
    """What every pass keeps.

    A member's test sets `pass_name` and has two fixtures: ``model``, to which the pass applies and which has a batch
    dimension, and ``data``, examples for it (3 at least).

    Args:
        pass_name: the member's name in the family.
        configs: configs as plain data, each of which applies to `model`.
        max_change: largest change of an output, relative to ``1 + |output|``; None where a pass may change more.
    """

    pass_name: str
    configs: tuple[dict[str, Any], ...] = ({},)
    max_change: float | None = 0.1

    def run_pass(self, model: Model, data: Dataset | None, workdir: Path, config: dict[str, Any]) -> Model:
        """Apply the pass in a folder of its own."""
        workdir.mkdir()
        return make_pass(self.pass_name, config).apply(model, PassContext(workdir=workdir, calibration=data))

    def test_is_registered_under_its_name(self) -> None:
        member = PASSES.get(self.pass_name)
        assert issubclass(member, Pass)
        assert member.name == self.pass_name

    def test_config_round_trips(self) -> None:
        for config in self.configs:
            made = make_pass(self.pass_name, config).config
            assert type(made).from_data(made.to_data()) == made
            assert type(made).from_data(made.to_data()).digest == made.digest

    def test_unknown_field_is_refused(self) -> None:
        with pytest.raises(InvalidArgument, match="no_such_field"):
            make_pass(self.pass_name, {"no_such_field": 1})

    def test_result_differs_and_keeps_the_signature(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        for number, config in enumerate(self.configs):
            result = self.run_pass(model, data, tmp_path / str(number), config)
            assert result.digest != model.digest
            assert result.signature == model.signature
            seen = find_backend(result.format).describe(result.blobs[0])
            assert _faces(seen) == _faces(model.signature)

    def test_adds_one_step_to_the_lineage(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        result = self.run_pass(model, data, tmp_path / "out", self.configs[0])
        assert result.lineage[:-1] == model.lineage
        step = result.lineage[-1]
        assert (step.action, step.name) == ("pass", self.pass_name)
        assert step.input_digest == model.blobs[0].digest
        assert step.output_digest == result.blobs[0].digest
        assert make_pass(self.pass_name, step.config).config == make_pass(self.pass_name, self.configs[0]).config
        assert step.tools

    def test_is_deterministic(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        for number, config in enumerate(self.configs):
            first = self.run_pass(model, data, tmp_path / f"{number}-first", config)
            second = self.run_pass(model, data, tmp_path / f"{number}-second", config)
            assert first.digest == second.digest

    def test_leaves_the_source_and_no_stray_files(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        before = model.path.read_bytes()
        result = self.run_pass(model, data, tmp_path / "out", self.configs[0])
        assert model.path.read_bytes() == before
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(blob.path.name for blob in result.blobs)

    def test_is_silent(self, model: Model, data: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.run_pass(model, data, tmp_path / "out", self.configs[0])
        assert capfd.readouterr() == ("", "")

    def test_result_runs_at_batch_1_and_3(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        for number, config in enumerate(self.configs):
            result = self.run_pass(model, data, tmp_path / str(number), config)
            with open_session(model) as before, open_session(result) as after:
                for rows in (1, 3):
                    inputs = next(data.batches(rows)).inputs
                    for name, expected in before.run(inputs).items():
                        got = after.run(inputs)[name]
                        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
                        if self.max_change is not None:
                            assert np.max(np.abs(got - expected) / (1 + np.abs(expected))) <= self.max_change

    def test_refuses_what_it_has_nothing_to_do_for(self, tmp_path: Path) -> None:
        model = save_model(integer_model(), tmp_path / "integer.onnx")
        data = ArrayDataset({"x": np.arange(8, dtype=np.int64).reshape(4, 2)})
        with pytest.raises(PassNotApplicable) as caught:
            self.run_pass(model, data, tmp_path / "out", self.configs[0])
        assert caught.value.message

    def test_refuses_another_format(self, model: Model, data: Dataset, tmp_path: Path) -> None:
        other = Model(format="tflite", signature=model.signature, blobs=model.blobs)
        with pytest.raises(PassNotApplicable, match="tflite"):
            self.run_pass(other, data, tmp_path / "out", self.configs[0])


def save_model(proto: ModelProto, path: Path) -> Model:
    """Write a graph and describe it."""
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    blob = Blob.of(path)
    return Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob,))


def integer_model() -> ModelProto:
    """A graph without floats that no pass can improve: ``y = x + x``."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "integers",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["batch", 2])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _faces(signature: Signature) -> list[tuple[str, str, list[int]]]:
    return [(spec.name, spec.datatype, spec.wire_shape) for spec in (*signature.inputs, *signature.outputs)]
