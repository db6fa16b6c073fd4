"""Who may import whom, and when."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import salver

PACKAGE = Path(salver.__file__).parent
ROOT = Path(__file__).parents[2]
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
LAZY = set(salver.__all__) - {"__version__"}
MAY_IMPORT_IN_FUNCTIONS = {"__init__.py", "core/registry.py"}


def test_the_contracts_hold() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_imports_stand_at_the_top() -> None:
    inner = []
    for name, tree in TREES.items():
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        imports = [n for f in functions for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)]
        inner += [f"{name}:{n.lineno}" for n in imports if name not in MAY_IMPORT_IN_FUNCTIONS]
    assert inner == []


def test_rooms_never_import_the_package_root() -> None:
    """Its lazy names would let a room reach any other behind import-linter's back."""
    found = []
    for name, tree in TREES.items():
        if name.startswith(("cli/", "testing/")):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and any(alias.name == "salver" for alias in node.names):
                found.append(f"{name}:{node.lineno}")
            if isinstance(node, ast.ImportFrom) and node.module == "salver":
                found += [f"{name}:{node.lineno}" for alias in node.names if alias.name in LAZY]
    assert found == []


def run_python(code: str) -> str:
    command = [sys.executable, "-I", "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_import_salver_is_silent_and_loads_no_third_party() -> None:
    code = (
        "import sys; before = set(sys.modules); import salver\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    assert run_python(code) == "['salver']\n"


def test_the_command_line_starts_without_a_parser_or_a_runtime() -> None:
    code = (
        "import sys; import salver.cli\n"
        "heavy = {'typer', 'rich', 'numpy', 'onnx', 'onnxruntime', 'importlib.metadata', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python(code) == "[]\n"


def test_the_serving_path_never_imports_onnx() -> None:
    code = (
        "import sys; import salver; salver.serve; salver.Bundle\n"
        "print(sorted({'onnx', 'typer', 'rich', 'sklearn', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    assert run_python(code) == "[]\n"


def test_every_public_name_resolves() -> None:
    for name in salver.__all__:
        assert getattr(salver, name) is not None
    assert set(salver.__all__) <= set(dir(salver))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = salver.nonsense
