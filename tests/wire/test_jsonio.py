"""JSON of models: NaN, what is wrong and where, and how deep it may go."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.errors import InvalidArgument, TooLarge
from salver.wire import jsonio

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('[]{}"\\a\n'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\'), inner, max_size=3),
    max_leaves=20,
)


def depth_of(value):
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(value=VALUES, spaces=st.sampled_from([None, 2]))
def test_depth_is_that_of_the_value_whatever_its_texts_hold(value, spaces):
    body = json.dumps(value, indent=spaces, ensure_ascii=False).encode()
    depth = depth_of(value)
    jsonio.check_depth(body, depth)
    if depth:
        with pytest.raises(TooLarge, match=r"thing: .*max_json_depth") as caught:
            jsonio.check_depth(body, depth - 1, "thing")
        assert caught.value.limit == "max_json_depth"


@given(body=st.text('[]{}"\\ ,a').map(str.encode), max_depth=st.integers(0, 5))
def test_depth_of_anything_is_found_or_refused(body, max_depth):
    """Where it is JSON after all, its depth is within the limit."""
    try:
        jsonio.check_depth(body, max_depth)
    except TooLarge:
        return
    try:
        value = json.loads(body)
    except ValueError:
        return
    assert depth_of(value) <= max_depth


def test_brackets_in_texts_do_not_count():
    jsonio.check_depth(json.dumps(["[" * 1000, "\\", '"[[[[', "]]]]"]).encode(), 1)
    with pytest.raises(TooLarge):
        jsonio.check_depth(json.dumps(["]" * 1000, [1]]).encode(), 1)


@given(value=VALUES)
def test_what_is_written_is_read_again(value):
    assert jsonio.decode(jsonio.encode(value), object) == value


def test_numbers_that_json_has_not():
    assert jsonio.encode([math.nan, math.inf, -math.inf]) == b"[NaN,Infinity,-Infinity]"
    found = jsonio.decode(b'{"a":[NaN,-Infinity,1]}', dict[str, list[float]])
    assert math.isnan(found["a"][0])
    assert found["a"][1:] == [-math.inf, 1.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[1,NaN,", "not valid JSON"),
        (b'[NaN,"a"]', "Expected `float`"),
        (b'[NaN,"\xff"]', "not UTF-8: byte 0xff"),
        (b'[NaN,"\\ud800"]', "half a surrogate pair"),
        (b'["\\ud800"]', "half a surrogate pair"),
        (b"[NaN," + b"1" * 5000 + b"]", "not valid JSON|Exceeds the limit|not fit"),
        (b"NaN" + b"[" * 100_000, "not valid JSON"),
        (b"[" * 100_000 + b"NaN", "nested too deeply"),
        (b" ", "it is empty"),
    ],
)
def test_what_is_wrong_is_said(body, message):
    with pytest.raises(InvalidArgument, match=message):
        jsonio.decode(body, list[float] if b"[" * 9 not in body else object)


def test_tolerant_parsing_alone():
    assert jsonio.parse_tolerant(b'{"a":[1,Infinity],"b":"\\u00e9"}') == {"a": [1, math.inf], "b": "é"}
    for body in (b"\xff", b'"\\udfff"', b"[" * 100_000, b"{", b"1" * 5000):
        with pytest.raises(InvalidArgument):
            jsonio.parse_tolerant(body)


@pytest.mark.parametrize("end", [b"", b"\\"])
def test_escaped_quotes_in_a_text_that_never_ends_are_read_once(end):
    """Each of them tried as the beginning of a text would take hours."""
    body = b"[" * 101 + b'"' + b'\\"' * 2_000_000 + end
    with pytest.raises(TooLarge):
        jsonio.check_depth(body, 100)
    jsonio.check_depth(body, 101)
