"""Models for MLServer: a runtime of a few lines and a ``model-settings.json`` for each model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from salver.testing.oip.models.specs import Model, Spec

_CODE: Final = Path(__file__).with_name("mlserver_model.py")


def write(folder: Path, model: Model) -> None:
    """Write one model; the runtime stands beside the models' folders, which must be on the server's PYTHONPATH."""
    (folder / "oip_models.py").write_text(_CODE.read_text(encoding="utf-8"), encoding="utf-8")
    path = folder / model.name
    path.mkdir(exist_ok=True)
    settings = {
        "name": model.name,
        "platform": "identity",
        "implementation": "oip_models.Model",
        "inputs": [_tensor(spec) for spec in model.inputs],
        "outputs": [_tensor(spec) for spec in model.outputs],
        "parameters": {"version": "1", "extra": {"kind": model.kind}},
    }
    (path / "model-settings.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _tensor(spec: Spec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
