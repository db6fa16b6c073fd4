"""What the documentation says is true: links lead somewhere, generated pages are current, examples run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from salver.cli._parse import parse

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name}: '{link}' leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name}: '{link}': no such heading"


def test_the_pages_made_from_tables_are_current() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_can_be_read(name: str) -> None:
    for _, block in BLOCK.findall((ROOT / name).read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            words = (
                shlex.split(line.removeprefix("$ "), comments=True)
                if line.strip().startswith(("salver ", "$ salver "))
                else []
            )
            if words and not re.search(r"[A-Z]{4,}|\[|…|\.\.\.|\||>", line.partition("#")[0]):
                assert parse(words[1:]) is not None, f"{name}: cannot be read: {line}"


def test_every_page_is_reached_from_the_index() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached or not page.is_file():
            continue
        reached.add(page)
        if page.is_dir() or page.suffix != ".md":
            continue
        links = LINK.findall(page.read_text(encoding="utf-8"))
        todo += [(page.parent / link.partition("#")[0]).resolve() for link in links if "://" not in link]
    assert [page.relative_to(ROOT).as_posix() for page in PAGES if page.resolve() not in reached] == []


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    blocks = [
        text
        for language, text in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
        if language == "python"
    ]
    assert blocks
    for number, text in enumerate(blocks):
        script = tmp_path / f"block_{number}.py"
        guarded = "\n".join(f"    {line}" for line in text.replace("budget_s=60", "budget_s=5").splitlines())
        script.write_text(f"if __name__ == '__main__':\n{guarded}\n", encoding="utf-8")
        (tmp_path / "examples").symlink_to(ROOT / "examples")
        command = [sys.executable, "-W", "error", str(script)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
