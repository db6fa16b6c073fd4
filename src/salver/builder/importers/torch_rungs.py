"""The rungs of the ladder: each exports a PyTorch model to an ONNX file in its own way, or fails as it fails."""

from __future__ import annotations

import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from torch.jit import TracerWarning

from salver.backends.torch_files import PT2, TORCHSCRIPT
from salver.backends.torch_programs import leaves, quiet
from salver.builder.importers.torch_inputs import Call, Sample
from salver.builder.importers.torch_reasons import frozen_line
from salver.builder.importers.torch_scripting import script_program

_OPSET: Final = 18
_INLINE_BYTES: Final = 1 << 30


class Rung(msgspec.Struct, frozen=True):
    """One way to export.

    Args:
        name: what it is called in the record.
        export: writes the ONNX file ``model.onnx`` and what belongs to it into a folder; gives the lines of the user's
            code whose way it froze.
    """

    name: str
    export: Callable[[Call, Sample, Path], list[str]]


def rungs_of(call: Call) -> tuple[Rung, ...]:
    """The rungs for a source, the most faithful first."""
    return _RUNGS[call.source.kind]


def _export_dynamo(call: Call, sample: Sample, folder: Path) -> list[str]:
    args, kwargs = call.arguments(sample.inputs)
    shapes = dynamic_shapes(call, sample)
    _save(_convert(call, sample, call.source.module, args, kwargs=kwargs, dynamic_shapes=shapes), call, folder)
    return []


def _export_strict(call: Call, sample: Sample, folder: Path) -> list[str]:
    args, kwargs = call.arguments(sample.inputs)
    shapes = dynamic_shapes(call, sample, inferred=True)
    program = torch.export.export(call.source.module, args, kwargs, dynamic_shapes=shapes, strict=True)
    _save(_convert(call, sample, program), call, folder)
    return []


def _export_program(call: Call, sample: Sample, folder: Path) -> list[str]:
    _save(_convert(call, sample, call.source.program), call, folder)
    return []


def _convert(call: Call, sample: Sample, module: Any, *args: Any, **options: Any) -> Any:
    return torch.onnx.export(
        module,
        *args,
        dynamo=True,
        verbose=False,
        opset_version=_OPSET,
        input_names=[s.name for s in call.specs],
        output_names=_output_names(call, sample),
        **options,
    )


def _save(program: Any, call: Call, folder: Path) -> None:
    program.save(str(folder / "model.onnx"), external_data=parameter_bytes(call) > _INLINE_BYTES)


def parameter_bytes(call: Call) -> int:
    """Size of a model's parameters and buffers together."""
    module = call.source.module
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def dynamic_shapes(call: Call, sample: Sample, *, inferred: bool = False) -> Any:
    """What may change, as `torch.export` is told: dimensions of one name are one; or all for it to infer."""
    dims = {name: torch.export.Dim(name) for axes in sample.dims.values() for name in axes.values()}
    told = {
        spec.name: {
            axis: torch.export.Dim.AUTO if inferred else dims[name]
            for axis, name in sample.dims.get(spec.name, {}).items()
        }
        for spec in call.specs
    }
    return told if call.by_name else tuple(told.values())


# --- TorchScript


def _export_script(call: Call, sample: Sample, folder: Path) -> list[str]:
    _export_torchscript(compile_script(call), positional(call, sample), call, sample, folder)
    return []


def compile_script(call: Call) -> Any:
    """The model as TorchScript with all its ways."""
    source = call.source
    if source.kind == TORCHSCRIPT:
        return source.module
    return script_program(source.program) if source.kind == PT2 else torch.jit.script(source.module)


def _export_trace(call: Call, sample: Sample, folder: Path) -> list[str]:
    flat = Flat(call)
    with _frozen_lines() as lines:
        _export_torchscript(flat, tuple(call_tensors(call, sample)), call, sample, folder)
    return lines


def _export_torchscript(module: Any, args: tuple[Any, ...], call: Call, sample: Sample, folder: Path) -> None:
    with torch.no_grad():
        torch.onnx.export(
            module,
            args,
            str(folder / "model.onnx"),
            dynamo=False,
            opset_version=_OPSET,
            input_names=[s.name for s in call.specs],
            output_names=_output_names(call, sample),
            dynamic_axes=dict(sample.dims),
        )


class Flat(torch.nn.Module):  # type: ignore[misc]  # PyTorch has no types here
    """A model that takes tensors in order and gives tensors in order, as tracing wants it."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.inner = call.source.module
        self.names = [s.name for s in call.specs] if call.by_name else []

    def forward(self, *tensors: Any) -> Any:
        """The outputs' tensors."""
        named = dict(zip(self.names, tensors, strict=True)) if self.names else {}
        return _flat(self.inner(**named) if named else self.inner(*tensors))


def _flat(outputs: Any) -> Any:
    found = leaves(outputs)
    return found[0] if len(found) == 1 else tuple(found)


def call_tensors(call: Call, sample: Sample) -> list[Any]:
    """The sample as tensors, in the order of the inputs."""
    args, kwargs = call.arguments(sample.inputs)
    return [*args, *kwargs.values()]


def positional(call: Call, sample: Sample) -> tuple[Any, ...]:
    """The arguments in the order of ``forward``, with its defaults between."""
    args, kwargs = call.arguments(sample.inputs)
    if not kwargs:
        return args
    parameters = inspect.signature(call.source.module.forward).parameters
    last = max(call.names.index(name) for name in kwargs)
    return tuple(kwargs.get(name, parameters[name].default) for name in call.names[: last + 1])


@contextmanager
def _frozen_lines() -> Iterator[list[str]]:
    """Collect the lines of the user's code at which tracing took one way for all ways."""
    lines: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lines
    for warning in caught:
        line = frozen_line(warning.filename, warning.lineno) if issubclass(warning.category, TracerWarning) else ""
        if line and line not in lines:
            lines.append(line)


def _output_names(call: Call, sample: Sample) -> list[str]:
    return [name for name, _ in call.tensors(sample.inputs)]


def trace(call: Call, sample: Sample) -> tuple[Any, list[str]]:
    """The model as traced TorchScript, and the lines it froze."""
    with _frozen_lines() as lines, torch.no_grad():
        traced = torch.jit.trace(Flat(call), tuple(call_tensors(call, sample)), check_trace=False)
    return traced, lines


@contextmanager
def exporting() -> Iterator[None]:
    """Keep what exporters print to themselves; one of them writes to file descriptor 1 from C++."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), quiet():
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


_DYNAMO: Final = Rung("torch.export", _export_dynamo)
_STRICT: Final = Rung("torch.export, strict, dimensions inferred", _export_strict)
_PROGRAM: Final = Rung("the ExportedProgram as it is", _export_program)
_SCRIPT: Final = Rung("TorchScript, compiled", _export_script)
_TRACE: Final = Rung("TorchScript, traced", _export_trace)
_RUNGS: Final[dict[str, tuple[Rung, ...]]] = {
    "module": (_DYNAMO, _STRICT, _SCRIPT, _TRACE),
    PT2: (_PROGRAM, _SCRIPT),
    TORCHSCRIPT: (_SCRIPT, _TRACE),
}
