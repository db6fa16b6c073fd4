"""JSON Lines."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument
from salver.datasets import open_dataset
from salver.testing.datasets import DatasetConformance

TEXT = """
{"n": 1, "x": [1, 2.5], "t": "é", "ok": true, "label": 3}
{"n": 2, "x": [3, 4], "t": "", "ok": false, "label": 4}

{"n": 0.5, "x": [5, 6], "t": "c", "ok": true, "label": 5}
"""
EXPECTED = {
    "n": np.array([1, 2, 0.5]),
    "x": np.array([[1, 2.5], [3, 4], [5, 6]]),
    "t": np.array(["é", "", "c"], dtype=object),
    "ok": np.array([True, False, True]),
    "label": np.array([3, 4, 5]),
}
SENTIMENT = Path(__file__).parents[1] / "data" / "sentiment.jsonl.gz"


class TestJsonl(DatasetConformance):
    @pytest.fixture(params=["a.jsonl", "a.jsonl.gz"])
    def case(self, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Dataset, dict[str, Array]]:
        path = tmp_path / request.param
        path.write_bytes(gzip.compress(TEXT.encode()) if path.suffix == ".gz" else TEXT.encode())
        return open_dataset(path), EXPECTED


def test_a_real_set_of_texts() -> None:
    dataset = open_dataset(SENTIMENT)
    assert (len(dataset), [c.name for c in dataset.columns]) == (1500, ["text", "domain"])
    labels = np.concatenate([b.labels for b in dataset.batches(700) if b.labels is not None])
    assert set(labels.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"a": 1}\n{"b": 1}', "row 2, column 'a': is missing"),
        ('{"a": 1}\n{"a": 1, "b": 1}', "row 2, column 'b': is not in the first row"),
        ('{"a": 1}\n{"a": "x"}', "row 2, column 'a': got text, rows before it have an integer"),
        ('{"a": true}\n{"a": 1}', "row 2, column 'a': got an integer, rows before it have a boolean"),
        ('{"a": [1, 2]}\n{"a": [1]}', r"row 2, column 'a': got a value of shape \[1\]"),
        ('{"a": [[1], [1, 2]]}', "row 1, column 'a': got an empty or ragged list"),
        ('{"a": null}', "row 1, column 'a': got null"),
        ('{"a": {"b": 1}}', "row 1, column 'a': got a dict"),
        ('{"a": 1}\n\n{"a": ', r"row 2 \(line 3\)"),
        ("[1]", r"row 1 \(line 1\): Expected `object`"),
        ("", "zero examples"),
    ],
)
def test_bad_content_is_named(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(lines)
    with pytest.raises(InvalidArgument, match=message):
        open_dataset(tmp_path / "a.jsonl")


def test_truncated_gzip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(SENTIMENT.read_bytes()[:20000])
    with pytest.raises(InvalidArgument, match=r"after row \d+: damaged or truncated gzip"):
        open_dataset(tmp_path / "a.jsonl.gz")
