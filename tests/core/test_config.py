from __future__ import annotations

from typing import ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.config import Config, canonical_json
from salver.core.errors import InvalidArgument, UnknownName


class Quantize(Config, frozen=True, kw_only=True):
    VERSION: ClassVar[int] = 2
    bits: int = 8
    ops: tuple[str, ...] = ()


@given(st.integers(), st.lists(st.text(max_size=5)))
def test_data_round_trip(bits: int, ops: list[str]) -> None:
    config = Quantize(bits=bits, ops=tuple(ops))
    assert Quantize.from_data(config.to_data()) == config
    assert Quantize.from_data(config.to_data()).digest == config.digest


def test_equal_configs_have_equal_digests_and_others_do_not() -> None:
    class Other(Config, frozen=True, kw_only=True):
        VERSION: ClassVar[int] = 2
        bits: int = 8
        ops: tuple[str, ...] = ()

    assert Quantize().digest == Quantize(bits=8).digest
    assert len({Quantize().digest, Quantize(bits=4).digest, Other().digest}) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"version": 3}, "Quantize: got version 3, this release reads version 2"),
        ({"version": 1}, "Quantize: got version 1"),
        ({"bits": "eight"}, "Quantize: Expected `int`, got `str`"),
    ],
)
def test_data_that_cannot_be_read(data: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Quantize.from_data(data)
    assert message in caught.value.message


def test_an_unknown_field_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown field of Quantize 'bit'. Did you mean 'bits'\?"):
        Quantize.from_data({"bit": 8})


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4)))
def test_canonical_json_does_not_depend_on_order(data: dict[str, object]) -> None:
    backwards = dict(reversed(list(data.items())))
    assert canonical_json(data) == canonical_json(backwards)
    assert msgspec.json.decode(canonical_json(data)) == data
