"""A step that is Python code: a file that travels with the model, and runs only where its signer is trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.errors import Internal, InvalidArgument, SalverError, format_shape
from salver.core.tensors import TensorSpec, to_datatype
from salver.processing.base import ProcessingStep, Read


class PythonConfig(Config, frozen=True, kw_only=True):
    """Which function runs, and what goes in and out of it.

    Args:
        file: a Python module; it may import what is installed where the model is served, and no file beside it.
        function: its function: ``{name: array}`` to ``{name: array}``, each ``[rows, ...]``; BYTES are ``object``
            arrays of ``str``. Called from several threads at once. A `ValueError` refuses the request with its message.
        inputs, outputs: names, datatypes and shapes; the first dimension is ``batch``.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    function: str = "transform"


class PythonStep(ProcessingStep):
    """The user's own code, before or after the graph."""

    name = "python"
    Config: ClassVar[type[Any]] = PythonConfig
    files = ("file",)
    is_even = False
    runs_code = True

    def __init__(self, config: PythonConfig, read: Read) -> None:
        self._config = config
        self._inputs = {spec.name: spec for spec in config.inputs}
        if not config.inputs or not config.outputs:
            raise InvalidArgument("inputs and outputs: say what goes into the function and what comes out of it")
        self._function = _load(read(config.file), config.file, config.function)

    @property
    def consumes(self) -> tuple[str, ...]:
        return tuple(self._inputs)

    def raw(self, name: str, batch: int | str) -> TensorSpec:
        return _with_batch(self._inputs[name], batch)

    def bind(self, given: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
        for name, spec in self._inputs.items():
            found = given[name]
            if (found.datatype, len(found.shape)) != (spec.datatype, len(spec.shape)):
                raise InvalidArgument(
                    f"'{name}' is {found.datatype} {format_shape(found.shape)}, declared as {spec.datatype} "
                    f"{format_shape(spec.shape)}"
                )
        batch = given[self.consumes[0]].shape[0]
        return tuple(_with_batch(spec, batch) for spec in self._config.outputs)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        rows = len(arrays[self.consumes[0]])
        where = f"'{self._config.file}': {self._config.function}"
        try:
            made = self._function({name: arrays[name] for name in self._inputs})
            return {
                spec.name: _checked(np.asarray(made[spec.name]), spec, rows, where) for spec in self._config.outputs
            }
        except SalverError:
            raise
        except ValueError as error:
            raise InvalidArgument(str(error)) from error
        except Exception as error:
            raise Internal(f"{where} failed: {type(error).__name__}: {error}") from error


def _load(source: bytes, file: str, function: str) -> Callable[[dict[str, Array]], Mapping[str, Any]]:
    module = ModuleType(file.removesuffix(".py"))
    try:
        exec(compile(source, file, "exec"), module.__dict__)
    except Exception as error:
        raise InvalidArgument(f"'{file}' cannot be run: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise InvalidArgument(f"'{file}' has no function '{function}'")
    return found  # type: ignore[no-any-return]  # whatever the user wrote


def _with_batch(spec: TensorSpec, batch: int | str) -> TensorSpec:
    return TensorSpec(
        name=spec.name,
        datatype=spec.datatype,
        shape=(batch, *spec.shape[1:]),
        labels=spec.labels,
        binary=spec.binary,
    )


def _checked(array: Array, spec: TensorSpec, rows: int, where: str) -> Array:
    if spec.datatype == "BYTES" and array.dtype.kind in "SU":
        array = array.astype(np.str_).astype(object)
    sizes = zip(array.shape[1:], spec.shape[1:], strict=False)
    fits = len(array.shape) == len(spec.shape) and all(isinstance(b, str) or a == b for a, b in sizes)
    if array.dtype != spec.dtype or not fits or len(array) != rows:
        raise Internal(
            f"{where} gave '{spec.name}' {to_datatype(array.dtype)} {format_shape(array.shape)} for {rows} rows, "
            f"declared as {spec.datatype} {format_shape(spec.shape)}"
        )
    return array
