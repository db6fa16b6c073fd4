"""The models that the cases ask, written in the layout of a server's repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from salver.core.errors import UnknownName
from salver.core.registry import load
from salver.testing.oip.models.specs import MODELS

LAYOUTS: Final = {
    "salver": "salver.testing.oip.models._onnx:write",
    "triton": "salver.testing.oip.models._triton:write",
    "mlserver": "salver.testing.oip.models._mlserver:write",
}


def write(folder: Path, layout: str) -> None:
    """Write all models.

    Args:
        layout: ``salver`` (ONNX files), ``triton`` (Python backend) or ``mlserver`` (a runtime of its own).

    Raises:
        UnknownName: no such layout.
    """
    if layout not in LAYOUTS:
        raise UnknownName("layout", layout, LAYOUTS)
    folder.mkdir(parents=True, exist_ok=True)
    writer: Any = load(LAYOUTS[layout])
    for model in MODELS:
        writer(folder, model)
