"""PyTorch programs of two kinds, ExportedProgram and TorchScript, as functions of a list of tensors."""

from __future__ import annotations

import io
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np
import torch
from torch.export.graph_signature import ConstantArgument, InputKind, SymIntArgument, TensorArgument
from torch.utils import _pytree as pytree

from salver.backends.native import read_blob
from salver.backends.torch_files import PT2, TORCHSCRIPT, check_program, read_archive
from salver.core.arrays import Array
from salver.core.errors import CorruptArtifact, InvalidArgument, NotFound, PermissionDenied, SalverError, Unimplemented
from salver.core.model import Blob
from salver.core.tensors import Signature, TensorSpec

DATATYPES: Final = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
SIGNATURE_FILE: Final = "salver.json"
"""Extra file in which Salver keeps a program's signature."""

Function = Callable[[Sequence[Any]], list[Any]]


class Program(msgspec.Struct, frozen=True):
    """A loaded program.

    Args:
        kind: `PT2` or `TORCHSCRIPT`.
        object: the ``torch.export.ExportedProgram`` or ``torch.jit.ScriptModule``.
        function: runs it on tensors in the order of its inputs, and gives the tensors of its outputs in order.
        signature: as its file tells it; None where that does not tell.
    """

    kind: str
    object: Any
    function: Function
    signature: Signature | None


def load_program(blob: Blob, device: str = "cpu") -> Program:
    """Load a program after a look at what is in it (see `torch_files`).

    Raises:
        NotFound, CorruptArtifact, PermissionDenied, Unimplemented: as they say.
    """
    if not blob.path.is_file():
        raise NotFound(f"no such model file: '{blob.path}'")
    with blob.path.open("rb") if blob.is_whole_file else io.BytesIO(read_blob(blob)) as file:
        archive = read_archive(file, blob.name)
        if archive.kind not in (PT2, TORCHSCRIPT):
            raise CorruptArtifact(f"'{blob.name}' holds weights, not a program; expected a .pt2 or TorchScript file")
        pickles = check_program(file, archive, blob.name)
        _check_pickles(file, pickles, blob.name)
        with quiet(), _loading(blob.name):
            return _load_pt2(file, device) if archive.kind == PT2 else _load_torchscript(file, blob, device)


def _check_pickles(file: IO[bytes], members: Sequence[str], name: str) -> None:
    with zipfile.ZipFile(file) as opened:
        for member in members:
            try:
                torch.load(io.BytesIO(opened.read(member)), map_location="cpu", weights_only=True)
            except Exception as error:  # boundary: an untrusted file, read by a foreign library
                raise PermissionDenied(
                    f"'{name}': its member '{member}' is a pickle of more than tensors; such a program is not loaded "
                    f"({_first_line(error)})"
                ) from error
    file.seek(0)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except SalverError:
        raise
    except Exception as error:  # boundary: an untrusted file, read by a foreign library
        text = _first_line(error)
        unknown = re.search(r"Unknown builtin op: (\S+?)\.?$|operator (\S+) does not exist", text)
        if unknown:
            operator = unknown[1] or unknown[2]
            raise Unimplemented(
                f"'{name}' uses operator '{operator}', which this PyTorch ({torch.__version__}) lacks"
            ) from error
        raise CorruptArtifact(f"'{name}' cannot be loaded by PyTorch {torch.__version__}: {text}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch's warnings and log lines away from the user: what matters of them arrives as errors."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- ExportedProgram


def _load_pt2(file: IO[bytes], device: str) -> Program:
    extra = {SIGNATURE_FILE: ""}
    program = torch.export.load(file, extra_files=extra)
    if device != "cpu":
        program = torch.export.passes.move_to_device_pass(program, device)
    return program_of(program, _decode(extra[SIGNATURE_FILE]))


def program_of(program: Any, signature: Signature | None = None) -> Program:
    """An ExportedProgram as a function. Its guards are checked at every call."""
    module = program.module()

    def run(tensors: Sequence[Any]) -> list[Any]:
        args, kwargs = arguments_of(program, tensors)
        return leaves(module(*args, **kwargs))

    return Program(PT2, program, run, signature or signature_of(program))


def arguments_of(program: Any, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tensors in order as the arguments that an ExportedProgram takes."""
    given = iter(tensors)
    inputs = (s.arg for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT)
    args, kwargs = pytree.tree_unflatten([_argument(arg, given) for arg in inputs], program.call_spec.in_spec)
    return args, kwargs


def _argument(arg: Any, given: Iterator[Any]) -> Any:
    if isinstance(arg, ConstantArgument):
        return arg.value
    return next(given).item() if isinstance(arg, SymIntArgument) else next(given)


def signature_of(program: Any) -> Signature:
    """What an ExportedProgram says of its inputs and outputs; its symbols are named where they first stand.

    Raises:
        Unimplemented: an input or output is of a type Salver does not carry.
    """
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
    dims = _Dimensions()
    inputs = []
    for spec in program.graph_signature.input_specs:
        if spec.kind != InputKind.USER_INPUT or isinstance(spec.arg, ConstantArgument):
            continue
        if not isinstance(spec.arg, TensorArgument | SymIntArgument):
            raise Unimplemented(f"input '{spec.arg.name}' is a {type(spec.arg).__name__}; Salver serves tensors")
        inputs.append(_spec(spec.arg.name, nodes[spec.arg.name], dims))
    values = next(node for node in program.graph.nodes if node.op == "output").args[0]
    user_outputs = [s.arg.name for s in program.graph_signature.output_specs if s.kind.name == "USER_OUTPUT"]
    mine = list(values)[len(values) - len(user_outputs) :]
    tree = pytree.tree_unflatten([_value(v) for v in mine], program.call_spec.out_spec)
    outputs = [_spec(name, value, dims) for name, value in name_outputs(tree)]
    return Signature(inputs=tuple(inputs), outputs=tuple(outputs))


def _value(node: Any) -> Any:
    return node.meta["val"] if isinstance(node, torch.fx.Node) else node


class _Dimensions:
    """Names for the symbols of a graph."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def name(self, size: Any, tensor: str, axis: int) -> int | str:
        if isinstance(size, int):
            return size
        expression = str(size)
        if not re.fullmatch(r"[su]\d+", expression):
            return f"?{tensor}_{axis}"
        fresh = "batch" if axis == 0 and "batch" not in self._names.values() else f"{tensor}_{axis}"
        return self._names.setdefault(expression, fresh)


def _spec(name: str, value: Any, dims: _Dimensions) -> TensorSpec:
    if not isinstance(value, torch.Tensor):
        kind = "BOOL" if isinstance(value, bool | torch.SymBool) else "FP32"
        kind = "INT64" if kind == "FP32" and isinstance(value, int | torch.SymInt) else kind
        return TensorSpec(name=name, datatype=kind, shape=())
    if value.dtype not in DATATYPES:
        raise Unimplemented(f"'{name}' is a tensor of {value.dtype}; Salver serves {', '.join(DATATYPES.values())}")
    shape = tuple(dims.name(size, name, axis) for axis, size in enumerate(value.shape))
    return TensorSpec(name=name, datatype=DATATYPES[value.dtype], shape=shape)


# --- TorchScript


def _load_torchscript(file: IO[bytes], blob: Blob, device: str) -> Program:
    extra = {SIGNATURE_FILE: ""}
    source: Any = str(blob.path) if blob.is_whole_file else file
    module = torch.jit.load(source, map_location=device, _extra_files=extra)
    module.eval()
    return script_of(module, _decode(extra[SIGNATURE_FILE]))


def script_of(module: Any, signature: Signature | None = None) -> Program:
    """A ScriptModule as a function."""
    kinds = [argument.type.kind() for argument in module.forward.schema.arguments[1:]]

    def run(tensors: Sequence[Any]) -> list[Any]:
        given = zip(tensors, kinds, strict=False)
        return leaves(module(*(t.item() if kind in _SCALARS else t for t, kind in given)))

    return Program(TORCHSCRIPT, module, run, signature)


_SCALARS: Final = ("IntType", "FloatType", "BoolType", "NumberType")


# --- values


def leaves(value: Any) -> list[Any]:
    """The tensors of an output, in order; numbers become tensors, None is left out."""
    return [leaf for _, leaf in name_outputs(value)]


def name_outputs(value: Any) -> list[tuple[str, Any]]:
    """The leaves of an output by name: ``output``, ``output_0``, a key of a dictionary, ``key_0`` further in."""
    found = []
    for path, leaf in pytree.tree_flatten_with_path(value)[0]:
        if leaf is None:
            continue
        words = [str(getattr(step, "key", getattr(step, "idx", getattr(step, "name", "")))) for step in path]
        name = "_".join(words) or "output"
        found.append((f"output_{name}" if name[:1].isdigit() else name, leaf))
    return [(name, leaf if hasattr(leaf, "dtype") else _number(leaf)) for name, leaf in found]


def _number(value: Any) -> Any:
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return value
    if not isinstance(value, bool | int | float):
        raise Unimplemented(f"the model gives a {type(value).__name__}; Salver serves tensors and numbers")
    return torch.tensor(value)


def to_tensor(array: Array, datatype: str) -> Any:
    """A tensor with a copy of an array; programs may write into their inputs."""
    tensor = torch.from_numpy(array.copy())
    return tensor.view(torch.bfloat16) if datatype == "BF16" else tensor


def to_array(tensor: Any) -> Array:
    """An array of its own with the values of a tensor."""
    tensor = tensor.detach().cpu()
    if tensor.is_quantized or tensor.layout != torch.strided:
        tensor = tensor.dequantize() if tensor.is_quantized else tensor.to_dense()
    if tensor.dtype not in DATATYPES:
        raise InvalidArgument(f"a tensor of {tensor.dtype} cannot be carried; valid: {', '.join(DATATYPES.values())}")
    bits = tensor.contiguous().view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    return np.array(bits.resolve_conj().resolve_neg().numpy(), order="C", copy=True)


def save_pt2(program: Any, signature: Signature, path: Path) -> None:
    """Write an ExportedProgram with its signature, and without the lines of source code it came from."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    with quiet():
        buffer = io.BytesIO()  # on a full disk PyTorch's own writer ends the process
        torch.export.save(program, buffer, extra_files={SIGNATURE_FILE: _encode(signature)})
    path.write_bytes(buffer.getbuffer())


def save_torchscript(module: Any, signature: Signature, path: Path) -> None:
    """Write a ScriptModule with its signature."""
    with quiet():
        buffer = io.BytesIO()  # on a full disk PyTorch's own writer ends the process
        torch.jit.save(module, buffer, _extra_files={SIGNATURE_FILE: _encode(signature)})
    path.write_bytes(buffer.getbuffer())


def _encode(signature: Signature) -> str:
    return msgspec.json.encode(signature).decode()


def _decode(text: str | bytes | Mapping[str, Any]) -> Signature | None:
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=Signature)  # type: ignore[arg-type]  # str or bytes, by PyTorch's mood
    except (msgspec.DecodeError, InvalidArgument):
        return None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or ['(no message)'])[0][:300]}"
