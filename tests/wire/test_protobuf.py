"""The few pieces of protobuf that are written and read by hand, against protobuf's own."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, unknown_fields
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from salver.wire.protobuf import delimited, delimited_head, split_delimited, varint


@given(st.integers(0, (1 << 63) - 1))
def test_varints(value):
    option = descriptor_pb2.UninterpretedOption.FromString(b"\x20" + varint(value))
    assert option.positive_int_value == value
    assert option.SerializeToString() == b"\x20" + varint(value)


@given(st.binary(max_size=300))
def test_delimited_fields(data):
    option = descriptor_pb2.UninterpretedOption(string_value=data)
    assert delimited(7, data) == option.SerializeToString() == delimited_head(7, len(data)) + data


@given(st.lists(st.tuples(st.integers(1, 1 << 20), st.binary(max_size=200)), max_size=6))
def test_fields_are_found_where_protobuf_finds_them(fields):
    message = b"".join(delimited(number, data) for number, data in fields)
    found = split_delimited(message)
    assert [(number, message[start:end]) for number, _, start, end in found] == fields
    assert [message[start:stop] for _, start, _, stop in found] == [delimited(n, d) for n, d in fields]


@given(st.binary(max_size=40))
def test_any_bytes_are_split_as_protobuf_splits_them_or_not_at_all(data):
    found = split_delimited(data)
    if found is None:
        return
    try:
        message = descriptor_pb2.EnumDescriptorProto.EnumReservedRange.FromString(data)  # knows no delimited field
    except DecodeError:
        assert any(number == 0 or number >= 1 << 29 for number, *_ in found), "protobuf refuses what we split"
        return
    known = unknown_fields.UnknownFieldSet(message)
    assert [(field.field_number, field.data) for field in known] == [(n, data[start:end]) for n, _, start, end in found]


@pytest.mark.parametrize("data", [b"\x08\x01", b"\x0a", b"\x0a\x02x", b"\x80", b"\x0a" + b"\x80" * 6, b"\x0b\x0c"])
def test_what_is_not_delimited_is_not_split(data):
    assert split_delimited(data) is None


def test_a_message_of_very_many_fields_is_not_split():
    assert len(split_delimited(delimited(15, b"") * 256)) == 256
    assert split_delimited(delimited(15, b"") * 257) is None
