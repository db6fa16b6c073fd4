"""ExportedPrograms as native code: TorchInductor compiles them once, when a model is loaded."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from salver.backends.torch_files import PT2
from salver.backends.torch_programs import Program, arguments_of, leaves, quiet
from salver.core.errors import FailedPrecondition, Unimplemented

_CACHES: Final = "TORCHINDUCTOR_CACHE_DIR"
_COMPILING: Final = threading.Lock()
_OPTIONS: Final = {
    "compile_threads": 1,  # no processes of its own
    "cpp_cache_precompile_headers": False,  # these would be kept outside its cache folder
    # What a loop on several threads throws ends the process: https://github.com/pytorch/pytorch/issues/195402
    "cpp.threads": 1,
}


def compile_program(program: Program, name: str, device: str, threads: int) -> Program:
    """Compile an ExportedProgram for the sizes it was exported for. Nothing is compiled later: inputs that the native
    code does not take, or on which it fails, go to the program itself.

    Raises:
        Unimplemented: it is TorchScript, holds no example inputs, or TorchInductor cannot compile it.
        FailedPrecondition: there is no C++ compiler.
    """
    if program.kind != PT2:
        raise Unimplemented(
            f"'{name}' is TorchScript, and provider 'inductor' compiles pt2 programs: convert the model's own code "
            "('salver convert module:function --to pt2'), or take provider 'cpu'"
        )
    if os.environ.get(_CACHES) in (None, default_cache_dir()):  # PyTorch names its default there itself
        os.environ[_CACHES] = _own_folder()
    compiled = torch.compile(program.object.module(), dynamic=True, options=_OPTIONS)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # the native code is for that many
    try:
        with _COMPILING, quiet(), torch.inference_mode(), torch.fx.experimental._config.patch(use_duck_shape=False):
            for tensors in _examples(program, name, device):
                args, kwargs = arguments_of(program.object, tensors)
                compiled(*args, **kwargs)
    except Exception as error:  # boundary: a foreign compiler
        raise _refusal(error, name) from error
    finally:
        torch.set_num_threads(before)
    native = torch._dynamo.run(compiled)

    def run(tensors: Sequence[Any]) -> list[Any]:
        args, kwargs = arguments_of(program.object, tensors)
        try:
            return leaves(native(*args, **kwargs))
        except RuntimeError:
            return program.function(tensors)  # which says in its own words what is wrong

    return Program(PT2, program.object, run, program.signature)


@functools.cache
def _own_folder() -> str:
    """A folder that goes with this process."""
    folder = tempfile.mkdtemp(prefix="salver-inductor-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _examples(program: Program, name: str, device: str) -> Iterator[list[Any]]:
    """The inputs a program was exported with, and their first rows: code for one row is code of its own."""
    held = program.object.example_inputs
    if held is None or program.signature is None:
        raise Unimplemented(f"'{name}' holds no example inputs to compile it for; export it again with torch.export")
    specs = [s.arg for s in program.object.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    given = zip(pytree.tree_leaves(held), specs, strict=True)
    tensors = [torch.as_tensor(leaf).to(device) for leaf, arg in given if not isinstance(arg, ConstantArgument)]
    yield _copied(tensors)
    batch = program.signature.batch_dim
    if batch is not None:
        inputs = zip(tensors, program.signature.inputs, strict=True)
        rows = [tensor[:1] if spec.shape[:1] == (batch,) else tensor for tensor, spec in inputs]
        if _takes(program, _copied(rows)):
            yield _copied(rows)


def _copied(tensors: Sequence[Any]) -> list[Any]:
    """As they come with a request: laid out in order, and made for inference."""
    return [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]


def _takes(program: Program, tensors: Sequence[Any]) -> bool:
    try:
        program.function(tensors)
    except (AssertionError, RuntimeError):
        return False
    return True


def _refusal(error: Exception, name: str) -> Exception:
    if isinstance(error, Unimplemented):
        return error
    if "InvalidCxxCompiler" in str(error):
        return FailedPrecondition(
            "provider 'inductor' compiles with a C++ compiler, and there is none here: install g++ (or name another "
            "in CXX), or take provider 'cpu'"
        )
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:500]
    return Unimplemented(f"PyTorch {torch.__version__} cannot compile '{name}'; take provider 'cpu'. It says: {text}")
