"""The steps of a model in order, checked against its graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, SalverError, format_shape
from salver.core.tensors import Signature, TensorSpec
from salver.processing.base import ProcessingStep

Specs = dict[str, TensorSpec]


class Pipeline:
    """Steps before and after a graph.

    Args:
        before, after: the steps, in order, not bound yet.
        outputs: names of what clients get; empty for what the steps make and what they leave alone.
        inner: the graph's own signature.

    Raises:
        InvalidArgument: the steps do not fit each other or the graph; names the step.
    """

    def __init__(
        self,
        before: Sequence[ProcessingStep],
        after: Sequence[ProcessingStep],
        outputs: Sequence[str],
        inner: Signature,
    ) -> None:
        self._before, self._after = tuple(before), tuple(after)
        self._inner = inner
        self._batch = _batch_of(inner)
        known, inputs = self._bind_before()
        read = {name for step in self._after for name in step.consumes}
        made = self._bind_after(known)
        left = [name for name in inner.output_names if name not in read and name not in made]
        names = list(outputs) or [*made, *left]
        missing = [name for name in names if name not in known]
        if missing:
            raise InvalidArgument(f"outputs: nothing gives '{missing[0]}'; there are {_names(known)}")
        self.signature = Signature(inputs=inputs, outputs=tuple(known[name] for name in names))
        """What clients send and get."""
        self.inner_outputs = tuple(n for n in inner.output_names if n in read or n in names)
        """Outputs of the graph that are needed."""
        self._kept = frozenset(read | set(names))

    @property
    def is_even(self) -> bool:
        """Whether rows of one shape take about as long whatever is in them."""
        return all(step.is_even for step in (*self._before, *self._after))

    def pad_to(self, sizes: Mapping[str, int]) -> None:
        """See `ProcessingStep.pad_to`."""
        for step in self._before:
            step.pad_to(sizes)

    def run_before(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """From what clients send to what the graph takes.

        Returns:
            The graph's inputs, and what steps after it read besides its outputs.
        """
        there = dict(inputs)
        for step in self._before:
            there.update(step.run(there))
        kept = {name: array for name, array in there.items() if name in self._kept}
        return {spec.name: there[spec.name] for spec in self._inner.inputs}, kept

    def run_after(self, arrays: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """From what the graph gives, and what was kept, to what clients get."""
        for step in self._after:
            arrays.update(step.run(arrays))
        return {name: arrays[name] for name in outputs}

    def _bind_before(self) -> tuple[Specs, tuple[TensorSpec, ...]]:
        known: Specs = {}
        inputs: Specs = {}
        wanted = {spec.name: spec for spec in self._inner.inputs}
        made: set[str] = set()
        for number, step in enumerate(self._before, 1):
            try:
                for name in step.consumes:
                    if name not in known:
                        known[name] = inputs[name] = step.raw(name, self._batch)
                specs = step.bind(known, wanted)
                for spec in specs:
                    if spec.name in wanted:
                        _check_fits(spec, wanted[spec.name])
            except SalverError as error:
                raise error.reworded(f"step {number} before the model ({step.name}): {error.message}") from None
            known.update({spec.name: spec for spec in specs})
            made.update(spec.name for spec in specs)
        useful = {name for step in (*self._before, *self._after) for name in step.consumes} | set(wanted)
        for name in sorted(made - useful):
            raise InvalidArgument(f"a step before the model makes '{name}'; the model's inputs are {_names(wanted)}")
        for name, spec in wanted.items():
            if name not in made:
                known[name] = inputs[name] = spec
        return {**known, **wanted}, tuple(inputs.values())

    def _bind_after(self, known: Specs) -> list[str]:
        known.update({spec.name: spec for spec in self._inner.outputs})
        made: list[str] = []
        read_again: set[str] = set()
        for number, step in enumerate(self._after, 1):
            try:
                for name in step.consumes:
                    if name not in known:
                        raise InvalidArgument(f"nothing gives '{name}'; there are {_names(known)}")
                specs = step.bind(known, {})
            except SalverError as error:
                raise error.reworded(f"step {number} after the model ({step.name}): {error.message}") from None
            read_again.update(name for name in step.consumes if name in made)
            known.update({spec.name: spec for spec in specs})
            read_again.difference_update(spec.name for spec in specs)
            made.extend(spec.name for spec in specs if spec.name not in made)
        return [name for name in made if name not in read_again]


def _batch_of(inner: Signature) -> int | str:
    first = {spec.shape[0] if spec.shape else None for spec in inner.inputs}
    (batch,) = first if len(first) == 1 else (None,)
    if batch is None or batch == "...":
        raise InvalidArgument("steps need a model whose inputs all have the same first dimension, for the examples")
    return batch


def _check_fits(made: TensorSpec, wanted: TensorSpec) -> None:
    fits = made.datatype == wanted.datatype and (
        not wanted.rank_known
        or (
            len(made.shape) == len(wanted.shape)
            and all(
                a == b or isinstance(b, str) or (isinstance(a, str) and i == 0)
                for i, (a, b) in enumerate(zip(made.shape, wanted.shape, strict=True))
            )
        )
    )
    if not fits:
        raise InvalidArgument(
            f"it makes '{made.name}' {made.datatype} {format_shape(made.shape)}; the model takes {wanted.datatype} "
            f"{format_shape(wanted.shape)}"
        )


def _names(names: Iterable[Any]) -> str:
    return ", ".join(f"'{name}'" for name in names)
