"""Which candidates to try: what the runtime's own defaults would do, presets for the operators a model has, and the
neighbors of the best so far. Nothing here knows a particular model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import onnx

from salver.builder.passes._int8_static import PASSING
from salver.core.model import Model

Recipe = tuple[dict[str, Any], ...]

_DENSE: Final = ("MatMul", "Gemm")
_CONV: Final = ("Conv", "ConvTranspose")
_LOOKUP: Final = ("Gather",)


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate to be made: its name, the passes and who proposed it."""

    name: str
    recipe: Recipe
    origin: str


def count_ops(model: Model) -> Counter[str]:
    """How many nodes of each operator type a model has, subgraphs included."""
    counts: Counter[str] = Counter()
    waiting = [onnx.load(model.path, load_external_data=False).graph]
    while waiting:
        for node in waiting.pop().node:
            counts[node.op_type] += 1
            waiting.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
    return counts


def step(name: str, **config: Any) -> dict[str, Any]:
    """One pass of a recipe as plain data."""
    return {"pass": name, "config": config}


MOVES: Final = {"openvino": step("openvino")}
"""Backend -> the pass that brings an ONNX model there. Nothing works on a model after it, so it comes last."""
FRAMEWORKS: Final = ("torch", "tensorflow", "jax", "litert")
"""Backends of frameworks whose importers keep the original beside the ONNX graph that they made of it."""
NATIVE: Final = step("native")
"""What brings the original back to the framework that made it."""

SLIM: Final = Proposal(name="onnxslim", recipe=(step("onnxslim"),), origin="preset")


def runtime_defaults() -> tuple[Proposal, ...]:
    """The two calls that most people make, as ONNX Runtime documents them: always tried, so that their verdicts can be
    read."""
    return (
        Proposal(
            name="runtime default: quantize_dynamic",
            recipe=(step("int8-dynamic", runtime_defaults=True),),
            origin="runtime-default",
        ),
        Proposal(
            name="runtime default: quantize_static",
            recipe=(step("int8-static", runtime_defaults=True),),
            origin="runtime-default",
        ),
    )


def presets(ops: Counter[str], backends: Sequence[str] = ()) -> Iterator[Proposal]:
    """Recipes for a model with these operators (type -> count), the most promising first.

    Args:
        backends: those that it may be moved to; what is not in `MOVES` is the framework that made it.
    """
    for backend in backends:
        yield Proposal(name=backend, recipe=(MOVES.get(backend, NATIVE),), origin="preset")
    # Preparation merges MatMul and Add into Gemm, so a model that has one of the two may come to have the other.
    dense = [*_DENSE] if any(ops[op] for op in _DENSE) else []
    conv = [op for op in _CONV if ops[op]]
    lookup = [op for op in _LOOKUP if ops[op]]
    passing = [op for op in PASSING if ops[op]]
    if conv or dense:
        for moved in moves(static([*conv, *dense, *passing], per_channel=True), backends):
            yield msgspec.structs.replace(moved, origin="preset")
    yield from _static_presets(conv, dense, lookup, passing)
    if dense or ops["LSTM"] or ops["Attention"]:
        types = [*dense, *(op for op in ("LSTM", "Attention") if ops[op])]
        yield _dynamic(types, per_channel=True)
        yield _dynamic(types, per_channel=False)
        if lookup:
            yield _dynamic([*types, *lookup], per_channel=True)
    for level in ("basic", "extended"):
        optimized = step("graph-optimize", level=level)
        yield Proposal(name=f"graph-optimize {level}", recipe=(optimized,), origin="preset")
    yield SLIM
    yield Proposal(name="weight-only int8", recipe=(step("weight-only"),), origin="preset")
    if dense:
        blocks = step("weight-only", method="blocks", bits=4, int8_compute=True)
        yield Proposal(name="weight-only int4 blocks, int8 compute", recipe=(blocks,), origin="preset")
    yield Proposal(name="fp16", recipe=(step("fp16"),), origin="preset")
    yield Proposal(name="bf16", recipe=(step("bf16"),), origin="preset")
    yield Proposal(name="prune-magnitude 50%", recipe=(step("prune-magnitude", sparsity=0.5),), origin="preset")


def _static_presets(conv: list[str], dense: list[str], lookup: list[str], passing: list[str]) -> Iterator[Proposal]:
    compute = [*conv, *dense]
    if not compute:
        return
    yield static([*compute, *passing], per_channel=False)
    yield static([*compute, *passing], per_channel=True)
    if passing:
        yield static(compute, per_channel=False)
    if lookup:
        yield static([*compute, *lookup, *passing], per_channel=False)
    if conv and dense:
        only_conv = static([*conv, *passing], per_channel=True)
        yield only_conv
        recipe = (*only_conv.recipe, step("weight-only"))
        yield Proposal(name=f"{only_conv.name}, weight-only int8", recipe=recipe, origin="preset")
        yield static([*dense, *passing], per_channel=False)


def static(op_types: list[str], **config: Any) -> Proposal:
    """A static int8 recipe, named after what distinguishes it: operators, granularity, and each setting that differs
    from the default. Operators that only hand 8-bit values on are named by ``alone`` where they are left out."""
    parts = ["int8-static", "+".join(op for op in op_types if op not in PASSING)]
    parts.append("per-channel" if config.get("per_channel") else "per-tensor")
    if not any(op in PASSING for op in op_types):
        parts.append("alone")
    for key, value in config.items():
        if key == "exclude_nodes":
            parts.append(f"without {len(value)} layer{'s' if len(value) > 1 else ''}")
        elif key != "per_channel":
            parts.append(f"{key.removesuffix('_type')} {value}")
    return Proposal(name=" ".join(parts), recipe=(step("int8-static", op_types=op_types, **config),), origin="preset")


def _dynamic(op_types: list[str], *, per_channel: bool) -> Proposal:
    how = "per-channel" if per_channel else "per-tensor"
    recipe = (step("int8-dynamic", op_types=op_types, per_channel=per_channel),)
    return Proposal(name=f"int8-dynamic {'+'.join(op_types)} {how}", recipe=recipe, origin="preset")


def is_moved(recipe: Recipe) -> bool:
    """Whether another backend runs what a recipe makes."""
    return bool(_split(recipe)[1])


def moves(proposal: Proposal, backends: Sequence[str]) -> Iterator[Proposal]:
    """The same on other backends; nothing for what has been moved already. A framework has the original alone."""
    if not is_moved(proposal.recipe):
        for backend in backends:
            if backend in MOVES:
                yield _refined(proposal, (MOVES[backend],))


def _split(recipe: Recipe) -> tuple[Recipe, Recipe]:
    """What is done to the graph, and how it is moved to another backend, if it is."""
    place = len(recipe) - (recipe[-1:] != () and recipe[-1] in (*MOVES.values(), NATIVE))
    return recipe[:place], recipe[place:]


def neighbors(recipe: Recipe) -> Iterator[Proposal]:
    """Recipes that differ from a static int8 one in one setting, on the same backend; nothing for other recipes."""
    made, moved = _split(recipe)
    if len(made) != 1 or made[0]["pass"] != "int8-static" or made[0]["config"].get("runtime_defaults"):
        return
    config = dict(made[0]["config"])
    op_types = config.pop("op_types")
    for key, values in _DIMENSIONS.items():
        for value in values:
            if config.get(key, values[0]) != value:
                changed = {**config, key: value}
                yield _refined(static(op_types, **changed), moved)
    for op in op_types if len(op_types) > 1 else ():
        if op not in PASSING:
            yield _refined(static([o for o in op_types if o != op], **config), moved)


def without_layers(recipe: Recipe, worst_first: list[str]) -> Iterator[Proposal]:
    """The same recipe leaving 1, 2, 4, ... of the layers that hurt most in floating point."""
    made, moved = _split(recipe)
    if len(made) != 1 or made[0]["pass"] != "int8-static":
        return
    config = dict(made[0]["config"])
    op_types = config.pop("op_types", None)
    config.pop("runtime_defaults", None)
    count = 1
    while count <= len(worst_first) // 2 and op_types:
        yield _refined(static(op_types, **{**config, "exclude_nodes": worst_first[:count]}), moved)
        count *= 2


def after_slimming(name: str, recipe: Recipe) -> Iterator[Proposal]:
    """The same recipe on the graph that onnxslim leaves; nothing where it begins with passes on the graph."""
    if recipe[0]["pass"] not in ("onnxslim", "graph-optimize", "native"):
        yield Proposal(name=f"onnxslim, {name}", recipe=(*SLIM.recipe, *recipe), origin="refined")


_DIMENSIONS: Final[dict[str, tuple[Any, ...]]] = {
    "calibration": ("minmax", "percentile", "entropy"),
    "per_channel": (False, True),
    "activation_type": ("uint8", "int8"),
}


def _refined(proposal: Proposal, moved: Recipe = ()) -> Proposal:
    """As a refinement of something, moved to another backend where that was."""
    name = ", ".join((proposal.name, *(item["pass"] for item in moved)))
    return Proposal(name=name, recipe=(*proposal.recipe, *moved), origin="refined")
