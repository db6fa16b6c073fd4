from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salver.backends import SessionOptions, open_session
from salver.bundle import Bundle, Contents
from salver.bundle.casting import cast
from salver.core.errors import CorruptArtifact, InvalidArgument, NotFound
from salver.core.tensors import TensorSpec


def test_verify_replays_the_golden_requests(bundle: Bundle) -> None:
    report = bundle.verify()
    assert report.ok
    assert report.replay.requests == 4
    assert report.size_bytes == bundle.path.stat().st_size
    assert report.digest == bundle.digest
    assert bundle.verify(replay=False).replay is None


def test_predict_gives_what_the_session_gives(bundle: Bundle, tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((5, 4)).astype(np.float32)
    with open_session(bundle.model, SessionOptions()) as session:
        expected = session.run({"x": x})["scores"]
    np.savez(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "x.npy", x)
    with bundle:
        for inputs in ({"x": x}, x, tmp_path / "x.npz", tmp_path / "x.npy", x.astype(np.float64)):
            np.testing.assert_array_equal(bundle.predict(inputs)["scores"], expected)
    np.testing.assert_array_equal(bundle.predict(x)["scores"], expected)
    bundle.close()


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ({"y": np.zeros((1, 4), np.float32)}, "unknown input 'y'; missing input 'x'"),
        (np.zeros((1, 5), np.float32), r"got shape \[1, 5\], expected \[batch, 4\]"),
        (np.zeros((1, 4), bool), "got datatype BOOL, expected FP32"),
        (np.full((1, 4), 1e300), "cannot hold the FP64 value 1e\\+300"),
        (np.full((1, 4), 2**24 + 1), "cannot hold the INT64 value 16777217"),
    ],
)
def test_inputs_that_do_not_fit(inputs: object, match: str, bundle: Bundle) -> None:
    with pytest.raises(InvalidArgument, match=match):
        bundle.predict(inputs)


def test_input_files_that_cannot_be_read(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        bundle.predict(tmp_path / "missing.npz")
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 nonsense")
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("x.npz", "pickled.npy"):
        with pytest.raises(InvalidArgument, match="plain arrays"):
            bundle.predict(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "datatype", "fits"),
    [
        (np.int64(127), "INT8", True),
        (np.int64(128), "INT8", False),
        (np.int64(-1), "UINT64", False),
        (np.uint64(2**63), "INT64", False),
        (np.uint8(200), "FP16", True),
        (np.int64(2049), "FP16", False),
        (np.int64(-(2**53)), "FP64", True),
        (np.float64("inf"), "FP32", True),
        (np.float32(70000), "FP16", False),
    ],
)
def test_casts_keep_values(value: np.generic, datatype: str, fits: bool) -> None:
    spec = TensorSpec(name="x", datatype=datatype, shape=(1,))
    array = np.array([value])
    if fits:
        assert cast(array, spec).dtype == spec.dtype
        assert float(cast(array, spec)[0]) == float(value)
    else:
        with pytest.raises(InvalidArgument, match="cannot hold"):
            cast(array, spec)


def test_strings_of_any_kind_become_bytes() -> None:
    spec = TensorSpec(name="t", datatype="BYTES", shape=("batch",))
    for given in (np.array(["a", "ü"]), np.array([b"a", "ü".encode()]), np.array(["a", "ü"], dtype=object)):
        assert cast(given, spec).tolist() == ["a", "ü"]
    with pytest.raises(InvalidArgument, match=r"element \[1\] is not UTF-8"):
        cast(np.array([b"a", b"\xff"], dtype=object), spec)
    with pytest.raises(InvalidArgument, match="is int, expected a string"):
        cast(np.array([1], dtype=object), spec)


def test_a_wrapped_model_is_not_tested(contents: Contents) -> None:
    wrapped = Bundle.wrap(contents.model, "raw", "a raw ONNX file was given")
    assert (wrapped.tested, wrapped.sealed, wrapped.reason) == (False, False, "a raw ONNX file was given")
    assert (wrapped.golden, wrapped.record, wrapped.parity, wrapped.card) == ((), None, None, "")
    assert wrapped.digest == contents.model.digest
    assert wrapped.verify().ok
    assert "nothing stored" in wrapped.verify().assurance
    assert wrapped.predict(np.zeros((2, 4), np.float32))["scores"].shape == (2, 3)
    wrapped.close()


def test_a_wrapped_model_that_changed_is_noticed(tmp_path: Path) -> None:
    from salver.testing.bundles import tiny_model

    model = tiny_model(tmp_path)
    wrapped = Bundle.wrap(model, "raw", "raw")
    model.path.write_bytes(model.path.read_bytes() + b"\0")
    with pytest.raises(CorruptArtifact, match="has changed"):
        Bundle.wrap(model, "raw", "raw").verify()
    assert not wrapped.tested


def test_sizes_and_digests(bundle: Bundle) -> None:
    assert next(iter(bundle.sizes())) == "tiny.onnx"
    assert bundle.sizes()["tiny.onnx"] == bundle.model.size_bytes
    assert bundle.digests()["manifest"] == bundle.digest
    assert set(bundle.digests()) == {"manifest", "config", *bundle.sizes()}
