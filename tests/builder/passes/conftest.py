"""The digits classifier for every test of a pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from salver.core.dataset import Dataset
from salver.core.model import Model
from tests.builder.passes.graphs import cnn, examples


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return cnn(tmp_path)


@pytest.fixture
def data() -> Dataset:
    return examples()
