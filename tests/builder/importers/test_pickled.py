"""What a pickle would do is found without doing any of it."""

from __future__ import annotations

import bz2
import gzip
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.builder.importers.pickled import inspect_pickle
from salver.core.errors import CorruptArtifact

cloudpickle = pytest.importorskip("cloudpickle", reason="needs pip install cloudpickle")
joblib = pytest.importorskip("joblib", reason="needs pip install 'salver[sklearn]'")

from sklearn.datasets import load_iris  # noqa: E402  # after the checks
from sklearn.ensemble import RandomForestClassifier  # noqa: E402


class Call:
    """A pickle that calls something."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


@pytest.fixture(scope="module")
def forest() -> Any:
    x, y = load_iris(return_X_y=True)
    return RandomForestClassifier(5, random_state=0).fit(x, np.array(["a", "b", "c"], dtype=object)[y])


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", [Call(os.system, "touch ran"), Call(eval, "1"), Call(getattr, "", "upper")])
def test_dangerous_calls_are_found_in_every_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, call: Call
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps([1, {"a": call}], protocol))
    found = inspect_pickle(path)
    module = {os.system: "posix"}.get(call.function, "__builtin__" if protocol < 3 else "builtins")
    name = f"{module}.{call.function.__name__}"
    assert found.dangerous == (name,)
    assert name in found.calls
    assert f"{name}: and call it; DANGEROUS" in str(found)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("compress", [0, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
def test_joblib_files_are_read_past_their_arrays(tmp_path: Path, forest: Any, compress: Any) -> None:
    path = tmp_path / "m.joblib"
    joblib.dump({"first": forest, "last": Call(os.getpid)}, path, compress=compress)
    found = inspect_pickle(path)
    assert found.dangerous == ("posix.getpid",)
    assert "sklearn.ensemble._forest.RandomForestClassifier" in found.imports


@pytest.mark.parametrize("pack", [lambda b: b, zlib.compress, gzip.compress, bz2.compress])
def test_a_plain_model_is_not_dangerous(tmp_path: Path, forest: Any, pack: Any) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(pack(pickle.dumps(forest)))
    found = inspect_pickle(path)
    assert (found.dangerous, found.by_value) == ((), ())
    assert "DANGEROUS" not in str(found)
    assert "no library" not in str(found)


def test_functions_that_the_file_holds_are_marked(tmp_path: Path) -> None:
    path = tmp_path / "m.cloudpickle"
    path.write_bytes(cloudpickle.dumps(lambda x: x + 1))
    found = inspect_pickle(path)
    assert found.by_value
    assert "runs code that is stored in this file" in str(found)
    assert found.dangerous == ()


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x80\x04\x95", b"\x80\x05.", b"PK\x03\x04", b"\x78\x9cx"])
def test_what_is_no_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(content)
    with pytest.raises(CorruptArtifact, match=r"m\.pkl"):
        inspect_pickle(path)


def test_every_cut_of_a_file_is_refused(tmp_path: Path, forest: Any) -> None:
    path = tmp_path / "m.joblib"
    joblib.dump(forest, path)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, max(1, len(whole) // 60)):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptArtifact):
            inspect_pickle(path)
