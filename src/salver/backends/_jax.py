"""JAX behind a `Session`: functions that `jax.export` wrote; the only file that imports jax."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from salver.backends.base import Backend, Session, SessionOptions
from salver.backends.native import NativeSession, read_blob
from salver.core.arrays import Array
from salver.core.errors import (
    CorruptArtifact,
    Internal,
    InvalidArgument,
    MissingExtra,
    SalverError,
    Unimplemented,
    UnknownName,
)
from salver.core.model import Blob, Model
from salver.core.tensors import NUMPY_DTYPES, Signature, TensorSpec, to_datatype

try:
    import jax
    import jax.export
    import jax.numpy as jnp
    import jaxlib
except ImportError as missing:
    raise MissingExtra("running a JAX model", str(missing.name), "jax") from None

_PLATFORMS: Final = ("cpu", "cuda", "rocm", "tpu")
_PROVIDERS: Final = {"gpu": "cuda"}
_SYMBOL: Final = re.compile(r"[A-Za-z_]\w*")
_ERRORS: Final = (ValueError, TypeError, RuntimeError, KeyError, IndexError, NotImplementedError, AttributeError)
"""What JAX raises about functions and files it cannot take."""

Function = Callable[..., Any]


class JaxBackend(Backend):
    """Runs what `jax.export` wrote (https://docs.jax.dev/en/latest/export/export.html) by XLA, which compiles once for
    each new shape. XLA has one pool of threads in a process: the first session's count stands."""

    name = "jax"
    formats = ("stablehlo",)
    isolated = True

    def versions(self) -> dict[str, str]:
        return {"jax": jax.__version__, "jaxlib": jaxlib.__version__}

    def providers(self) -> tuple[str, ...]:
        default = jax.default_backend()
        return tuple(dict.fromkeys((_PROVIDERS.get(default, default), "cpu")))

    def load(self, model: Model, options: SessionOptions) -> Session:
        os.environ["PJRT_NPROC"] = str(options.threads)  # read once, when XLA makes its pool
        present = self.providers()
        if options.provider not in ("auto", *present):
            raise UnknownName("execution provider", options.provider, ("auto", *present))
        name = present[0] if options.provider == "auto" else options.provider
        exported = _deserialize(read_blob(model.blobs[0]), model.blobs[0].name)
        if name not in exported.platforms:
            raise Unimplemented(
                f"'{model.blobs[0].name}' was exported for {', '.join(exported.platforms)}, and not for {name}"
            )
        device = jax.devices("gpu" if name in ("cuda", "rocm") else name)[0]
        call = jax.jit(exported.call)
        names = _in_order(exported, model)
        return NativeSession(model.signature, lambda given: _run(call, exported, names, given, device))

    def describe(self, blob: Blob) -> Signature:
        return read_signature(_deserialize(read_blob(blob), blob.name))


def export(function: Function, inputs: Sequence[TensorSpec]) -> bytes:
    """Export a function of arrays, for every platform on which it lowers, else for the one that is here.

    Args:
        function: takes the inputs by position; gives an array, or a tuple, list or dictionary of arrays.
        inputs: what it takes; dimensions that are named may have any size.

    Raises:
        Unimplemented: the function cannot be traced with these inputs; in JAX's words, with the user's own line.
    """
    names = [spec.name for spec in inputs]

    def by_name(given: dict[str, Any]) -> dict[str, Any]:
        return name_outputs(function(*(given[name] for name in names)))

    # Where in the user's files an operator stands is nobody's business, and differs with who calls.
    with jax.enable_x64(True), _setting("jax_traceback_in_locations_limit", 0):
        arguments = _arguments(inputs)
        jitted = jax.jit(by_name)
        for platforms in (_PLATFORMS, None):
            try:
                exported = jax.export.export(jitted, platforms=platforms)(arguments)
                return bytes(exported.serialize())
            except _ERRORS as error:
                if platforms is None:
                    raise _refused(error) from error
    raise Internal("unreachable")


def run_function(function: Function, inputs: Sequence[TensorSpec]) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """Run a function as JAX itself does, operator by operator."""

    def run(given: Mapping[str, Array]) -> dict[str, Array]:
        try:
            with jax.enable_x64(True), jax.disable_jit():
                found = name_outputs(function(*(_to_jax(given[spec.name], spec.datatype) for spec in inputs)))
        except _ERRORS as error:
            raise InvalidArgument(f"the function refused its inputs: {_line(error)}") from error
        return {name: _to_numpy(value) for name, value in found.items()}

    return run


@contextmanager
def _setting(name: str, value: Any) -> Iterator[None]:
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def read_signature(exported: Any) -> Signature:
    """Inputs and outputs of an exported function: by the keys of a dictionary, else by their position."""
    inputs = _named(exported.in_tree, exported.in_avals, "input")
    outputs = _named(exported.out_tree, exported.out_avals, "output")
    return Signature(inputs=inputs, outputs=outputs)


def name_outputs(found: Any) -> dict[str, Any]:
    """Outputs by name: their keys in a dictionary, ``output`` of one array, ``output_0`` and so on of several."""
    if isinstance(found, Mapping):
        return {str(name): value for name, value in found.items()}
    if isinstance(found, tuple | list):
        return {f"output_{i}": value for i, value in enumerate(found)}
    return {"output": found}


def described_inputs(inputs: Sequence[TensorSpec]) -> list[Any]:
    """Shapes and types of inputs, with the names of those dimensions that have any."""
    return [jax.ShapeDtypeStruct(tuple(spec.shape), _dtype(spec)) for spec in inputs]


def _arguments(inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    scope = jax.export.SymbolicScope()
    return {
        spec.name: jax.ShapeDtypeStruct(
            jax.export.symbolic_shape(", ".join(str(d).lstrip("?") for d in spec.shape), scope=scope), _dtype(spec)
        )
        for spec in inputs
    }


def _dtype(spec: TensorSpec) -> Any:
    if spec.datatype == "BYTES":
        raise Unimplemented(f"input '{spec.name}': JAX has no strings")
    return jnp.bfloat16 if spec.datatype == "BF16" else spec.dtype


def _in_order(exported: Any, model: Model) -> tuple[str, ...]:
    """The model's names for the file's inputs, in the file's order: a dictionary has an order of its own."""
    own = tuple(spec.name for spec in read_signature(exported).inputs)
    names = tuple(spec.name for spec in model.signature.inputs)
    return own if set(own) == set(names) else names


def _deserialize(data: bytes, name: str) -> Any:
    if not data:
        raise CorruptArtifact(f"'{name}' is empty")
    try:
        return jax.export.deserialize(bytearray(data))
    except Exception as error:  # boundary: a file from anywhere, read by a foreign library
        raise CorruptArtifact(f"'{name}' is nothing that jax.export wrote, or it is damaged: {_line(error)}") from error


def _run(
    call: Function, exported: Any, names: tuple[str, ...], given: Mapping[str, Array], device: Any
) -> dict[str, Array]:
    flat = [
        jax.device_put(_to_jax(given[name], _datatype(aval.dtype)), device)
        for name, aval in zip(names, exported.in_avals, strict=True)
    ]
    arguments, keywords = jax.tree_util.tree_unflatten(exported.in_tree, flat)
    with jax.enable_x64(True):
        found = call(*arguments, **keywords)
    values = jax.tree_util.tree_leaves(found)
    specs = _named(exported.out_tree, exported.out_avals, "output")
    return {spec.name: _to_numpy(value) for spec, value in zip(specs, values, strict=True)}


def _to_jax(array: Array, datatype: str) -> Any:
    with jax.enable_x64(True):
        return jnp.asarray(array.view(jnp.bfloat16) if datatype == "BF16" else array)


def _to_numpy(value: Any) -> Array:
    array = np.asarray(value)
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _datatype(dtype: Any) -> str:
    name = np.dtype(dtype).name
    try:
        return "BF16" if name == "bfloat16" else to_datatype(np.dtype(dtype))
    except SalverError:
        raise Unimplemented(f"type {name}: Salver serves tensors of {', '.join(NUMPY_DTYPES)}") from None


def _named(tree: Any, avals: Sequence[Any], kind: str) -> tuple[TensorSpec, ...]:
    """Specs with the last key of each place in the tree as its name, where those are different."""
    numbers = jax.tree_util.tree_unflatten(tree, range(len(avals)))
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(numbers)[0]]
    keys = [str(getattr(path[-1], "key", "")) if path else "" for path in paths]
    if not all(keys) or len(set(keys)) != len(keys) or all(key.isdecimal() for key in keys):
        keys = [kind if len(avals) == 1 else f"{kind}_{i}" for i in range(len(avals))]
    return tuple(
        TensorSpec(name=name, datatype=_datatype(aval.dtype), shape=_shape(name, aval.shape))
        for name, aval in zip(keys, avals, strict=True)
    )


def _shape(name: str, shape: Sequence[Any]) -> tuple[int | str, ...]:
    """Sizes; names of symbolic dimensions; what is computed from them stands for itself."""
    dims: list[int | str] = []
    for axis, dim in enumerate(shape):
        text = str(dim)
        dims.append(int(dim) if isinstance(dim, int) else text if _SYMBOL.fullmatch(text) else f"?{name}_{axis}")
    return tuple(dims)


def _refused(error: Exception) -> SalverError:
    return Unimplemented(
        f"JAX cannot export the function with these inputs: {_line(error)}. Sizes that a branch depends on must be "
        "numbers: give them in --input, as 'x:float32[batch,128]'"
    )


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:500]
