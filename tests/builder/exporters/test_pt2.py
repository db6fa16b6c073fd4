"""ExportedPrograms out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.builder.exporters import export_model, find_exporter
from salver.builder.importers import Imported, load_model
from salver.core.errors import Unimplemented
from salver.core.specs import parse_inputs
from salver.testing.exporters import ExporterConformance

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'salver[torch]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'salver[torch]'")


class Dense(torch.nn.Module):
    """Rows of any length, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.layer(x)
        return {"pooled": hidden.mean(1), "hidden": hidden}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    torch.manual_seed(0)
    inputs = parse_inputs("x:float32[batch,length,8]")
    return load_model(Dense(), inputs=inputs, workdir=tmp_path_factory.mktemp("dense"))


class TestPt2(ExporterConformance):
    exporter_name = "pt2"

    @pytest.fixture
    def imported(self, dense: Imported) -> Imported:
        return dense

    @pytest.fixture
    def refused(self, native_only: Imported) -> Imported:
        return native_only


def test_pytorch_itself_loads_it(dense: Imported, tmp_path: Path) -> None:
    exported = export_model(dense, find_exporter("pt2"), tmp_path / "net.pt2")
    module = torch.export.load(exported.model.path).module()
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = Dense()(torch.from_numpy(x))["pooled"]
        np.testing.assert_allclose(module(x=torch.from_numpy(x))["pooled"].numpy(), expected.numpy(), atol=1e-6)


def test_what_only_torchscript_holds_is_refused_with_that_route(tmp_path: Path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:
                return x * 2
            return x

    imported = load_model(Branching(), inputs=parse_inputs("x:float32[batch,3]"), workdir=tmp_path)
    with pytest.raises(Unimplemented, match="--to torchscript"):
        find_exporter("pt2").route(imported)
