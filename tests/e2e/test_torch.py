"""TorchScript that no ONNX graph can hold: built, verified, and served by PyTorch in a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salver.cli import run
from tests.e2e.conftest import serving

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'salver[torch]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'salver[torch]'")

from salver.backends.torch_programs import quiet  # noqa: E402  # after the check that it is installed


class Waves(torch.nn.Module):
    """One function or another, as the input is; ONNX has neither."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            return torch.special.bessel_j0(x)
        return torch.special.bessel_j1(x)


def test_a_program_with_control_flow_is_served_by_its_framework(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, data, bundle = tmp_path / "waves.pt", tmp_path / "x.npz", tmp_path / "waves.salver"
    with quiet():
        torch.jit.save(torch.jit.script(Waves()), str(source))
    np.savez(data, x=np.abs(np.random.default_rng(0).normal(size=(40, 4))).astype(np.float32))
    build = ["build", str(source), "--input", "x:float32[batch,4]", "--data", str(data), "--budget", "1s"]
    assert run([*build, "--cache", str(tmp_path / "cache"), "-o", str(bundle)]) == 0
    assert run(["verify", str(bundle)]) == 0
    assert "golden requests gave the stored answers" in capsys.readouterr().out
    with serving(bundle) as server:
        workers = [int(line) for line in _children(server.process.pid)]
        assert sum(_runs_torch(worker) for worker in workers) == 1
        assert len(workers) == 2
        for sign, function in ((1, torch.special.bessel_j0), (-1, torch.special.bessel_j1)):
            values = [sign * value for value in (0.5, 1.0, 2.0, 3.0)]
            given = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": values}
            status, answer = server.call("/v2/models/waves/infer", {"inputs": [given]})
            assert status == 200
            expected = function(torch.tensor(values)).numpy()
            np.testing.assert_allclose(answer["outputs"][0]["data"], expected, atol=1e-6)


def _children(process: int) -> list[str]:
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


def _runs_torch(process: int) -> bool:
    return "libtorch" in Path(f"/proc/{process}/maps").read_text()
