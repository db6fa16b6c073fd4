"""The digits network as a model and as bundles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from salver.backends import find_backend
from salver.bundle import Contents, make_golden, seal
from salver.core.model import Blob, Model

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What servers keep must not come from, or go to, the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits() -> Model:
    blob = Blob.of(DIGITS)
    return Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob,))


@pytest.fixture(scope="session")
def digits_bundle(digits: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed bundle named ``numbers`` with golden requests."""
    path = tmp_path_factory.mktemp("bundles") / "digits.salver"
    seal(path, Contents(name="numbers", model=digits, golden=make_golden(digits, count=3)))
    return path


@pytest.fixture(scope="session")
def wrong_bundle(digits: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose golden requests expect what the model does not give."""
    path = tmp_path_factory.mktemp("bundles") / "wrong.salver"
    golden = make_golden(digits, count=2)
    for request in golden:
        for name, array in request.expected.items():
            request.expected[name] = np.asarray(array + array.dtype.type(5))
    seal(path, Contents(name="wrong", model=digits, golden=golden))
    return path
