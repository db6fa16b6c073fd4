"""What a user may call a PyTorch model, opened: a program file, a module in memory, or a class with its weights."""

from __future__ import annotations

import copy
import hashlib
import inspect
import pickle
import re
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import safetensors.torch
import torch

from salver.backends.torch_files import PT2, TORCHSCRIPT, WEIGHTS, read_archive
from salver.backends.torch_programs import load_program, quiet, signature_of
from salver.builder.importers.base import ImportOptions
from salver.core.errors import CorruptArtifact, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from salver.core.model import Blob, Step, digest_file
from salver.core.tensors import Signature

_CHECKPOINT_KEYS: Final = ("state_dict", "model_state_dict", "model", "weights")
_WRAPPERS: Final = ("module.", "_orig_mod.", "model.")
_MOST_NAMED: Final = 5
_UNSAFE: Final = re.compile(r"GLOBAL|Unsupported (class|global)")


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """An opened source.

    Args:
        kind: `PT2`, `TORCHSCRIPT`, or ``module``.
        module: what is called: a module in evaluation mode, on the CPU.
        program: the ExportedProgram, of kind `PT2`.
        signature: what the source says of its inputs and outputs; None where it does not.
        step: the source, for the lineage.
        file: the program file, if it came as one.
    """

    kind: str
    module: Any
    step: Step
    program: Any = None
    signature: Signature | None = None
    file: Path | None = None


def open_source(source: Any, options: ImportOptions) -> Source:
    """Open a path, a module, a module class, a ScriptModule or an ExportedProgram.

    Raises:
        NotFound, CorruptArtifact, PermissionDenied, Unimplemented: as they say.
        InvalidArgument: weights without code, or weights that do not fit the code.
        FailedPrecondition: the user's class could not be made.
    """
    if isinstance(source, Path):
        return _open_file(source, options)
    if isinstance(source, torch.export.ExportedProgram):
        return _of_program(source, Step(action="source", name="ExportedProgram", output_digest=_digest(source, "")))
    if isinstance(source, type):
        source = _make(source)
    weights = Path(options.weights) if options.weights else None
    module = source if isinstance(source, torch.jit.ScriptModule) else _settled(source, copied=weights is not None)
    if weights is not None:
        load_weights(module, weights)
    name = f"{type(source).__module__}:{type(source).__qualname__}"
    step = Step(action="source", name=name, output_digest=_digest(module, repr(module)))
    kind = TORCHSCRIPT if isinstance(module, torch.jit.ScriptModule) else "module"
    return Source(kind=kind, module=module.eval() if kind == TORCHSCRIPT else module, step=step)


def _open_file(path: Path, options: ImportOptions) -> Source:
    if not path.is_file():
        raise NotFound(f"no such model file: '{path}'")
    if path.suffix.lower() == ".safetensors":
        kind = WEIGHTS
    else:
        with path.open("rb") as file:
            kind = read_archive(file, path.name).kind
    if kind == WEIGHTS:
        raise InvalidArgument(_weights_alone(path))
    if options.weights:
        raise InvalidArgument(
            f"'{path}' is a program and has its weights; weights are for a source that is code: module:factory"
        )
    program = load_program(Blob.of(path))
    step = Step(action="source", name=path.name, output_digest=digest_file(path))
    if kind == TORCHSCRIPT:
        return Source(kind=kind, module=program.object, signature=program.signature, step=step, file=path)
    opened = _of_program(program.object, step)
    return msgspec.structs.replace(opened, signature=program.signature, file=path)


def _of_program(program: Any, step: Step) -> Source:
    return Source(kind=PT2, module=program.module(), program=program, signature=signature_of(program), step=step)


def _weights_alone(path: Path) -> str:
    how = (
        f"give the code that makes the module, and this file as its weights: module:factory --weights {path.name}, "
        "where factory is a function without arguments that returns the module, or the module's class"
    )
    try:
        _read_weights(path)
    except PermissionDenied:
        return (
            f"'{path}' is a pickled Python object, which Salver never loads, because that runs code from the file. "
            f"Save its state_dict() and {how}; or save it whole with torch.export.save"
        )
    return f"'{path}' holds weights without code: {how}"


def _make(kind: type) -> Any:
    try:
        return kind()
    except Exception as error:  # boundary: the user's own code
        wanted = [n for n, p in inspect.signature(kind).parameters.items() if p.default is inspect.Parameter.empty]
        hint = f"; it wants {', '.join(wanted)}: write a function without arguments that makes it" if wanted else ""
        raise FailedPrecondition(
            f"'{kind.__module__}:{kind.__qualname__}' raised {type(error).__name__}: {error}{hint}"
        ) from error


def _settled(module: Any, *, copied: bool) -> Any:
    """The module in evaluation mode on the CPU, as a copy: exporters change what they export."""
    try:
        settled = copy.deepcopy(module)
    except (RuntimeError, TypeError, pickle.PicklingError):
        if copied or module.training or any(p.device.type != "cpu" for p in module.parameters()):
            raise InvalidArgument(
                f"{type(module).__name__} cannot be copied, so it is imported as it is: call .cpu().eval() on it, load "
                "its weights, and import it again"
            ) from None
        return module
    return settled.cpu().eval()


def _digest(module: Any, described: str) -> str:
    """Digest of a module in memory: what it prints as, and its parameters and buffers."""
    sha = hashlib.sha256(described.encode())
    state = module.state_dict() if callable(getattr(module, "state_dict", None)) else module.state_dict
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            sha.update(np.asarray(flat.view(torch.uint8)).data if flat.numel() else b"")
    return f"sha256:{sha.hexdigest()}"


# --- weights


def load_weights(module: Any, path: Path) -> None:
    """Load a safetensors file or a state dict, strictly. Wrappers' prefixes that all names share are taken off, and a
    training checkpoint's ``state_dict`` is taken out.

    Raises:
        NotFound, CorruptArtifact: as they say.
        PermissionDenied: the file pickles more than tensors.
        InvalidArgument: names or shapes do not fit; they are listed.
    """
    state = _strip(_read_weights(path), set(module.state_dict()))
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        shapes = [line.strip() for line in str(error).splitlines()[1:]][:_MOST_NAMED]
        raise InvalidArgument(f"'{path}' does not fit {type(module).__name__}: {' '.join(shapes)}") from None
    tied = _tied(module)
    missing = [name for name in missing if not tied.get(name, frozenset()) & set(state)]
    own = dict(module.named_buffers())
    unexpected = [name for name in unexpected if name not in own or not _same(own[name], state[name])]
    if missing or unexpected:
        parts = [
            f"{what} {', '.join(names[:_MOST_NAMED])}{f' and {len(names) - _MOST_NAMED} more' * (len(names) > 5)}"
            for what, names in (("it lacks", missing), ("the module has no", list(unexpected)))
            if names
        ]
        raise InvalidArgument(f"'{path}' does not fit {type(module).__name__}: {'; '.join(parts)}")


def _same(own: Any, given: Any) -> bool:
    """Whether a file holds what the module makes itself, such as the numbers of places that older versions saved."""
    return bool(own.dtype == given.dtype and torch.equal(own, given))


def _tied(module: Any) -> dict[str, frozenset[str]]:
    """Name -> all names of the same tensor; safetensors keeps one of them."""
    groups: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return {name: frozenset(names) for names in groups.values() for name in names}


def _read_weights(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotFound(f"no such file of weights: '{path}'")
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    try:
        with quiet():
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # boundary: an untrusted file, read by a foreign library
        if isinstance(error, pickle.UnpicklingError) and _UNSAFE.search(str(error)):
            raise PermissionDenied(
                f"'{path}' pickles more than tensors, and loading that would run code from the file. Save the module's "
                "state_dict() alone, or as safetensors"
            ) from error
        raise CorruptArtifact(f"'{path}' is not a file of weights, or it is damaged: {_first_line(error)}") from error
    found = _state_in(loaded)
    if found is None:
        raise InvalidArgument(f"'{path}' holds no state dict: a {type(loaded).__name__} without named tensors")
    return found


def _state_in(loaded: Any) -> dict[str, Any] | None:
    if not isinstance(loaded, dict):
        return None
    for key in _CHECKPOINT_KEYS:
        if isinstance(loaded.get(key), dict):
            return _state_in(loaded[key])
    return loaded if any(isinstance(v, torch.Tensor) for v in loaded.values()) else None


def _strip(state: dict[str, Any], wanted: set[str]) -> dict[str, Any]:
    for prefix in _WRAPPERS:
        if state and all(name.startswith(prefix) for name in state) and not wanted & set(state):
            return _strip({name.removeprefix(prefix): value for name, value in state.items()}, wanted)
    return state


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise CorruptArtifact(f"'{path}' is not a safetensors file, or it is damaged: {error}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
