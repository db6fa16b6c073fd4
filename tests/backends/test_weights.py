"""Weights that are laid out once and mapped by all: the store, and ONNX Runtime's use of it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from salver.backends import SessionOptions
from salver.backends._onnxruntime import OnnxRuntimeBackend
from salver.backends.weights import WeightStore
from salver.core.arrays import Array
from salver.core.errors import CorruptArtifact, FailedPrecondition
from salver.core.model import Blob, Model
from salver.server.engine.memory import heap_bytes

MIB = 1 << 20
RANDOM = np.random.default_rng(11)


def weights(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array((RANDOM.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32), name)


def save(path: Path, nodes: list[Any], shape: list[Any], inits: list[Any], out: list[Any], **more: Any) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        inits,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path, **more)
    return path


def dense(path: Path, size: int = 512, layers: int = 4, **more: Any) -> Path:
    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)]
    inits = [weights(f"w{i}", size, size) for i in range(layers)]
    return save(path, nodes, ["batch", size], inits, ["batch", size], **more)


def convolution(path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    ones, zeros = np.ones(256, np.float32), np.zeros(256, np.float32)
    inits = [weights("w", 256, 16, 3, 3), weights("w2", 256, 256, 3, 3)]
    inits += [numpy_helper.from_array(a, n) for a, n in ((ones, "s"), (zeros, "b"), (zeros, "m"), (ones, "v"))]
    return save(path, nodes, ["batch", 16, 8, 8], inits, ["batch", 256])


def quantized(path: Path) -> Path:
    quantize_dynamic(dense(path.with_suffix(".float"), 640), path, weight_type=QuantType.QInt8)
    return path


def branches(path: Path) -> Path:
    """Weights in the graphs of an If, and used by both."""
    out = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    then = helper.make_graph([helper.make_node("MatMul", ["x", "wt"], ["z"])], "t", [], out, [weights("wt", 512, 512)])
    other = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"])], "e", [], out)
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["i"], then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["i", "w"], ["y"]),
    ]
    inits = [weights("w", 512, 512), numpy_helper.from_array(np.array(0, np.float32), "zero")]
    return save(path, nodes, ["batch", 512], inits, ["batch", 512])


def recurrent(path: Path) -> Path:
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "", "h"], hidden_size=256),
        helper.make_node("Squeeze", ["h", "zero"], ["y"]),
    ]
    inits = [weights("w", 1, 1024, 512), weights("r", 1, 1024, 256), numpy_helper.from_array(np.array([0]), "zero")]
    return save(path, nodes, ["batch", 3, 512], inits, [3, 256])


def model_of(path: Path, *blobs: Blob) -> Model:
    first = blobs[0] if blobs else Blob.of(path)
    return Model(format="onnx", signature=OnnxRuntimeBackend().describe(Blob.of(path)), blobs=(first, *blobs[1:]))


def inputs_of(model: Model) -> dict[str, Array]:
    spec = model.signature.inputs[0]
    shape = [dim if isinstance(dim, int) else 3 for dim in spec.shape]
    return {"x": np.random.default_rng(5).normal(size=shape).astype(np.float32)}


def answers(model: Model, options: SessionOptions, *, shared: bool) -> Array:
    with OnnxRuntimeBackend().load(model, options) as session:
        assert session.shares_weights == shared, session.not_shared
        return session.run(inputs_of(model))["y"]


@pytest.fixture
def shared(tmp_path: Path) -> SessionOptions:
    return SessionOptions(shared_weights=str(tmp_path / "weights"))


@pytest.mark.parametrize("make", [dense, convolution, quantized, branches, recurrent])
def test_answers_are_the_same_bit_for_bit(make: Callable[[Path], Path], tmp_path: Path, shared: SessionOptions) -> None:
    model = model_of(make(tmp_path / "m.onnx"))
    private = answers(model, SessionOptions(), shared=False)
    for _ in range(2):  # made, and found
        assert answers(model, shared, shared=True).tobytes() == private.tobytes()


def test_weights_are_mapped_and_not_allocated(tmp_path: Path, shared: SessionOptions) -> None:
    if not heap_bytes():
        pytest.skip("the C library does not tell what is allocated; glibc 2.33 does")
    model = model_of(dense(tmp_path / "m.onnx"))
    OnnxRuntimeBackend().load(model, shared).close()
    before = heap_bytes()
    with OnnxRuntimeBackend().load(model, shared) as session:
        session.run(inputs_of(model))
        assert heap_bytes() - before < 2 * MIB
        assert "weights.bin" in Path("/proc/self/maps").read_text()
    before = heap_bytes()
    with OnnxRuntimeBackend().load(model, SessionOptions()) as session:
        session.run(inputs_of(model))
        assert heap_bytes() - before > 4 * MIB


def test_external_data_and_members_of_a_bundle(tmp_path: Path, shared: SessionOptions) -> None:
    path = dense(tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    data = Blob.of(tmp_path / "m.data")
    laid_out, with_data = model_of(path), model_of(path, Blob.of(path), data)
    packed = tmp_path / "bundle.salver"
    packed.write_bytes(bytes(512) + path.read_bytes() + (tmp_path / "m.data").read_bytes())
    blobs = [
        msgspec.structs.replace(blob, path=packed, offset=offset)
        for blob, offset in ((Blob.of(path), 512), (data, 512 + path.stat().st_size))
    ]
    expected = answers(laid_out, SessionOptions(), shared=False).tobytes()
    for model in (laid_out, with_data, model_of(path, *blobs)):
        assert answers(model, shared, shared=True).tobytes() == expected


def test_other_external_data_gives_other_answers(tmp_path: Path, shared: SessionOptions) -> None:
    model = model_of(dense(tmp_path / "m.onnx", save_as_external_data=True, location="m.data"))
    first = answers(model, shared, shared=True)
    (tmp_path / "m.data").write_bytes(bytes((tmp_path / "m.data").stat().st_size))
    os.utime(tmp_path / "m.data", (1, 1))
    assert first.any()
    assert not answers(model, shared, shared=True).any()


def test_what_cannot_be_shared_says_why(tmp_path: Path, shared: SessionOptions) -> None:
    small = model_of(dense(tmp_path / "small.onnx", 8))
    with OnnxRuntimeBackend().load(small, shared) as session:
        assert "not worth it" in session.not_shared
    model = model_of(dense(tmp_path / "m.onnx", 512, 2))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with OnnxRuntimeBackend().load(model, SessionOptions(shared_weights=str(tmp_path / "open"))) as session:
        assert "writable by" in session.not_shared
    (tmp_path / "file").write_text("")
    with OnnxRuntimeBackend().load(model, SessionOptions(shared_weights=str(tmp_path / "file" / "x"))) as session:
        assert "XDG_CACHE_HOME" in session.not_shared
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes((tmp_path / "m.onnx").read_bytes()[: 3 * MIB // 2])
    broken = msgspec.structs.replace(model, blobs=(Blob.of(damaged),))
    with pytest.raises(CorruptArtifact):
        OnnxRuntimeBackend().load(broken, shared)


def test_a_damaged_file_is_made_again(tmp_path: Path, shared: SessionOptions) -> None:
    model = model_of(dense(tmp_path / "m.onnx", 512, 2))
    expected = answers(model, shared, shared=True).tobytes()
    (made,) = [path for path in (tmp_path / "weights").iterdir() if path.is_dir()]
    for damage in (
        lambda: (made / "weights.bin").write_bytes(bytes((made / "weights.bin").stat().st_size)),
        lambda: (made / "sums.json").write_text("{"),
        (made / "model.onnx").unlink,
        lambda: shutil.rmtree(made),
    ):
        damage()
        assert answers(model, shared, shared=True).tobytes() == expected


def test_it_is_made_once_whoever_asks(tmp_path: Path) -> None:
    store, made, found = WeightStore(tmp_path / "w"), [], []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "a").write_bytes(b"content")

    threads = [threading.Thread(target=lambda: found.append(store.get("key", make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert set(found) == {tmp_path / "w" / "key"}
    assert (tmp_path / "w" / "key" / "a").read_bytes() == b"content"


def test_nothing_is_left_of_what_failed_or_is_used_no_more(tmp_path: Path) -> None:
    store = WeightStore(tmp_path / "w")

    def fail(folder: Path) -> None:
        (folder / "a").write_bytes(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        store.get("key", fail)
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["lock"]
    old = store.get("old", Path.touch)
    os.utime(old, (1, 1))
    (tmp_path / "w" / ".killed").mkdir()
    store.get("new", Path.touch)
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["lock", "new"]


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    assert WeightStore(tmp_path / "mine")
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o700
    (tmp_path / "mine").chmod(0o770)
    with pytest.raises(FailedPrecondition, match="writable by, others"):
        WeightStore(tmp_path / "mine")
