"""Columns onto inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.errors import InvalidArgument
from salver.core.tensors import NUMPY_DTYPES, Signature, TensorSpec
from salver.datasets import bind, open_dataset
from salver.datasets.casting import cast_values


def spec(name: str, datatype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs=inputs, outputs=(spec("out", "FP32", "batch", 2),))


def bound(columns: dict[str, Any], *inputs: TensorSpec) -> dict[str, Any]:
    dataset = bind(open_dataset(columns), signature(*inputs))
    parts = list(dataset.batches(2))
    sig = signature(*inputs)
    for part in parts:
        if sig.batch_dim:
            assert sig.check(part.inputs) == part.rows
    return {s.name: np.concatenate([p.inputs[s.name] for p in parts]) for s in inputs}


def test_by_name_and_other_columns_are_left_out() -> None:
    got = bound({"text": np.array(["a", "b"]), "domain": np.array(["x", "y"])}, spec("text", "BYTES", "batch"))
    assert got["text"].tolist() == ["a", "b"]


def test_the_only_column_goes_to_the_only_input() -> None:
    got = bound({"image": np.ones((3, 2, 2), np.uint8), "y": np.zeros(3)}, spec("input_1", "FP32", "batch", 2, 2))
    assert got["input_1"].dtype == np.float32


def test_scalar_columns_make_a_matrix_in_their_order() -> None:
    columns = {"b": np.array([1, 2, 3]), "a": np.array([0.5, 1.5, 2.5]), "label": np.zeros(3)}
    got = bound(columns, spec("x", "FP32", "batch", 2))
    np.testing.assert_array_equal(got["x"], np.array([[1, 0.5], [2, 1.5], [3, 2.5]], np.float32))
    assert bound(columns, spec("x", "FP32", "batch", "features"))["x"].shape == (3, 2)


def test_a_column_may_stand_for_a_matrix_of_one_column_and_the_reverse() -> None:
    got = bound({"a": np.arange(3), "b": np.zeros((3, 1))}, spec("a", "FP32", "batch", 1), spec("b", "FP64", "batch"))
    assert (got["a"].shape, got["b"].shape) == ((3, 1), (3,))


def test_a_row_is_a_whole_input_where_the_inputs_share_no_first_dimension() -> None:
    columns = {"x": np.zeros((4, 1, 6)), "state": np.zeros((4, 2, 1, 3)), "rate": np.arange(4)}
    inputs = [spec("x", "FP32", "n", "length"), spec("state", "FP32", 2, "n", 3), spec("rate", "INT64")]
    got = bound(columns, *inputs)
    assert [got[name].shape for name in columns] == [(4, 1, 6), (4, 2, 1, 3), (4,)]
    got = bound({**columns, "x": np.zeros((4, 6))}, *inputs)
    assert got["x"].shape == (4, 6)
    assert bound({"only": np.arange(4)}, spec("rate", "FP32"))["rate"].shape == (4,)


def test_binding_again_starts_from_the_columns() -> None:
    first = bind(open_dataset({"x": np.array([1.5, 2.5])}), signature(spec("x", "FP32", "batch", 1)))
    again = bind(first, signature(spec("z", "FP64", "batch")))
    assert next(iter(again.batches(2))).inputs["z"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("columns", "inputs", "message"),
    [
        (
            {"x": np.zeros((4, 28, 28, 3))},
            [spec("x", "FP32", "batch", 3, 28, 28)],
            r"got shape \[batch, 28, 28, 3\], expected \[batch, 3, 28, 28\].*never guessed",
        ),
        ({"x": np.array(["a"])}, [spec("x", "FP32", "batch")], "got datatype BYTES, expected FP32"),
        ({"a": np.zeros(4)}, [spec("x", "FP32", "batch"), spec("z", "FP32", "batch")], "no column for input 'x', 'z'"),
        ({"a": np.zeros(4), "b": np.zeros(4)}, [spec("x", "FP32", "batch", 3)], "no column for input 'x'.*'a' FP64"),
        ({"x": np.zeros((4, 2))}, [spec("x", "FP32")], r"got shape \[batch, 2\], expected \[\]"),
        ({"x": np.zeros((4, 1, 3))}, [spec("x", "FP32", "batch", 3)], r"got shape \[batch, 1, 3\]"),
        ({"x": np.zeros((5, 2))}, [spec("x", "FP32", 4, 2)], "fixed at 4 .* has 5 examples"),
        (
            {"a": np.zeros((4, 3)), "b": np.zeros((4, 5))},
            [spec("a", "FP32", "batch", "seq"), spec("b", "FP32", "batch", "seq")],
            "'seq' is 3 in input 'a' and 5 in input 'b'",
        ),
    ],
)
def test_what_does_not_fit_is_said(columns: dict[str, Any], inputs: list[TensorSpec], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        bind(open_dataset(columns), signature(*inputs))


@pytest.mark.parametrize(
    ("values", "datatype", "row"),
    [
        (np.array([0, 1, 2**31]), "INT32", 3),
        (np.array([0, 2**24 + 1]), "FP32", 2),
        (np.array([0, 1.5]), "INT64", 2),
        (np.array([1, 2]), "BOOL", 2),
        (np.array([-1, 2]), "UINT64", 1),
        (np.array([0, 2**64 - 1], np.uint64), "INT64", 2),
        (np.array([0.0, 1e300]), "FP32", 2),
        (np.array([1e6]), "FP16", 1),
        (np.array([np.nan]), "INT32", 1),
        (np.array([257]), "BF16", 1),
    ],
)
def test_a_value_that_would_change_names_its_row(values: Any, datatype: str, row: int) -> None:
    dataset = bind(open_dataset({"x": values}), signature(spec("x", datatype, "batch")))
    with pytest.raises(InvalidArgument, match=f"column 'x', row {row}: value .* cannot be kept in {datatype}"):
        list(dataset.batches(2))


NUMBERS = [name for name in NUMPY_DTYPES if name not in ("BYTES", "BF16")]


@given(
    st.sampled_from(NUMBERS),
    st.sampled_from(NUMBERS),
    st.one_of(st.integers(-(2**63), 2**64 - 1), st.sampled_from([0, 1, -1, 2**53, 2**53 + 1, 2**24 + 1, 2048, 2049])),
)
def test_a_cast_keeps_integers_or_refuses(given_type: str, expected: str, value: int) -> None:
    source = NUMPY_DTYPES[given_type]
    with np.errstate(all="ignore"):
        try:
            array = np.array([value]).astype(source)
        except OverflowError:
            return
    if source.kind == "f" and not np.isfinite(array[0]):
        return
    exact = int(array[0])
    try:
        out = cast_values(array, given_type, expected, "here", 0)
    except InvalidArgument:
        return
    if not (source.kind == "f" and out.dtype.kind == "f"):
        assert int(out[0]) == exact


def test_bfloat16_is_rounded_to_even_and_nan_stays_nan() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, np.nan, -np.inf], np.float32)
    out = cast_values(values, "FP32", "BF16", "here", 0)
    assert out.tolist()[:3] == [0x3F80, 0x3F80, 0x3F82]
    back = (out.astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(back[3])
    assert back[4] == -np.inf
