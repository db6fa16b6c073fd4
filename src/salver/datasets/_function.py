"""``module:function``: examples made by the user's own code."""

from __future__ import annotations

import functools
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition, InvalidArgument, NotFound, SalverError
from salver.core.tensors import TensorSpec
from salver.datasets._arrays import ArraysDataset
from salver.datasets.base import Reader, ReaderConfig, column_spec, to_carried
from salver.datasets.typing_rules import object_array

_LABEL = "label"


class FunctionConfig(ReaderConfig, frozen=True, kw_only=True):
    """Nothing but the label; only for a function that gives a dictionary of arrays."""


class FunctionDataset(Reader):
    """What a function gives: a dictionary of arrays or ``(inputs, labels)`` as `ArraysDataset` takes them, or an
    iterable of ``(inputs, label)``, one per example, where inputs is a dictionary of arrays and label may be None.

    The function is called without arguments, once per reading, and must give the same examples each time; a different
    number of them, or other shapes, is refused. Its module is looked for in the current folder, too.
    """

    name: ClassVar[str] = "function"
    Config: ClassVar[type[Any]] = FunctionConfig

    def __init__(self, source: str, config: FunctionConfig | None = None) -> None:
        config = config or FunctionConfig()
        self._named = source
        self._function = _find(source)
        made = self._call()
        self._arrays: ArraysDataset | None = None
        if isinstance(made, Mapping | tuple):
            self._arrays = ArraysDataset(made, ArraysDataset.Config(label=config.label), described=source)
            label = self._arrays.label_spec
            specs = {s.name: s for s in (*self._arrays.columns, *([label] if label else []))}
            super().__init__(source, specs, len(self._arrays), label.name if label else None)
            return
        self._specs: dict[str, TensorSpec] = {}
        rows = 0
        for rows, example in enumerate(self._examples(made), start=1):
            self._learn(rows, example)
        super().__init__(source, self._specs, rows, _LABEL if _LABEL in self._specs else config.label)

    @functools.cached_property
    def _digest(self) -> str:
        if self._arrays is not None:
            return self._arrays.digest
        sha = hashlib.sha256()
        for example in self._examples(self._call()):
            for name, value in example.items():
                data = repr(value.tolist()).encode() if value.dtype == object else value.tobytes()
                sha.update(f"{name} {value.dtype.str} {value.shape} {len(data)}\n".encode() + data)
        return f"sha256:{sha.hexdigest()}"

    @property
    def digest(self) -> str:
        return self._digest

    def blocks(self, size: int) -> Iterator[dict[str, Array]]:
        if self._arrays is not None:
            yield from self._arrays.blocks(size)
            return
        pending: list[dict[str, Array]] = []
        row = 0
        for row, example in enumerate(self._examples(self._call()), start=1):
            self._learn(row, example)
            pending.append(example)
            if len(pending) == size:
                yield self._stack(pending)
                pending = []
        if row != len(self):
            raise InvalidArgument(
                f"'{self._named}' gave {len(self)} examples at first and {row} now; it must repeat itself"
            )
        if pending:
            yield self._stack(pending)

    def _stack(self, examples: list[dict[str, Array]]) -> dict[str, Array]:
        block: dict[str, Array] = {}
        for name, spec in self._specs.items():
            values = [example[name] for example in examples]
            scalar_text = spec.datatype == "BYTES" and len(spec.shape) == 1
            block[name] = object_array([v.item() for v in values]) if scalar_text else np.stack(values)
        return block

    def _learn(self, row: int, example: dict[str, Array]) -> None:
        if row > 1 and example.keys() != self._specs.keys():
            odd = sorted(example.keys() ^ self._specs.keys())[0]
            raise InvalidArgument(f"'{self._named}', row {row}: column '{odd}' is not in every example")
        for name, value in example.items():
            spec = column_spec(self._named, name, value.dtype, value.shape)
            if self._specs.setdefault(name, spec) != spec:
                raise InvalidArgument(
                    f"'{self._named}', row {row}, column '{name}': got {spec.datatype} {list(value.shape)}, examples "
                    "before it "
                    f"have {self._specs[name].datatype} {list(self._specs[name].shape[1:])}"
                )

    def _examples(self, made: Any) -> Iterator[dict[str, Array]]:
        row = 0
        try:
            for row, item in enumerate(made, start=1):
                yield self._check(row, item)
        except SalverError:
            raise
        except Exception as error:  # boundary: the user's own code
            raise _failed(self._named, error, f" after row {row}") from error

    def _check(self, row: int, item: Any) -> dict[str, Array]:
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Mapping)):
            raise InvalidArgument(
                f"'{self._named}', row {row}: got a {type(item).__name__}, expected (dictionary of arrays, label)"
            )
        inputs, label = item
        if label is not None and _LABEL in inputs:
            raise InvalidArgument(f"'{self._named}', row {row}: 'label' stands among the inputs and beside them")
        values = {**inputs, _LABEL: label} if label is not None else dict(inputs)
        return {
            n: to_carried(self._named, n, np.asarray(v)[None], row - 1).reshape(np.shape(v)) for n, v in values.items()
        }

    def _call(self) -> Any:
        try:
            return self._function()
        except SalverError:
            raise
        except Exception as error:  # boundary: the user's own code
            raise _failed(self._named, error, "") from error


def _failed(named: str, error: Exception, where: str) -> FailedPrecondition:
    return FailedPrecondition(f"'{named}' raised {type(error).__name__}{where}: {error}")


def _find(named: str) -> Callable[[], Any]:
    module_name, _, attribute = named.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # console scripts do not search the current folder; users expect it
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise NotFound(f"'{named}': no module named '{error.name}', neither installed nor in '{here}'") from None
    except Exception as error:  # boundary: the user's own code
        raise _failed(module_name, error, " while it was imported") from error
    finally:
        sys.path.remove(here)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise NotFound(f"'{named}': module '{module_name}' has no function '{attribute}'")
    return function  # type: ignore[no-any-return]  # the user's callable has no known type
