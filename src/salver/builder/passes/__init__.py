"""Passes: `Model` -> `Model`, one step of making a model smaller or faster each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from salver.builder.passes.base import Pass, PassContext
from salver.core.registry import Family

BUILTIN: Final = {
    "graph-optimize": "salver.builder.passes._graph_optimize:GraphOptimizePass",
    "onnxslim": "salver.builder.passes._onnxslim:OnnxslimPass",
    "fp16": "salver.builder.passes._fp16:Fp16Pass",
    "bf16": "salver.builder.passes._bf16:Bf16Pass",
    "int8-dynamic": "salver.builder.passes._int8_dynamic:Int8DynamicPass",
    "int8-static": "salver.builder.passes._int8_static:Int8StaticPass",
    "weight-only": "salver.builder.passes._weight_only:WeightOnlyPass",
    "native": "salver.builder.passes._native:NativePass",
    "openvino": "salver.builder.passes._openvino:OpenvinoPass",
    "prune-magnitude": "salver.builder.passes._prune_magnitude:PruneMagnitudePass",
}

PASSES: Final[Family[type[Pass[Any]]]] = Family("passes", BUILTIN)

__all__ = ["BUILTIN", "PASSES", "Pass", "PassContext", "change_numbers", "make_pass"]


def make_pass(name: str, config: dict[str, Any] | None = None) -> Pass[Any]:
    """The pass of that name with a config given as plain data; fields left out have their defaults.

    Raises:
        UnknownName: no such pass, or no such field.
        InvalidArgument: a value of the wrong type or out of range.
        MissingExtra: the pass needs an optional library.
    """
    member = PASSES.get(name)
    return member(member.Config.from_data(config or {}))


def change_numbers(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the passes of these names that are meant to change numbers, each once."""
    return tuple(dict.fromkeys(name for name in names if PASSES.get(name).changes_numbers))
