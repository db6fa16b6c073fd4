"""PyTorch ExportedProgram -> TensorFlow Lite by litert-torch."""

from __future__ import annotations

from importlib.metadata import version

import litert_torch
import torch


def convert(source: str, output: str) -> dict[str, str]:
    """Write ``output``; gives library -> version."""
    program = torch.export.load(source)
    inputs, keywords = program.example_inputs
    litert_torch.convert(program.module(), inputs, sample_kwargs=keywords or None).export(output)
    return {"litert-torch": version("litert-torch"), "torch": torch.__version__}
