"""What was tried when a model was loaded is not tried again in the same circumstances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from salver.server.engine import loading
from salver.server.engine.loading import load
from salver.server.engine.repository import open_model
from salver.server.engine.tried import Finding, try_once
from salver.server.settings import RunSettings
from tests.server.engine.bench import adds


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "salver" / "tried"


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes at which merging was tried."""
    sizes: list[int] = []
    check = loading.check_invariance

    def watched(session: Any, inputs: Any, sizes_asked: tuple[int, ...] = (), **named: Any) -> Any:
        found = named.get("sizes", sizes_asked)
        sizes.extend(found)
        return check(session, inputs, found)

    monkeypatch.setattr(loading, "check_invariance", watched)
    return sizes


def merges(path: Path, **settings: Any) -> tuple[bool, str]:
    loaded = load(open_model(path, "m"), RunSettings(**settings))
    loaded.session.close()
    return loaded.merge, loaded.merge_reason


def test_the_next_load_knows(tmp_path: Path, tries: list[int], cache: Path) -> None:
    path = adds(tmp_path / "m.onnx", 1)
    assert merges(path, max_batch=4) == (True, "tried at load on made-up rows")
    assert merges(path, max_batch=4) == (True, "tried at load on made-up rows")
    assert tries == [4]
    assert merges(path, max_batch=2)[0]
    assert merges(path, max_batch=4, threads=2)[0]
    assert tries == [4, 2, 4]
    assert merges(adds(tmp_path / "other.onnx", 2), max_batch=4)[0]
    assert tries == [4, 2, 4, 4]
    assert len(list(cache.iterdir())) == 4


def test_a_damaged_finding_is_none(tmp_path: Path, tries: list[int], cache: Path) -> None:
    path = adds(tmp_path / "m.onnx", 1)
    merges(path, max_batch=4)
    [kept] = cache.iterdir()
    for damage in (b"", b"rubbish", msgspec.msgpack.encode([1, "no boolean"])):
        kept.write_bytes(damage)
        tries.clear()
        assert merges(path, max_batch=4)[0]
        assert tries == [4]


def test_without_a_cache_it_is_tried_each_time(tmp_path: Path, tries: list[int], cache: Path) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder should be")
    path = adds(tmp_path / "m.onnx", 1)
    assert merges(path, max_batch=4)[0]
    assert merges(path, max_batch=4)[0]
    assert tries == [4, 4]


def test_weights_beside_a_file_are_in_no_digest(tmp_path: Path, tries: list[int]) -> None:
    path = adds(tmp_path / "1" / "m.onnx", 1)
    (tmp_path / "1" / "m.onnx.data").write_bytes(b"others")
    merges(path, max_batch=4)
    merges(path, max_batch=4)
    assert tries == [4, 4]


def test_the_oldest_go_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salver.server.engine.tried._MOST", 3)
    for number in range(5):
        found = Finding(bool(number % 2), str(number))
        assert try_once(["of", number], lambda found=found: found) == found
    assert len(list(cache.iterdir())) == 3
    assert try_once(["of", 4], lambda: Finding(True, "again")) == Finding(False, "4")
    assert try_once(["of", 0], lambda: Finding(True, "again")) == Finding(True, "again")
