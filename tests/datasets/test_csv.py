"""CSV files."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument, UnknownName
from salver.datasets import open_dataset
from salver.testing.datasets import DatasetConformance, read_all

TEXT = 'age,weight,name,label\n1,0.5,"a, ""b""",yes\n2,,two\n'.replace("two\n", '"two\nlines",no\n') + "-3,1e3,,yes\n"
EXPECTED = {
    "age": np.array([1, 2, -3]),
    "weight": np.array([0.5, np.nan, 1000.0]),
    "name": np.array(['a, "b"', "two\nlines", ""], dtype=object),
    "label": np.array(["yes", "no", "yes"], dtype=object),
}


class TestCsv(DatasetConformance):
    @pytest.fixture(params=["plain", "gzip", "byte order mark"])
    def case(self, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Dataset, dict[str, Array]]:
        path = tmp_path / ("a.csv.gz" if request.param == "gzip" else "a.csv")
        data = TEXT.encode("utf-8-sig" if request.param == "byte order mark" else "utf-8")
        path.write_bytes(gzip.compress(data) if request.param == "gzip" else data)
        return open_dataset(path), EXPECTED


def opened(tmp_path: Path, text: str | bytes, **settings: str) -> Dataset:
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_dataset(path, **settings)  # type: ignore[arg-type]  # settings of several types share one name


@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1),
            st.integers(-(2**63), 2**63 - 1),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]]) -> None:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["t", "n"])
    writer.writerows([("x" + text, number) for text, number in rows])
    read = read_all(opened(tmp_path_factory.mktemp("csv"), out.getvalue()))
    assert read["t"].tolist() == ["x" + text for text, _ in rows]
    assert read["n"].tolist() == [number for _, number in rows]


@pytest.mark.parametrize(
    ("cells", "datatype"),
    [
        (["1", "-2", "+3"], "INT64"),
        (["1", "2.5"], "FP64"),
        (["1", ""], "FP64"),
        (["nan", "-inf", ".5", "1e-3"], "FP64"),
        (["1", "99999999999999999999"], "FP64"),
        (["1", "one"], "BYTES"),
        (["1_000"], "BYTES"),
        (["", ""], "BYTES"),
        (["٣"], "BYTES"),
    ],
)
def test_a_column_has_the_type_of_all_its_cells(tmp_path: Path, cells: list[str], datatype: str) -> None:
    dataset = opened(tmp_path, "a,b\n" + "".join(f"{c},x\n" for c in cells))
    assert dataset.columns[0].datatype == datatype


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n", "zero examples"),
        ("a,a\n1,2\n", "column 'a' stands twice"),
        ("a,\n1,2\n", "a column has no name"),
        ("a,b\n1,2\n3\n", r"row 2 \(line 3\), column 'b': got 1 cells, expected 2"),
        ("a,b\n1,2,3\n", r"row 1 \(line 2\).*got 3 cells, expected 2"),
        ('a,b\n1,"2\n', "row 1: unexpected end of data"),
        (b"a,b\n1,\xff\n", "not UTF-8"),
        ("a,label\n1,x\n2,\n", "row 2, column 'label': the label is missing"),
    ],
)
def test_bad_content_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        opened(tmp_path, text)


def test_truncated_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(TEXT.encode())[:-12])
    with pytest.raises(InvalidArgument, match="damaged or truncated gzip"):
        open_dataset(path)


def test_the_delimiter_is_a_setting(tmp_path: Path) -> None:
    assert read_all(opened(tmp_path, "a;b\n1;2,5\n", delimiter=";"))["b"].tolist() == ["2,5"]
    with pytest.raises(InvalidArgument, match="expected one character"):
        opened(tmp_path, "a;b\n", delimiter=";;")
    with pytest.raises(UnknownName, match="Did you mean 'delimiter'"):
        opened(tmp_path, "a;b\n", delimeter=";")
