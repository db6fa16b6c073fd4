"""The crossing alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import salver
from salver.builder.events import BuildEvent
from salver.core.errors import AlreadyExists, InvalidArgument, NotFound, ParityFailed, UnknownName

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def test_a_model_is_converted_and_both_crossings_are_proved(tmp_path: Path) -> None:
    told: list[BuildEvent] = []
    made = salver.convert(
        DIGITS / "digits.onnx", "ort", tmp_path / "digits.ort", data=DIGITS / "val.npz", on_event=told.append
    )
    assert [path.name for path in tmp_path.iterdir()] == ["digits.ort"]
    assert made.imported.inputs == "data"
    assert made.exported.parity is not None
    assert made.exported.parity.outputs[0].label_agreement == 1.0
    assert [event.stage for event in told] == ["import", "export"]
    session = onnxruntime.InferenceSession(str(tmp_path / "digits.ort"), providers=["CPUExecutionProvider"])
    (answers, *_) = session.run(None, {session.get_inputs()[0].name: np.zeros((3, 1, 28, 28), np.float32)})
    assert len(answers) == 3


def test_without_a_name_the_result_is_named_after_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert salver.convert(DIGITS / "digits.onnx", "ONNX").path == Path("digits.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["digits.onnx"]


def test_an_unknown_format_is_answered_with_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"unknown format 'onx'.*Did you mean 'onnx'.*Valid: .*openvino"):
        salver.convert(DIGITS / "digits.onnx", "onx", tmp_path / "x")


def test_a_precision_the_format_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="'ort' is not written with precision 'int8'; valid: source"):
        salver.convert(DIGITS / "digits.onnx", "ort", tmp_path / "x.ort", precision="int8")


def test_nothing_is_written_where_the_result_differs(tmp_path: Path) -> None:
    with pytest.raises(ParityFailed):
        salver.convert(DIGITS / "digits.onnx", "ort", tmp_path / "x.ort", tolerance=1e-12)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such folder"):
        salver.convert(DIGITS / "digits.onnx", "onnx", tmp_path / "no" / "x.onnx")
    with pytest.raises(AlreadyExists, match="is a folder"):
        salver.convert(DIGITS / "digits.onnx", "onnx", tmp_path)


def test_a_source_that_says_its_inputs_takes_no_others(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="says its own inputs"):
        salver.convert(DIGITS / "digits.onnx", "onnx", tmp_path / "x.onnx", inputs="x:float32[batch,1,28,28]")
