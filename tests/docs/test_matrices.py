"""The matrices of formats and of extras: what fills them, and that no source, target or extra is forgotten."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from salver.builder.exporters import BUILTIN as EXPORTERS
from salver.cli._accelerators import ACCELERATORS, UNTESTED
from salver.cli._doctor import NEEDS

ROOT = Path(__file__).parents[2]
NAMED_ONLY = {"testing", "drift", "explain", "otel", "oci", "private", "ray", "kubernetes"}


def script(name: str) -> ModuleType:
    """A script of `benchmarks`."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def formats() -> ModuleType:
    return script("formats")


@pytest.fixture(scope="module")
def cells(formats: ModuleType) -> dict[str, Any]:
    return {cell["target"]: cell for cell in formats.run_source("digits.onnx", ["import", "ort", "keras"])}


def test_a_crossing_is_proved_sized_and_timed(cells: dict[str, Any]) -> None:
    for target in ("import", "ort"):
        cell = cells[target]
        assert cell["outcome"] == "passed"
        assert cell["max_rel"] <= cell["tolerance"]
        assert cell["bytes"] > 1_000_000
        assert cell["ms"] > 0
        assert cell["sizes"].startswith("batch 1, 7, ")


needs_keras = pytest.mark.skipif(find_spec("keras") is None, reason="pip install 'salver[tensorflow]'")


@needs_keras
def test_a_refusal_names_the_route_that_exists(cells: dict[str, Any]) -> None:
    assert cells["keras"]["outcome"] == "refused"
    assert "--to onnx" in cells["keras"]["reason"]


@needs_keras
def test_the_page_tells_each_cell(formats: ModuleType, cells: dict[str, Any]) -> None:
    failed = {"target": "onnx", "outcome": "failed", "reason": "it /broke/in/two | <here>"}
    page = formats.page({"digits.onnx": {**cells, "onnx": failed}, "later": {}}, "a CPU", "a runtime")
    row = next(line for line in page.splitlines() if line.startswith("| digits.onnx"))
    assert row.split(" | ")[2] == "**fails**"
    assert "—" in row
    assert "| ort | " in page
    assert "- onnx, failed: it two \\| &lt;here>" in page
    assert next(line for line in page.splitlines() if line.startswith("| later")).count("·") == len(EXPORTERS) + 1


def test_a_refusal_is_told_once_with_its_sources_and_whole(formats: ModuleType) -> None:
    long = "it takes what is not there; " * 12 + "export with --to onnx"
    refused = {
        name: {
            "pt2": {
                "target": "pt2",
                "outcome": "refused",
                "reason": f"no clean route from '{name}' (x) to 'pt2': {long}",
            }
        }
        for name in ("digits.onnx", *(source for source in formats.SOURCES if source.startswith("sklearn ")))
    }
    page = formats.page(refused, "a CPU", "a runtime")
    assert page.count(long) == 1
    assert f"- {long} (digits.onnx, each of sklearn)" in page


def test_a_whole_model_is_told_with_the_command_that_checks_it(formats: ModuleType) -> None:
    (name, *_) = formats.CHECKS
    page = formats.page({name: {"check": {"target": "check", "outcome": "passed", "told": "It holds."}}}, "", "")
    assert f"**{name}.** It holds." in page
    assert f'`python benchmarks/formats.py "{name}" --again`' in page
    assert f"## {name}" not in page


def test_the_matrix_in_the_docs_has_every_source_and_every_target(formats: ModuleType) -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    head = next(line for line in text.splitlines() if line.startswith("| source"))
    assert [column.strip() for column in head.strip("|").split("|")] == ["source", "import", *EXPORTERS]
    rows = set(re.findall(r"^\| ([^|]+?) \|", text, re.MULTILINE))
    assert set(formats.SOURCES) <= rows


def test_every_extra_that_something_imports_is_installed_and_tried() -> None:
    extras = script("extras")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(declared) == {*extras.SMOKE, *NAMED_ONLY, "all"}
    together = re.findall(r"[a-z]+", " ".join(re.findall(r"\[(.*?)\]", " ".join(declared["all"]))))
    assert sorted(together) == sorted(extras.SMOKE)
    for members, code in extras.SMOKE.values():
        assert all(importlib.util.find_spec(member) for member in members)
        compile(code, "smoke", "exec")
    assert {extra for extra, _ in NEEDS.values()} <= set(extras.SMOKE)


def test_what_cannot_be_tried_here_is_said_so_in_the_docs() -> None:
    text = (ROOT / "docs" / "accelerators.md").read_text(encoding="utf-8")
    for one in ACCELERATORS:
        row = next(line for line in text.splitlines() if line.startswith("|") and f"`{one.name}`" in line.split("|")[1])
        assert UNTESTED in row
