"""LiteRT passes the suite with floats, 8-bit weights and integers throughout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salver.backends import SessionOptions
from salver.core.errors import Unimplemented
from salver.core.model import Blob, Model
from salver.core.tensors import Signature
from salver.testing.backends import BackendConformance, Case
from tests import tensorflow_nets as nets
from tests.tensorflow_nets import tf

litert = pytest.importorskip("ai_edge_litert.interpreter", reason="pip install 'salver[litert]'")

from salver.backends._litert import LitertBackend, quantization_of  # noqa: E402  # after the check for LiteRT


def digits_case(folder: Path, precision: str) -> Case:
    """Expected is what LiteRT gives for one row at a time, through no code of ours."""
    path = folder / f"{precision}.tflite"
    path.write_bytes(nets.tflite(precision))
    x = nets.digits()[0][:4]
    if precision == "int8":
        x = np.round(x * 255 - 128).astype(np.int8)
    interpreter = litert.Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    rows = []
    for i in range(4):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x[i : i + 1])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    blob = Blob.of(path)
    model = Model(format="tflite", signature=LitertBackend().describe(blob), blobs=(blob,))
    return Case(model=model, inputs={"image": x}, expected={"digit": np.concatenate(rows)}, atol=1e-6)


class TestLitert(BackendConformance):
    backend = LitertBackend

    @pytest.fixture
    def cases(self, tmp_path: Path) -> list[Case]:
        return [digits_case(tmp_path, precision) for precision in ("source", "float16", "dynamic", "int8")]


def test_integer_models_take_and_give_integers_and_tell_their_scales(tmp_path: Path) -> None:
    case = digits_case(tmp_path, "int8")
    assert [s.datatype for s in (*case.model.signature.inputs, *case.model.signature.outputs)] == ["INT8", "INT8"]
    scales = quantization_of(case.model.blobs[0])
    assert scales["image"] == pytest.approx((1 / 255, -128), abs=1e-4)


def test_an_operator_that_litert_lacks_is_named(tmp_path: Path) -> None:
    module = tf.Module()
    spec = tf.TensorSpec((None, 4), tf.float32, name="x")
    module.call = tf.function(lambda x: {"y": tf.math.betainc(x, x, x)}, [spec])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.call.get_concrete_function()], module)
    converter.allow_custom_ops = True
    path = tmp_path / "custom.tflite"
    path.write_bytes(converter.convert())
    model = Model(format="tflite", signature=Signature(inputs=(), outputs=()), blobs=(Blob.of(path),))
    with pytest.raises(Unimplemented, match="Betainc"):
        LitertBackend().load(model, SessionOptions())
