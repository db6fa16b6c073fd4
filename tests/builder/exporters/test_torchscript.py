"""TorchScript out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.builder.exporters import export_model, find_exporter
from salver.builder.importers import Imported, load_model
from salver.core.specs import parse_inputs
from salver.testing.exporters import ExporterConformance

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'salver[torch]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'salver[torch]'")


from salver.backends.torch_programs import quiet  # noqa: E402  # after the check that it is installed


class Pooled(torch.nn.Module):
    """Two inputs of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(10, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        hidden = self.words(ids) * mask[..., None]
        return {"pooled": hidden.sum(1), "hidden": hidden}


class Branching(torch.nn.Module):
    """Goes one way or the other as its input is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    torch.manual_seed(0)
    inputs = parse_inputs("mask:int64[batch,length]; ids:int64[batch,length]")
    return load_model(Pooled(), inputs=inputs, workdir=tmp_path_factory.mktemp("pooled"))


@pytest.fixture(scope="module")
def branching(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    inputs = parse_inputs("x:float32[batch,3]")
    return load_model(Branching(), inputs=inputs, workdir=tmp_path_factory.mktemp("branching"))


class TestTorchscript(ExporterConformance):
    exporter_name = "torchscript"
    deterministic = False

    @pytest.fixture(params=["pooled", "branching"])
    def imported(self, request: pytest.FixtureRequest) -> Imported:
        return request.getfixturevalue(request.param)

    @pytest.fixture
    def refused(self, native_only: Imported) -> Imported:
        return native_only


def test_pytorch_itself_loads_it(branching: Imported, tmp_path: Path) -> None:
    exported = export_model(branching, find_exporter("torchscript"), tmp_path / "net.pt")
    with quiet():
        module = torch.jit.load(str(exported.model.path))
    for sign in (1.0, -1.0):
        x = torch.full((2, 3), sign)
        np.testing.assert_array_equal(module(x).numpy(), Branching()(x).numpy())
