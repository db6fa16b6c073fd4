"""The examples of the pages about datasets and importers run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [p for folder in ("datasets", "importers") for p in sorted((DOCS / folder).glob("*.md"))]
EXAMPLES = {p.relative_to(DOCS).as_posix(): re.findall(r"```python\n(.*?)```", p.read_text(), re.DOTALL) for p in PAGES}


@pytest.mark.parametrize("page", [page for page, blocks in EXAMPLES.items() if blocks])
def test_the_examples_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = DOCS.parent / "examples" / "digits"
    shutil.copyfile(digits / "digits.onnx", tmp_path / "model.onnx")
    shutil.copyfile(digits / "val.npz", tmp_path / "val.npz")
    monkeypatch.chdir(tmp_path)
    for name in sorted(set(re.findall(r"^(?:import|from) (\w+)", "\n".join(EXAMPLES[page]), re.MULTILINE))):
        pytest.importorskip(name, reason=f"the example needs {name}: docs/extras.md tells which extra brings it")
    for block in EXAMPLES[page]:
        exec(block, {"__name__": "example"})
