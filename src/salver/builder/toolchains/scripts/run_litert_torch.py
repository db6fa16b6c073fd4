"""PyTorch ExportedProgram -> TensorFlow Lite by litert-torch."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import litert_torch
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten


def convert(source: str, output: str) -> dict[str, str]:
    """Write ``output``, for one row and else the sizes of the program's example; gives library -> version."""
    program = torch.export.load(source)
    inputs, keywords = _one_row(program)
    litert_torch.convert(program.module(), inputs, sample_kwargs=keywords or None).export(output)
    return {"litert-torch": version("litert-torch"), "torch": torch.__version__}


def _one_row(program: torch.export.ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example, with one row where the number of rows is free."""
    given, structure = tree_flatten(program.example_inputs)
    shapes = {
        node.name: node.meta["val"].shape for node in program.graph.nodes if hasattr(node.meta.get("val"), "shape")
    }
    named = [shapes.get(name, ()) for name in program.graph_signature.user_inputs]
    rows = {str(shape[0]) for shape in named if shape and isinstance(shape[0], torch.SymInt)}
    for place, shape in enumerate(named):
        for axis, size in enumerate(shape):
            if str(size) in rows and isinstance(size, torch.SymInt):
                given[place] = given[place].narrow(axis, 0, 1)
    example: tuple[tuple[Any, ...], dict[str, Any]] = tree_unflatten(given, structure)
    return example
