"""Inputs of a PyTorch model: what they are, examples of them, and the original run on them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import torch

from salver.backends.torch_files import PT2, TORCHSCRIPT
from salver.backends.torch_programs import Program, name_outputs, program_of, quiet, script_of, to_array, to_tensor
from salver.builder.importers.base import ImportOptions
from salver.builder.importers.onnx_batch import Leading, read_leading, with_batch
from salver.builder.importers.probes import Probe, fit_rows, from_data, limit_rows, resize, synthetic
from salver.builder.importers.torch_reasons import place_of
from salver.builder.importers.torch_sources import Source
from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import FailedPrecondition, InvalidArgument, SalverError
from salver.core.specs import format_inputs
from salver.core.tensors import Signature, TensorSpec
from salver.datasets import bind, takes_single_examples
from salver.evaluation.runner import fit_run

_EXAMPLE: Final = "--input 'x:float32[batch,3,224,224]' (several: 'ids:int64[batch,length]; mask:int64[batch,length]')"
_LENGTHS: Final = (16, 8, 32, 5, 2)
_SAMPLE_ROWS: Final = 3
_BATCH_WORDS: Final = ("batch", "N", "n", "B")


class Call:
    """The original, by names.

    Args:
        source: what is run.
        specs: its inputs. Where each is a parameter of ``forward``, they are given by name, else in order.
    """

    def __init__(self, source: Source, specs: Sequence[TensorSpec]) -> None:
        self.source = source
        self.specs = tuple(specs)
        self.names = _parameters(source)
        self.by_name = source.kind == "module" and {s.name for s in specs} <= set(self.names)
        if {s.name for s in specs} <= set(self.names):
            self.specs = tuple(sorted(specs, key=lambda s: self.names.index(s.name)))
        self._program: Program | None = None
        if source.kind == PT2:
            self._program = program_of(source.program, source.signature)
        elif source.kind == TORCHSCRIPT:
            self._program = script_of(source.module, source.signature)

    def arguments(self, inputs: Mapping[str, Array]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments of the module, as tensors of their own."""
        tensors = {s.name: to_tensor(inputs[s.name].astype(s.dtype, copy=False), s.datatype) for s in self.specs}
        return ((), tensors) if self.by_name else (tuple(tensors.values()), {})

    def tensors(self, inputs: Mapping[str, Array]) -> list[tuple[str, Any]]:
        """Names and tensors of the outputs.

        Raises:
            FailedPrecondition: the model refuses the inputs; with the user's own line.
        """
        args, kwargs = self.arguments(inputs)
        try:
            with torch.inference_mode(), quiet():
                if self._program is not None:
                    return _named(self._program, list(args))
                return name_outputs(self.source.module(*args, **kwargs))
        except SalverError:
            raise
        except Exception as error:  # boundary: the user's own code
            raise FailedPrecondition(f"the original model fails on these inputs: {place_of(error)}") from error

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        return {name: to_array(tensor) for name, tensor in self.tensors(inputs)}


def _named(program: Program, args: list[Any]) -> list[tuple[str, Any]]:
    values = program.function(args)
    names = [s.name for s in program.signature.outputs] if program.signature else []
    if len(names) != len(values):
        names = ["output"] if len(values) == 1 else [f"output_{i}" for i in range(len(values))]
    return list(zip(names, values, strict=True))


def _parameters(source: Source) -> list[str]:
    """Names of what ``forward`` takes."""
    if source.kind == TORCHSCRIPT:
        return [argument.name for argument in source.module.forward.schema.arguments[1:]]
    if source.kind == PT2:
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, p in inspect.signature(source.module.forward).parameters.items() if p.kind in kinds]


# --- what the inputs are


def plan_inputs(source: Source, data: Dataset | None, options: ImportOptions) -> tuple[tuple[TensorSpec, ...], str]:
    """The inputs: as the user says, as the file says, or as the data have them.

    Returns:
        The specs, and a note when they were taken from the data.

    Raises:
        InvalidArgument: nothing tells them, or the user says others than the file; with an example of how to say it.
    """
    known = source.signature.inputs if source.signature is not None else ()
    if options.inputs:
        _check_told(options.inputs, known, source)
        return options.inputs, ""
    if known:
        return known, ""
    if data is None:
        names = ", ".join(f"'{name}'" for name in _required(source)) or "not named"
        raise InvalidArgument(
            f"{_called(source)} does not say of what type and shape its inputs are (they are {names}); say it with "
            f"{_EXAMPLE}, in Python inputs='...'. A name stands for a size that may change, a number for one that may "
            "not. Or give examples (--data) whose columns have the names of the inputs"
        )
    specs = _from_columns(_required(source), data, source)
    return specs, f"the inputs were taken from the data: {format_inputs(specs)}"


def _check_told(told: Sequence[TensorSpec], known: Sequence[TensorSpec], source: Source) -> None:
    if known and [(s.datatype, len(s.shape)) for s in told] != [(s.datatype, len(s.shape)) for s in known]:
        given, own = format_inputs(tuple(told)), format_inputs(tuple(known))
        raise InvalidArgument(f"the inputs given are '{given}', {_called(source)} has '{own}'")
    strings = [s.name for s in told if s.datatype == "BYTES"]
    if strings:
        raise InvalidArgument(f"input '{strings[0]}': PyTorch has no tensors of strings; give what a tokenizer makes")
    needed = len(_required(source))
    if not known and len(told) < needed:
        names = ", ".join(_required(source))
        raise InvalidArgument(
            f"{len(told)} inputs were given, {_called(source)} takes {names}; say all with {_EXAMPLE}"
        )


def _required(source: Source) -> list[str]:
    if source.kind == TORCHSCRIPT:
        arguments = source.module.forward.schema.arguments[1:]
        return [a.name for a in arguments if not a.has_default_value()]
    if source.kind == PT2:
        return []
    parameters = inspect.signature(source.module.forward).parameters
    names = _parameters(source)
    return [n for n in names if parameters[n].default is inspect.Parameter.empty]


def _from_columns(names: list[str], data: Dataset, source: Source) -> tuple[TensorSpec, ...]:
    columns = {column.name: column for column in data.columns}
    if len(names) == 1 and len(columns) == 1:
        columns = {names[0]: data.columns[0]}
    missing = [name for name in names if name not in columns]
    if missing or not names:
        raise InvalidArgument(
            f"{_called(source)} takes {', '.join(names) or 'inputs without names'}, and '{data.source}' has no column "
            f"{', '.join(missing)}; say what the inputs are with {_EXAMPLE}"
        )
    kinds = {"FP64": "FP32"}
    return tuple(
        TensorSpec(name=n, datatype=kinds.get(columns[n].datatype, columns[n].datatype), shape=columns[n].shape)
        for n in names
    )


def _called(source: Source) -> str:
    return f"'{source.step.name}'"


# --- examples


def make_probe(call: Call, data: Dataset | None) -> tuple[Probe, Leading]:
    """Inputs to compare on, from the data or made up, and what the first dimensions say.

    Raises:
        FailedPrecondition: the original does not run on them, or answers otherwise when it is run again.
    """
    signature = Signature(inputs=call.specs, outputs=())
    leading = read_leading(signature)
    if data is not None and takes_single_examples(data, signature):
        leading = Leading(False)
    fixed = leading.fixed or 1
    if data is not None and not leading.batched:
        probe = Probe(fit_run(signature, next(iter(bind(data, signature).batches(1))).inputs), 1, "data")
    elif data is not None:
        probe = fit_rows(from_data(data, with_batch(signature)), fixed)
    else:
        probe = _lengthen(synthetic(signature, call, batched=leading.batched, multiple=fixed), call, leading)
    _check_repeats(call, probe.cut(0, fixed) if leading.batched else probe.inputs)
    return (limit_rows(probe, call, fixed) if leading.batched else probe), leading


def _lengthen(probe: Probe, call: Call, leading: Leading) -> Probe:
    """Named dimensions of size 1, made up, at a size that tells more."""
    for name in named_dims(call.specs, leading):
        for size in _LENGTHS if _size_of(probe, call.specs, name) == 1 else ():
            longer = resize(probe, call.specs, name, size, batched=leading.batched)
            if _runs(call, longer.cut(0, leading.fixed or 1) if leading.batched else longer.inputs):
                probe = longer
                break
    return probe


def named_dims(specs: Sequence[TensorSpec], leading: Leading) -> list[str]:
    """Names of dynamic dimensions, without the batch."""
    start = 1 if leading.batched else 0
    first = {s.shape[0] for s in specs if s.shape} if leading.batched else set()
    return sorted({d for s in specs for d in s.shape[start:] if isinstance(d, str)} - first)


def _size_of(probe: Probe, specs: Sequence[TensorSpec], name: str) -> int:
    return int(next(probe.inputs[s.name].shape[s.shape.index(name)] for s in specs if name in s.shape))


def _runs(call: Call, inputs: Mapping[str, Array]) -> bool:
    try:
        call(inputs)
    except SalverError:
        return False
    return True


def _check_repeats(call: Call, inputs: Mapping[str, Array]) -> None:
    """Refuse what cannot be proved: a model that draws random numbers, or that remembers earlier calls."""
    first, second = call(inputs), call(inputs)
    if not first:
        raise FailedPrecondition("the original model gives nothing")
    for name, array in first.items():
        other = second[name]
        if array.shape != other.shape or array.tobytes() != other.tobytes():
            raise FailedPrecondition(
                f"output '{name}' of the original changes when it is run again on the same inputs: it draws random "
                "numbers, or keeps a state from call to call. Make the state an input and an output, or the noise an "
                "input"
            )


def settle_dims(call: Call, probe: Probe, leading: Leading) -> tuple[tuple[TensorSpec, ...], tuple[str, ...]]:
    """Fix the named dimensions that the original takes at one size only.

    Returns:
        The inputs, and notes.
    """
    specs, notes = call.specs, []
    for name in named_dims(specs, leading):
        now = _size_of(probe, specs, name)
        others = [s for s in (now + 1, 2 * now, now // 2, max(1, now - 1), now + (now + 1) // 2) if s not in (0, now)]
        few = Probe(probe.cut(0, leading.fixed or 1), leading.fixed or 1, probe.origin) if leading.batched else probe
        if any(_runs(call, resize(few, specs, name, s, batched=leading.batched).inputs) for s in others):
            continue
        specs = tuple(msgspec.structs.replace(s, shape=tuple(now if d == name else d for d in s.shape)) for s in specs)
        notes.append(f"dimension '{name}' is fixed at {now}: the original runs at no other size that was tried")
    return specs, tuple(notes)


class Sample(msgspec.Struct, frozen=True):
    """What an exporter is shown.

    Args:
        inputs: a few rows, every dynamic dimension at 2 or more, where the original takes that.
        dims: input name -> axis -> name of a dynamic dimension, which is an identifier.
    """

    inputs: dict[str, Array]
    dims: dict[str, dict[int, str]]


def make_sample(call: Call, probe: Probe, leading: Leading) -> Sample:
    """Inputs to export with."""
    sample = probe
    if leading.batched:
        rows = leading.fixed or _SAMPLE_ROWS
        sample = fit_rows(Probe(probe.cut(0, rows), min(rows, probe.rows), probe.origin), rows)
    for name in named_dims(call.specs, leading):
        if _size_of(sample, call.specs, name) < 2:
            longer = resize(sample, call.specs, name, 2, batched=leading.batched)
            sample = longer if _runs(call, longer.inputs) else sample
    dims: dict[str, dict[int, str]] = {}
    for spec in call.specs:
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str):
                batch = leading.batched and axis == 0
                name = "batch" if batch else re.sub(r"\W", "_", dim.lstrip("?"))
                dims.setdefault(spec.name, {})[axis] = name if batch or name != "batch" else f"{name}_"
    return Sample(sample.inputs, dims)
