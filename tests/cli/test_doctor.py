"""`salver doctor`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import salver
from salver.backends import BUILTIN as BACKENDS
from salver.builder.exporters import BUILTIN as EXPORTERS
from salver.builder.importers import BUILTIN as IMPORTERS
from salver.cli import _doctor, run
from salver.cli._accelerators import ACCELERATORS, UNTESTED


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return _doctor.examine()


def test_every_member_is_listed(found: dict[str, Any]) -> None:
    assert found["salver"] == salver.__version__
    for family, members in (("backends", BACKENDS), ("importers", IMPORTERS), ("exporters", EXPORTERS)):
        assert set(members) <= set(found[family])


def test_a_backend_tells_versions_and_providers_or_how_to_get_it(found: dict[str, Any]) -> None:
    assert "cpu" in found["backends"]["onnxruntime"]["providers"]
    for name, one in found["backends"].items():
        assert one["versions"] if one["present"] else one["install"] or one["missing"], name


def test_other_hardware_is_labelled_as_not_tried(found: dict[str, Any]) -> None:
    assert {one["tested"] for one in found["accelerators"]} == {UNTESTED}
    names = {one["name"] for one in found["accelerators"]}
    assert {"cuda", "tensorrt", "coreml", "directml", "tpu"} <= names
    assert all(one.install for one in ACCELERATORS)


def test_extras_say_what_is_missing(found: dict[str, Any]) -> None:
    assert "scikit-learn" in found["extras"]["sklearn"]["present"]
    assert found["extras"]["ray"]["install"] == "pip install 'salver[ray]'"


def test_what_a_library_is_missing_for_is_said_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor, "find_spec", lambda _: None)
    members = _doctor._examine_members(["onnxruntime", "torch"])
    assert members["onnxruntime"]["present"]
    assert members["torch"] == {
        "present": False,
        "missing": "torch, onnxscript",
        "install": "pip install 'salver[torch]'",
    }


def test_frameworks_are_loaded_only_where_there_may_be_other_hardware(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_doctor.sys, "platform", "linux")
    monkeypatch.setattr(_doctor, "_DEVICES", tmp_path)
    assert _doctor._asked() == {"onnxruntime", "openvino"}
    (tmp_path / "nvidia0").touch()
    assert _doctor._asked() == {"onnxruntime", "openvino", "torch", "tensorflow", "jax"}


def test_what_is_told_without_loading_is_what_the_backend_itself_tells(found: dict[str, Any]) -> None:
    sklearn = found["backends"]["sklearn"]
    own = _doctor._probe("sklearn")
    assert own["versions"].items() <= sklearn["versions"].items()
    assert list(sklearn["formats"]) == own["formats"]
    assert list(sklearn["providers"]) == own["providers"]


def test_a_backend_that_dies_while_loading_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.CompletedProcess([], -11, b"", b"Fatal error\n")
    monkeypatch.setattr(_doctor.subprocess, "run", lambda *_, **__: killed)
    backends = _doctor._examine_backends()
    assert backends["onnxruntime"]["present"] is False
    assert backends["onnxruntime"]["missing"] == "it does not load (exit code -11): Fatal error"


def test_the_tables_name_what_the_data_name(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr(_doctor, "examine", lambda: found)
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    for expected in ("onnxruntime", "tensorrt", UNTESTED, "salver[ray]", "Importers", "Exporters"):
        assert expected in text
    assert run(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["salver"] == salver.__version__
