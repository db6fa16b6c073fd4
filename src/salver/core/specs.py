"""Tensor specs as people write them: ``x:float32[batch,3,224,224]``."""

from __future__ import annotations

import re
from typing import Final

from salver.core.errors import InvalidArgument
from salver.core.tensors import NUMPY_DTYPES, TensorSpec

_SPEC: Final = re.compile(r"\s*(?P<name>[^\s\[\];]+):(?P<type>\w+)\s*\[(?P<shape>[^\[\]]*)\]\s*[;,]?")
_DIM: Final = re.compile(r"\??[A-Za-z_][\w./]*")
_DATATYPES: Final = {
    **{name.lower(): name for name in NUMPY_DTYPES},
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
    "half": "FP16",
    "float": "FP32",
    "double": "FP64",
    "int": "INT64",
    "string": "BYTES",
    "str": "BYTES",
}
_EXAMPLE: Final = "'x:float32[batch,3,224,224]', or several: 'ids:int64[batch,length]; mask:int64[batch,length]'"


def parse_inputs(text: str) -> tuple[TensorSpec, ...]:
    """Inputs from ``name:type[dim,dim]``, several with ``;`` between.

    A dimension is a size, a name (the same name, the same size), or ``?`` for one that may be anything. The first is
    called ``batch`` by custom: a leading ``?`` becomes that.

    Raises:
        InvalidArgument: naming the part that cannot be read, with an example.
    """
    specs: list[TensorSpec] = []
    position = 0
    while position < len(text.rstrip()):
        match = _SPEC.match(text, position)
        if match is None:
            raise InvalidArgument(f"input: cannot read '{text[position:].strip()}'; expected {_EXAMPLE}")
        specs.append(_spec(match["name"], match["type"], match["shape"]))
        position = match.end()
    names = [spec.name for spec in specs]
    if len(set(names)) != len(names):
        raise InvalidArgument(f"input: '{max(names, key=names.count)}' is given twice")
    if not specs:
        raise InvalidArgument(f"input: got nothing, expected {_EXAMPLE}")
    return tuple(specs)


def format_inputs(specs: tuple[TensorSpec, ...]) -> str:
    """What `parse_inputs` reads."""
    return "; ".join(f"{s.name}:{s.datatype.lower()}[{','.join(str(d) for d in s.shape)}]" for s in specs)


def _spec(name: str, kind: str, shape: str) -> TensorSpec:
    if kind.lower() not in _DATATYPES:
        raise InvalidArgument(f"input '{name}': unknown type '{kind}'; valid: {', '.join(sorted(_DATATYPES))}")
    dims = [dim.strip() for dim in shape.split(",")] if shape.strip() else []
    return TensorSpec(
        name=name,
        datatype=_DATATYPES[kind.lower()],
        shape=tuple(_dim(name, dim, axis) for axis, dim in enumerate(dims)),
    )


def _dim(name: str, text: str, axis: int) -> int | str:
    if text in ("?", "-1", "None"):
        return "batch" if axis == 0 else f"?{name}_{axis}"
    if text.isdecimal() and int(text) > 0:
        return int(text)
    if _DIM.fullmatch(text):
        return text
    raise InvalidArgument(f"input '{name}': dimension '{text}' is neither a size above 0, nor a name, nor '?'")
