"""A PyTorch model in PyTorch's own formats, which its backend runs: an ExportedProgram, or TorchScript."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch

from salver.backends import open_session
from salver.backends.torch_files import PT2, TORCHSCRIPT
from salver.backends.torch_programs import DATATYPES, save_pt2, save_torchscript
from salver.builder.importers.onnx_batch import Leading
from salver.builder.importers.onnx_finish import Draft
from salver.builder.importers.parity import batch_sizes_for, certify
from salver.builder.importers.probes import Probe, resize
from salver.builder.importers.torch_elsewhere import compare_elsewhere
from salver.builder.importers.torch_inputs import Call, Sample, named_dims
from salver.builder.importers.torch_reasons import explained
from salver.builder.importers.torch_rungs import compile_script, dynamic_shapes, exporting, trace
from salver.core.errors import SalverError
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec

SUFFIXES: Final = {PT2: ".pt2", TORCHSCRIPT: ".pt"}
"""Format -> the suffix of its files."""


class Native(msgspec.Struct, frozen=True):
    """A file in a format of PyTorch.

    Args:
        format: `PT2` or `TORCHSCRIPT`.
        path: the file.
        frozen: lines of the user's code whose way was frozen.
    """

    format: str
    path: Path
    frozen: tuple[str, ...] = ()


def write_native(
    call: Call, sample: Sample, signature: Signature, folder: Path, draft: Draft
) -> tuple[Native | None, dict[str, str]]:
    """The model in the first format of PyTorch that gives the original's answers.

    Args:
        signature: what goes in and out, in the order of the original.
        folder: where files are written.

    Returns:
        The file, and what stood in the way of the formats before it.
    """
    source = call.source
    if source.file is not None:
        path = folder / f"model{SUFFIXES[source.kind]}"
        shutil.copyfile(source.file, path)
        return Native(source.kind, path), {}
    reasons: dict[str, str] = {}
    for name, format, write in _writers(call, sample, signature):
        path = folder / f"model{SUFFIXES[format]}"
        try:
            with explained(), exporting():
                frozen = write(path)
            model = Model(format=format, signature=signature, blobs=(Blob.of(path),))
            _verify(model, draft)
            if frozen:
                compare_elsewhere(model, draft)
        except SalverError as error:
            reasons[name] = error.message
            path.unlink(missing_ok=True)
            continue
        return Native(format, path, tuple(frozen)), reasons
    return None, reasons


_Writer = tuple[str, str, Callable[[Path], list[str]]]


def _writers(call: Call, sample: Sample, signature: Signature) -> list[_Writer]:
    module, kind = call.source.module, call.source.kind

    def as_program(path: Path) -> list[str]:
        program = call.source.program
        if program is None:
            args, kwargs = call.arguments(sample.inputs)
            shapes = dynamic_shapes(call, sample)
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
        save_pt2(program, signature, path)
        return []

    def as_script(path: Path) -> list[str]:
        save_torchscript(compile_script(call), signature, path)
        return []

    def as_trace(path: Path) -> list[str]:
        traced, frozen = trace(call, sample)
        save_torchscript(traced, signature, path)
        return frozen

    program: _Writer = ("an ExportedProgram", PT2, as_program)
    script: _Writer = ("compiled TorchScript", TORCHSCRIPT, as_script)
    return {
        PT2: [program],
        TORCHSCRIPT: [script],
        "module": [program, script, ("traced TorchScript", TORCHSCRIPT, as_trace)],
    }[kind]


def _verify(model: Model, draft: Draft) -> None:
    leading = draft.leading
    with open_session(model) as session:
        certify(
            draft.original,
            session.run,
            draft.probe,
            batch_sizes_for(draft.probe.rows, leading.fixed) if leading.batched else (0,),
            described=draft.described,
            specs=model.signature.outputs,
            tolerance=draft.options.tolerance,
            inputs=model.signature.inputs,
        )


def observe(call: Call, probe: Probe, leading: Leading) -> Signature:
    """The signature with outputs as runs show them: dimensions that follow a dynamic one have its name."""
    rows = min(probe.rows, leading.fixed or 3)
    few = Probe(probe.cut(0, rows), rows, probe.origin) if leading.batched else probe
    base = call.tensors(few.inputs)
    changes: list[tuple[str, Any]] = []
    if leading.batched and leading.fixed is None and rows > 1:
        changes.append(("batch", call.tensors(few.cut(0, rows - 1))))
    for name in named_dims(call.specs, leading):
        now = next(few.inputs[s.name].shape[s.shape.index(name)] for s in call.specs if name in s.shape)
        for size in (now + 1, 2 * now, max(1, now // 2)):
            try:
                changes.append(
                    (name, call.tensors(resize(few, call.specs, name, size, batched=leading.batched).inputs))
                )
                break
            except SalverError:
                continue
    batched = leading.batched and leading.fixed is None
    inputs = tuple(msgspec.structs.replace(s, shape=("batch", *s.shape[1:])) if batched else s for s in call.specs)
    return Signature(inputs=inputs, outputs=tuple(_output(i, base, changes) for i in range(len(base))))


def _output(position: int, base: list[tuple[str, Any]], changes: list[tuple[str, Any]]) -> TensorSpec:
    name, tensor = base[position]
    shape: list[int | str] = list(tensor.shape)
    for dim, outputs in changes:
        other = outputs[position][1].shape
        for axis in np.flatnonzero(
            [len(other) != len(shape) or a != b for a, b in zip(tensor.shape, other, strict=False)]
        ):
            shape[axis] = dim if isinstance(shape[axis], int) else f"?{name}_{axis}"
    return TensorSpec(name=name, datatype=DATATYPES[tensor.dtype], shape=tuple(shape))
