"""Elements of tensors: limits of shapes and strings. Round trips of every datatype stand with the codecs."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.errors import InvalidArgument, TooLarge
from salver.wire.elements import check_strings, count_of, from_bytes, from_json, to_bytes, to_json

TEXTS = st.lists(st.text("aé漢🎉", max_size=6), max_size=4)


def strings(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


@given(values=TEXTS, limit=st.integers(0, 24))
def test_strings_are_measured_in_bytes(values, limit):
    over = [index for index, value in enumerate(values) if len(value.encode()) > limit]
    if not over:
        check_strings(strings(values), limit, "x")
        return
    with pytest.raises(TooLarge, match=rf"x: element {over[0]} has .*max_string_bytes") as caught:
        check_strings(strings(values), limit, "x")
    assert caught.value.limit == "max_string_bytes"


@given(values=TEXTS)
def test_strings_come_back(values):
    array = strings(values)
    shape = [len(values)]
    raw = bytes(to_bytes(array, "BYTES"))
    assert from_bytes(raw, 0, len(raw), "BYTES", shape, "x").tolist() == values
    assert from_json(json.loads(to_json(array, "BYTES")), "BYTES", shape, "x").tolist() == values


@given(data=st.binary(max_size=64), count=st.integers(0, 6))
def test_strings_with_lying_lengths_are_refused(data, count):
    try:
        array = from_bytes(data, 0, len(data), "BYTES", [count], "x")
    except InvalidArgument as error:
        assert error.message.startswith("x: ")
        return
    assert to_bytes(array, "BYTES") == data


@pytest.mark.parametrize("shape", [[-1], [1 << 40, 1 << 40], [1] * 65, [1 << 62, 0]])
def test_shapes_that_no_array_can_have(shape):
    with pytest.raises(InvalidArgument):
        count_of(shape, "x")


def test_an_empty_shape_is_one_element_and_a_zero_is_none():
    assert (count_of([], "x"), count_of([3, 0], "x"), count_of([3, 4], "x")) == (1, 0, 12)


@pytest.mark.parametrize("blank", [b"", b" \t\r\n"])
def test_nesting_is_found_behind_white_space(blank):
    data = msgspec.Raw(b"[" + blank + b"[1.5," + blank + b"2]]")
    assert from_json(data, "FP32", [1, 2], "input 'x'").tolist() == [[1.5, 2.0]]


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_bytes_of_any_kind_are_carried_as_a_character_each_and_measured_so(values):
    raw = to_bytes(np.array([*values, None], dtype=object)[:-1], "BYTES")
    array = from_bytes(raw, 0, len(raw), "BYTES", [len(values)], "x", binary=True)
    assert [element.encode("latin-1") for element in array] == values
    longest = max(map(len, values))
    check_strings(array, longest, "x", binary=True)
    if longest:
        with pytest.raises(TooLarge, match=f"has {longest} bytes"):
            check_strings(array, longest - 1, "x", binary=True)
