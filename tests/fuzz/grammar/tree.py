"""JSON as a tree of which a few places are spoiled."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from tests.fuzz.grammar.raw import number, spoil, text

KEYS = ("x", "y", "a", "b", "id", "name", "shape", "datatype", "data", "parameters", "inputs", "outputs", "instances",
        "params", "dataframe_split", "dataframe_records", "columns", "index", "binary_data_size", "binary_data",
        "timeout", "classification", "priority", "sequence_id", "sequence_start", "sequence_end", "b64",
        "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset", "signature_name", "label", "version",
        "binary_data_output", "examples", "context", "config", "file:1/model.onnx", "unload_dependents",
        "ready")  # fmt: skip
_DATATYPES = ("BOOL", "UINT8", "INT64", "FP16", "BF16", "FP32", "FP64", "BYTES", "FP8", "")


def leaf(random: Random) -> Any:
    """A value without members."""
    kind = random.randrange(9)
    if kind == 0:
        return None
    if kind == 1:
        return random.random() < 0.5
    if kind == 2:
        return random.randrange(-2, 6)
    if kind == 3:
        return number(random) * random.choice((1, -1))
    if kind == 4:
        return random.choice((0.5, -0.0, 1e-320, 3.4e38, 3.5e38, 1e308, float("nan"), float("inf"), -float("inf")))
    if kind == 5:
        return random.choice(_DATATYPES)
    if kind == 6:
        return random.choice(KEYS)
    return text(random)


def value(random: Random, depth: int = 3) -> Any:
    """Any value."""
    kind = random.random()
    if depth == 0 or kind < 0.6:
        return leaf(random)
    if kind < 0.8:
        return [value(random, depth - 1) for _ in range(random.randrange(4))]
    return {random.choice(KEYS): value(random, depth - 1) for _ in range(random.randrange(4))}


def change(tree: Any, random: Random) -> Any:
    """Spoil one place of a tree, which is changed in place where it can be."""
    if not isinstance(tree, dict | list) or not tree:
        return value(random)
    node, key = tree, None
    parent: Any = None
    while isinstance(node, dict | list) and node and (parent is None or random.random() < 0.8):
        parent = node
        key = random.choice(list(node)) if isinstance(node, dict) else random.randrange(len(node))
        node = node[key]
    kind = random.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        parent[key] = [node]
    elif kind == 2 and isinstance(parent, list):
        parent[key:key] = [node] * random.choice((1, 1, 2, 20))
    elif kind == 2:
        parent[random.choice(KEYS)] = node
    elif kind == 3 and isinstance(parent, dict):
        parent[random.choice(KEYS)] = value(random)
    elif kind == 4 and isinstance(node, int | float) and not isinstance(node, bool):
        parent[key] = node + random.choice((1, -1, 0.5))
    else:
        parent[key] = value(random)
    return tree


def write(tree: Any, random: Random) -> bytes:
    """A tree as bytes, in one of the ways there are."""
    kind = random.random()
    if kind < 0.8:
        return json.dumps(tree, separators=(",", ":")).encode()
    if kind < 0.9:
        return json.dumps(tree, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")
    data = json.dumps(tree).encode()
    if kind < 0.94:  # a key twice, or a number in another spelling
        return data.replace(b"{", b'{"id":1,', 1) if random.random() < 0.5 else data.replace(b"0", b"0e0", 1)
    return spoil(data, random)


def make(base: bytes, random: Random) -> bytes:
    """A document that is `base` but for some places."""
    if random.random() < 0.15:
        return base
    tree = json.loads(base)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        tree = change(tree, random)
    if random.random() < 0.01:
        return b"[" * random.randrange(1, 200) + write(tree, random)
    return write(tree, random)


def mutate(data: bytes, random: Random) -> bytes:
    """Spoil a document; its bytes, where it is none."""
    if random.random() < 0.8:
        try:
            return write(change(json.loads(data), random), random)
        except (ValueError, RecursionError):
            pass
    return spoil(data, random)
