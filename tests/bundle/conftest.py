from __future__ import annotations

from pathlib import Path

import pytest

from salver.bundle import Bundle, Contents, seal
from salver.testing.bundles import tiny_contents


@pytest.fixture(scope="session")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    return tiny_contents(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from salver.bundle import generate_keys

    return generate_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def bundle(contents: Contents, tmp_path: Path) -> Bundle:
    return seal(tmp_path / "tiny.salver", contents)
