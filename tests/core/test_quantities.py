from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.errors import InvalidArgument
from salver.core.quantities import check_margin, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172800),
        ("12", 12),
        ("0.5", 0.5),
        ("1.5h", 5400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "5 minutes", "-5s", "5m3", "soon", "1h-2m", "5m 3s?", "1e3"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgument, match="expected a duration such as"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("64MiB", 64 << 20), ("1.5GB", 1_500_000_000), ("512", 512), ("1 KiB", 1024), ("7B", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "64mib", "-1", "64MiB!", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument, match="expected a size such as"):
        parse_size(text)


@given(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_a_number_with_a_unit_is_a_duration(number: int, unit: str) -> None:
    scale = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    assert parse_duration(f"{number}{unit}") == pytest.approx(number * scale)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_duration, parse_size, check_margin):
        try:
            parse(text)
        except InvalidArgument as error:
            assert text in error.message


@pytest.mark.parametrize("text", ["0.5pp", "1%", "2 pp", "0.01", "1e-3"])
def test_margins_stay_as_written(text: str) -> None:
    assert check_margin(text) == text


@pytest.mark.parametrize("text", ["", "pp", "-1pp", "1 percent", "0.5ppp"])
def test_what_is_no_margin(text: str) -> None:
    with pytest.raises(InvalidArgument, match="expected a margin such as"):
        check_margin(text)
