"""Rules of the house that no linter knows. Each test lists all offenders."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import salver

PACKAGE = Path(salver.__file__).parent
TEXTS = {
    path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(text) for name, text in TEXTS.items()}
MAX_LINES = 600

# A broad `except` stands only at a boundary; there it reports *and* changes state, or translates.
BOUNDARIES = {
    "backends/_jax.py": "a file from anywhere, read by a foreign library",
    "backends/native.py": "a framework's or a user's own code",
    "backends/_sklearn.py": "a file from anywhere, read by a foreign library",
    "backends/_python.py": "the user's own code",
    "builder/importers/torch_sources.py": "the user's own code",
    "builder/importers/torch_reasons.py": "exporters, which raise whatever they like",
    "builder/importers/torch_inputs.py": "the user's own code",
    "backends/torch_compiled.py": "a foreign compiler",
    "backends/torch_programs.py": "a file from anywhere, read by a foreign library",
    "builder/importers/_sklearn.py": "a file from anywhere, read by a foreign library",
    "builder/importers/named.py": "the user's own code",
    "builder/importers/parity.py": "a size that the original's own framework refuses",
    "backends/tensorflow_graph.py": "a file from anywhere, read by a foreign library",
    "builder/importers/tensorflow_convert.py": "a foreign converter",
    "builder/toolchains/scripts/harness.py": "a foreign converter",
    "cli/__init__.py": "the person at the terminal",
    "datasets/_function.py": "the user's own code",
    "processing/_python.py": "the user's own code",
    "processing/_tokenizer.py": "a foreign library that raises nothing narrower",
    "server/app.py": "the server's thread",
    "server/engine/lanes.py": "the lane",
    "server/engine/managed.py": "loading one model of several",
    "server/processes/forward.py": "answering one of several requests",
    "server/engine/served.py": "the request",
    "server/frontends/grpc/call.py": "the request",
    "server/frontends/http/exchange.py": "the request",
    "server/processes/channel.py": "another process",
    "server/processes/worker.py": "the process",
    "testing/oip/clients/harness.py": "a foreign client",
}


def test_broad_excepts_stand_at_named_boundaries() -> None:
    found: dict[str, list[int]] = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and is_broad(node) and not cleans_up(node):
                found.setdefault(name, []).append(node.lineno)
    unnamed = {name: lines for name, lines in found.items() if name not in BOUNDARIES}
    assert not unnamed, "name the errors, or name the boundary in BOUNDARIES"
    assert not set(BOUNDARIES) - set(found), "these boundaries are none any more"


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Whether it catches everything."""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(c is None or (isinstance(c, ast.Name) and c.id in {"Exception", "BaseException"}) for c in caught)


def cleans_up(handler: ast.ExceptHandler) -> bool:
    """Whether it only tidies: its last statement is a bare `raise`."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_input_is_never_checked_with_assert() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        if not name.startswith("testing/")  # conformance suites are tests
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    docstrings = {name: ast.get_docstring(tree) or "" for name, tree in TREES.items()}
    assert [name for name, text in docstrings.items() if len(text) < 10] == []


def test_no_module_is_long() -> None:
    lengths = {name: text.count("\n") for name, text in TEXTS.items()}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}, "find the part that has a name of its own"


def test_public_classes_and_functions_have_docstrings() -> None:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bare = [
        f"{name}: {node.name}"
        for name, tree in TREES.items()
        for node in tree.body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert bare == []


def test_every_exemption_gives_its_reason() -> None:
    reasoned = re.compile(r"# (noqa: [A-Z0-9, ]+?|type: ignore\[[\w, -]+\])  # \w+")
    bare = [
        f"{name}:{number}"
        for name, text in TEXTS.items()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(r"# (noqa|type: ignore)", line) and not reasoned.search(line)
    ]
    assert bare == [], "an exemption names its rule and then, after another '#', its reason"
