"""PyTorch programs behind a `Session`: ``.pt2`` (torch.export) and TorchScript, run as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from salver.backends.base import Backend, Session, SessionOptions
from salver.core.arrays import Array
from salver.core.errors import (
    CorruptArtifact,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    MissingExtra,
    SalverError,
    Unimplemented,
    UnknownName,
)
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec

try:
    import torch
except ImportError as missing:
    raise MissingExtra("running a PyTorch model", str(missing.name), "torch") from None

from salver.backends.torch_compiled import compile_program
from salver.backends.torch_programs import Program, load_program, to_array, to_tensor

INDUCTOR: Final = "inductor"
"""The provider that compiles a program for the device that ``auto`` takes."""

_REFUSALS: Final = (AssertionError, IndexError, ValueError, TypeError)
_FAILURES: Final = (RuntimeError, KeyError, AttributeError, ArithmeticError, NotImplementedError)


class TorchBackend(Backend):
    """Runs programs of PyTorch (https://pytorch.org): ExportedPrograms, as they are or compiled, and TorchScript. No
    Python of the model's author is needed or run."""

    name = "torch"
    formats = ("pt2", "torchscript")
    isolated = True

    def versions(self) -> dict[str, str]:
        return {"torch": str(torch.__version__)}

    def providers(self) -> tuple[str, ...]:
        found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        return (*(name for name, present in found.items() if present), INDUCTOR)

    def load(self, model: Model, options: SessionOptions) -> Session:
        present = self.providers()
        device = present[0] if options.provider in ("auto", INDUCTOR) else options.provider
        if device not in present:
            raise UnknownName("execution provider", options.provider, ("auto", *present))
        program = load_program(model.blobs[0], device)
        if options.provider == INDUCTOR:
            program = compile_program(program, model.blobs[0].name, device, options.threads)
        return TorchSession(program, model.signature, options.threads, device)

    def describe(self, blob: Blob) -> Signature:
        program = load_program(blob)
        if program.signature is None:
            raise Unimplemented(
                f"'{blob.name}': TorchScript does not say what its inputs are; import it with 'salver build' or "
                "'salver convert' and --input 'name:float32[batch,3,224,224]'"
            )
        return program.signature


class TorchSession(Session):
    """A loaded program. Its inputs and outputs are those of the model's signature, in order; names that the program
    shares with it are matched by name."""

    def __init__(self, program: Program, signature: Signature, threads: int, device: str) -> None:
        own = program.signature
        if own is not None and (len(own.inputs), len(own.outputs)) != (len(signature.inputs), len(signature.outputs)):
            raise CorruptArtifact(
                f"the program has {len(own.inputs)} inputs and {len(own.outputs)} outputs, its signature says "
                f"{len(signature.inputs)} and {len(signature.outputs)}"
            )
        self._program: Program | None = program
        self._signature = signature
        self._threads = threads
        self._device = device
        self._inputs = _order(signature.inputs, own.inputs if own else ())
        self._outputs = _order(signature.outputs, own.outputs if own else ())

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        program = self._program
        if program is None:
            raise FailedPrecondition("the session is closed")
        self._signature.check(inputs)
        names = self._signature.output_names if outputs is None else outputs
        wanted = [self._signature.output(name).name for name in names]
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # of the calling thread
        try:
            with torch.inference_mode():
                tensors = [to_tensor(inputs[n], self._signature.input(n).datatype) for n in self._inputs]
                values = program.function([t.to(self._device) for t in tensors])
                given = dict(zip(self._outputs, values, strict=True))
                return {name: self._typed(name, to_array(given[name])) for name in wanted}
        except SalverError:
            raise
        except _REFUSALS as error:
            raise InvalidArgument(f"the model refused its inputs: {_last_line(error)}") from error
        except _FAILURES as error:
            raise Internal(f"the model failed while running: {_last_line(error)}") from error

    def _typed(self, name: str, array: Array) -> Array:
        expected = self._signature.output(name)
        if array.dtype != expected.dtype:
            raise Internal(f"output '{name}' came as {array.dtype}, the signature says {expected.datatype}")
        return array

    def close(self) -> None:
        self._program = None


def _order(specs: Sequence[TensorSpec], own: Sequence[TensorSpec]) -> list[str]:
    """Names of the signature in the program's order."""
    names, known = [s.name for s in specs], [s.name for s in own]
    return known if set(known) == set(names) else names


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:500]
