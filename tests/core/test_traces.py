from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.errors import InvalidArgument, NotFound, SalverError
from salver.core.traces import Arrival, read_trace, write_trace

arrivals = st.builds(
    Arrival,
    at_s=st.floats(0, 1e6),
    rows=st.integers(1, 1000),
    model=st.text(max_size=20),
    priority=st.integers(-5, 5),
    timeout_s=st.none() | st.floats(1e-6, 1e6),
)


@given(trace=st.lists(arrivals, min_size=1).map(lambda found: sorted(found, key=lambda arrival: arrival.at_s)))
def test_a_trace_is_read_as_it_was_written(trace: list[Arrival], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("traces") / "trace.jsonl"
    assert write_trace(path, iter(trace)) == len(trace)
    assert list(read_trace(path)) == trace


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"t": 0.5}\n\n{"t": 0.5, "rows": 2, "model": "m", "priority": 1, "timeout_s": 0.1}\n')
    assert list(read_trace(path)) == [Arrival(0.5), Arrival(0.5, 2, "m", 1, 0.1)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the trace is empty"),
        ("\n \n", "the trace is empty"),
        ('{"t": 0}\n{"t": 1\n', ":2: Input data was truncated"),
        ('{"t": 0}\n[]\n', ":2: Expected `object`, got `array`"),
        ('{"t": 0}\n{"rows": 1}\n', ":2: Object missing required field `t`"),
        ('{"t": 0, "row": 1}\n', ":1: Object contains unknown field `row`"),
        ('{"t": 2}\n\n{"t": 1}\n', ":3: got t 1 after 2; expected seconds since the start, in order"),
        ('{"t": -1}\n', ":1: got t -1 after 0"),
        ('{"t": 1e999}\n', ":1: "),
        ('{"t": 0, "rows": 0}\n', ":1: got rows 0, expected 1 or more"),
        ('{"t": 0, "timeout_s": 0}\n', ":1: got timeout_s 0, expected more than 0, or null"),
        ('{"t": 0, "model": "' + "m" * 70_000 + '"}\n', ":1: the line is longer than 65536 bytes"),
    ],
)
def test_a_line_that_is_no_request_is_named(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidArgument) as raised:
        list(read_trace(path))
    assert told in raised.value.message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b'{"t": 0, "model": "\xff"}\n')
    with pytest.raises(InvalidArgument, match=":1: "):
        list(read_trace(path))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.jsonl"):
        list(read_trace(tmp_path / "none.jsonl"))
    with pytest.raises(NotFound):
        write_trace(tmp_path / "no" / "folder.jsonl", [])
    with pytest.raises(SalverError):
        list(read_trace(tmp_path))
