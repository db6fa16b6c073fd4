"""Models for Triton's Python backend: ``<name>/config.pbtxt`` and ``<name>/1/model.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from salver.testing.oip.models.specs import Model, Spec

_MAX_BATCH: Final = 1024
_CODE: Final = Path(__file__).with_name("triton_model.py")


def write(folder: Path, model: Model) -> None:
    """Write one model. Batches are whole requests: dynamic batching is off."""
    path = folder / model.name
    (path / "1").mkdir(parents=True, exist_ok=True)
    (path / "1" / "model.py").write_text(_CODE.read_text(encoding="utf-8"), encoding="utf-8")
    labels = 'label_filename: "labels.txt"' if model.labels else ""
    if model.labels:
        (path / "labels.txt").write_text("\n".join(model.labels) + "\n", encoding="utf-8")
    lines = [
        f'name: "{model.name}"',
        'backend: "python"',
        f"max_batch_size: {_MAX_BATCH}",
        *(f"input {{ {_tensor(spec)} }}" for spec in model.inputs),
        *(f"output {{ {_tensor(spec)} {labels} }}" for spec in model.outputs),
        f'parameters {{ key: "kind" value {{ string_value: "{model.kind}" }} }}',
        "instance_group { count: 1 kind: KIND_CPU }",
    ]
    (path / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _tensor(spec: Spec) -> str:
    kind = {"BYTES": "STRING"}.get(spec.datatype, spec.datatype)
    return f'name: "{spec.name}" data_type: TYPE_{kind} dims: [{", ".join(map(str, spec.shape[1:]))}]'
