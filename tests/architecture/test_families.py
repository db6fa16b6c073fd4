"""Every extension family has one shape, and every member has its row, its file, its test and its page."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import salver
from salver.core.registry import Family

PACKAGE = Path(salver.__file__).parent
ROOT = Path(__file__).parents[2]


def families() -> dict[str, Path]:
    """Packages with a `BUILTIN` table, by their dotted name."""
    tables = [p for p in PACKAGE.rglob("__init__.py") if "\nBUILTIN" in p.read_text(encoding="utf-8")]
    return {".".join(p.parent.relative_to(PACKAGE.parent).parts): p.parent for p in sorted(tables)}


FAMILIES = families()
MEMBERS = [
    pytest.param(package, name, target, id=f"{package.removeprefix('salver.')}-{name}")
    for package in FAMILIES
    for name, target in importlib.import_module(package).BUILTIN.items()
]


def test_there_are_families() -> None:
    assert {
        "salver.backends",
        "salver.builder.exporters",
        "salver.builder.importers",
        "salver.builder.passes",
        "salver.datasets",
    } <= set(FAMILIES)


@pytest.mark.parametrize("package", FAMILIES)
def test_a_family_has_its_port_its_registry_and_its_conformance_suite(package: str) -> None:
    folder = FAMILIES[package]
    assert (folder / "base.py").is_file(), f"{package} lacks base.py, its port"
    suite = PACKAGE / "testing" / f"{folder.name}.py"
    assert suite.is_file(), f"{package} lacks src/salver/testing/{folder.name}.py, its conformance suite"
    registries = [v for v in vars(importlib.import_module(package)).values() if isinstance(v, Family)]
    assert [r.name for r in registries] == [folder.name], f"{package} must hold one Family, named '{folder.name}'"


@pytest.mark.parametrize("package", FAMILIES)
def test_every_member_file_has_a_row(package: str) -> None:
    rows = {target.partition(":")[0].rpartition(".")[2] for target in importlib.import_module(package).BUILTIN.values()}
    for path in sorted(FAMILIES[package].glob("_*.py")):
        if path.stem == "__init__" or path.stem in rows:
            continue
        classes = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("class ")]
        ports = family_class_names(package)
        claims = [c for c in classes if any(c.partition("(")[2].startswith(port) for port in ports)]
        assert not claims, f"{path.name} has {claims} but no row in {package}.BUILTIN"


@pytest.mark.parametrize(("package", "name", "target"), MEMBERS)
def test_a_member_has_its_file_its_class_its_test_and_its_page(package: str, name: str, target: str) -> None:
    module, _, attribute = target.partition(":")
    stem = name.replace("-", "_")
    assert module == f"{package}._{stem}", f"'{name}' must live in {package}._{stem}, its row says {module}"
    tree = ast.parse((FAMILIES[package] / f"_{stem}.py").read_text(encoding="utf-8"))  # what it wraps may be missing
    assert attribute in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}, f"{target} is no class"
    inside = Path(*package.split(".")[1:])
    test = Path("tests") / inside / f"test_{stem}.py"
    assert (ROOT / test).is_file(), f"'{name}' lacks {test}"
    page = Path("docs") / inside.name / f"{name}.md"
    assert (ROOT / page).is_file(), f"'{name}' lacks {page}"


def family_class_names(package: str) -> set[str]:
    """Names of the classes that a family's `base.py` exports."""
    base = importlib.import_module(f"{package}.base")
    return {n for n, v in vars(base).items() if inspect.isclass(v) and v.__module__ == base.__name__}
