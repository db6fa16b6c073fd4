from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.errors import InvalidArgument, UnknownName
from salver.core.tensors import ANY_RANK, NUMPY_DTYPES, Signature, TensorSpec, to_datatype


def spec(name: str, *shape: int | str, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def zeros(*shape: int, dtype: str = "f4") -> np.ndarray:
    return np.zeros(shape, dtype)


IMAGE = Signature(inputs=(spec("x", "batch", 28, 28),), outputs=(spec("y", "batch", 10),))


@pytest.mark.parametrize("datatype", [d for d in NUMPY_DTYPES if d != "BF16"])
def test_every_datatype_is_named_back(datatype: str) -> None:
    assert to_datatype(NUMPY_DTYPES[datatype]) == datatype
    assert spec("x", datatype=datatype).dtype == NUMPY_DTYPES[datatype]


@pytest.mark.parametrize(("dtype", "datatype"), [(">f4", "FP32"), ("U7", "BYTES"), ("S3", "BYTES"), ("u2", "UINT16")])
def test_other_numpy_dtypes(dtype: str, datatype: str) -> None:
    assert to_datatype(np.dtype(dtype)) == datatype


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "f4,f4"])
def test_dtypes_that_are_no_tensor(dtype: str) -> None:
    with pytest.raises(InvalidArgument, match="has no tensor datatype"):
        to_datatype(np.dtype(dtype))


def test_an_unknown_datatype_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"unknown datatype 'FP31'. Did you mean"):
        spec("x", datatype="FP31")


def test_what_fits_gives_its_rows() -> None:
    assert IMAGE.check({"x": zeros(3, 28, 28)}) == 3
    assert IMAGE.batch_dim == "batch"
    assert IMAGE.inputs[0].wire_shape == [-1, 28, 28]
    assert IMAGE.output_names == ("y",)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "missing input 'x'; the model's inputs are 'x'"),
        ({"z": zeros(1)}, "unknown input 'z'; missing input 'x'"),
        ({"x": zeros(1, 28, 28), "z": zeros(1)}, "unknown input 'z'"),
        ({"x": zeros(1, 27, 28)}, "input 'x': got shape [1, 27, 28], expected [batch, 28, 28]"),
        ({"x": zeros(28, 28)}, "input 'x': got shape [28, 28], expected [batch, 28, 28]"),
        ({"x": zeros(1, 28, 28, dtype="f8")}, "input 'x': got datatype FP64, expected FP32"),
    ],
)
def test_what_does_not_fit_is_refused(inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        IMAGE.check(inputs)
    assert message in caught.value.message


def test_equal_symbols_have_equal_sizes() -> None:
    signature = Signature(inputs=(spec("a", "n", "m"), spec("b", "n", "?b_1")), outputs=(spec("y", "n"),))
    assert signature.check({"a": zeros(2, 3), "b": zeros(2, 9)}) == 2
    with pytest.raises(InvalidArgument, match=r"input 'b': got shape \[3, 9\], expected \[n, \?b_1\] \(with n=2"):
        signature.check({"a": zeros(2, 3), "b": zeros(3, 9)})
    square = Signature(inputs=(spec("a", "n", "n"),), outputs=(spec("y", "n"),))
    with pytest.raises(InvalidArgument, match="got shape"):
        square.check({"a": zeros(2, 3)})


def test_unknown_rank_takes_anything_and_is_never_batched() -> None:
    signature = Signature(inputs=(spec("a", ANY_RANK),), outputs=(spec("y", ANY_RANK),))
    assert signature.check({"a": zeros(2, 3, 4)}) == 1
    assert not signature.inputs[0].rank_known
    assert signature.batch_dim is None


@pytest.mark.parametrize("outputs", [(spec("y", "other", 1),), (spec("y", 1),), (spec("y"),)])
def test_no_batch_dimension_unless_all_share_it(outputs: tuple[TensorSpec, ...]) -> None:
    assert Signature(inputs=(spec("x", "batch", 2),), outputs=outputs).batch_dim is None


def test_lookup_by_name() -> None:
    assert IMAGE.input("x").shape == ("batch", 28, 28)
    assert IMAGE.output("y").shape == ("batch", 10)
    with pytest.raises(UnknownName, match="unknown input 'X'"):
        IMAGE.input("X")
    with pytest.raises(UnknownName, match="unknown output 'z'"):
        IMAGE.output("z")


@given(st.lists(st.integers(0, 4), max_size=4), st.lists(st.sampled_from(["n", "m", "?x", 2, 3]), max_size=4))
def test_check_agrees_with_a_plain_definition(got: list[int], dims: list[int | str]) -> None:
    """A shape fits when there is a size for every symbol that turns the dimensions into it."""
    signature = Signature(inputs=(spec("x", *dims),), outputs=(spec("y", "n"),))
    sizes = {d: {g for d2, g in zip(dims, got, strict=False) if d2 == d} for d in ("n", "m")}
    fits = (
        len(got) == len(dims)
        and all(g == d for g, d in zip(got, dims, strict=True) if isinstance(d, int))
        and all(len(found) <= 1 for found in sizes.values())
    )
    try:
        signature.check({"x": np.zeros(got, "f4")})
    except InvalidArgument:
        assert not fits
    else:
        assert fits
