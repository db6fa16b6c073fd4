"""The graph of a pipeline: is it sound, what does it take and give, and which steps does an answer need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from salver.core.errors import InvalidArgument, UnknownName, format_shape
from salver.core.tensors import ANY_RANK, Signature, TensorSpec
from salver.server.engine.config import PipelineConfig, StepConfig


class Graph:
    """Steps in an order in which they can run.

    Args:
        config: the pipeline.

    Raises:
        InvalidArgument: a tensor that comes from nowhere, from two places, or goes nowhere; steps in a circle.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.steps = config.steps
        for kind, names in (("input", config.inputs), ("output", config.outputs)):
            if not names or len(set(names)) != len(names):
                raise InvalidArgument(f"pipeline: expected {kind}s of different names, got {_listed(names)}")
        self._source = self._find_sources()
        self._check_uses()
        self.needs = tuple(
            frozenset(self._source[tensor] for tensor in step.inputs.values()) - {-1} for step in self.steps
        )
        self.order = self._sort()

    def title(self, index: int) -> str:
        """A step, as errors name it."""
        return f"step {index + 1} ('{self.steps[index].model}')"

    def _find_sources(self) -> dict[str, int]:
        """Tensor -> the step it comes from; -1 for the client."""
        source = dict.fromkeys(self.config.inputs, -1)
        for index, step in enumerate(self.steps):
            for tensor in step.outputs.values():
                if tensor in source:
                    first = "the client" if source[tensor] < 0 else self.title(source[tensor])
                    raise InvalidArgument(
                        f"pipeline: tensor '{tensor}' comes from {first} and from {self.title(index)}"
                    )
                source[tensor] = index
        return source

    def _check_uses(self) -> None:
        used = set(self.config.outputs)
        for index, step in enumerate(self.steps):
            if not step.inputs or not step.outputs:
                raise InvalidArgument(f"pipeline: {self.title(index)} has no inputs, or no outputs")
            used.update(step.inputs.values())
            for tensor in step.inputs.values():
                if tensor not in self._source:
                    raise UnknownName(f"tensor, input of {self.title(index)},", tensor, self._source)
        made = [tensor for tensor, index in self._source.items() if index >= 0]
        for tensor in self.config.outputs:
            if tensor not in made:
                raise UnknownName("tensor, output of the pipeline,", tensor, made)
        if unused := [tensor for tensor in self._source if tensor not in used]:
            raise InvalidArgument(f"pipeline: nothing uses {_listed(unused)}; leave it out or let a step take it")

    def _sort(self) -> tuple[int, ...]:
        order: list[int] = []
        left = set(range(len(self.steps)))
        while left:
            ready = [index for index in sorted(left) if not self.needs[index] & left]
            if not ready:
                titles = ", ".join(self.title(index) for index in sorted(left))
                raise InvalidArgument(f"pipeline: {titles} wait for each other in a circle")
            order += ready
            left -= set(ready)
        return tuple(order)


class RouteStep(msgspec.Struct, frozen=True):
    """One step of a route.

    Args:
        index: of the step in the pipeline.
        inputs: input of the model, tensor of the pipeline.
        outputs: wanted of the model; None for all.
        tensors: output of the model -> tensor of the pipeline, for those wanted.
        needs: steps of the route before it.
        followers: places in the route of the steps that wait for it.
    """

    index: int
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...] | None
    tensors: dict[str, str]
    needs: int
    followers: tuple[int, ...]


class Route(msgspec.Struct, frozen=True):
    """What has to run for some outputs, in an order in which it can.

    Args:
        steps: no more than are needed.
        outputs: tensors that are answered, in order.
    """

    steps: tuple[RouteStep, ...]
    outputs: tuple[str, ...]


def find_route(graph: Graph, signatures: Sequence[Signature], outputs: tuple[str, ...] | None) -> Route:
    """The steps that some outputs of the pipeline need, asked for nothing else."""
    wanted = graph.config.outputs if outputs is None else outputs
    needed = set(wanted)
    asked: dict[int, tuple[str, ...]] = {}
    for index in reversed(graph.order):
        step = graph.steps[index]
        names = tuple(name for name in signatures[index].output_names if step.outputs.get(name) in needed)
        if names:
            asked[index] = names
            needed.update(step.inputs.values())
    places = {index: place for place, index in enumerate(index for index in graph.order if index in asked)}
    steps = []
    for index in places:
        step, names = graph.steps[index], asked[index]
        followers = tuple(place for other, place in places.items() if index in graph.needs[other])
        steps.append(
            RouteStep(
                index,
                tuple(step.inputs.items()),
                None if names == signatures[index].output_names else names,
                {name: step.outputs[name] for name in names},
                len(graph.needs[index]),
                followers,
            )
        )
    return Route(tuple(steps), tuple(wanted))


class _Dims:
    """Dimensions that are the same, by union-find: a size, or the symbol of one step."""

    def __init__(self) -> None:
        self._parent: dict[object, object] = {}

    def find(self, dim: object) -> object:
        while (parent := self._parent.get(dim, dim)) != dim:
            dim = parent
        return dim

    def unite(self, first: object, second: object) -> bool:
        """Say that two are the same; False when they are different sizes."""
        first, second = self.find(first), self.find(second)
        if first != second:
            if isinstance(first, int) and isinstance(second, int):
                return False
            if isinstance(second, int):
                first, second = second, first
            self._parent[second] = first
        return True


_Dim = int | tuple[int, str]
_Use = tuple[str, TensorSpec, tuple[_Dim, ...]]


def infer_signature(graph: Graph, signatures: Sequence[Signature]) -> Signature:
    """What a pipeline takes and gives, given what its steps do.

    Raises:
        InvalidArgument: a step lacks a tensor that it is mapped to; or what one gives is not what the next takes.
    """
    uses: dict[str, list[_Use]] = {}
    for index, (step, signature) in enumerate(zip(graph.steps, signatures, strict=True)):
        title = graph.title(index)
        _check_names(title, step, signature)
        for specs, mapped in ((signature.inputs, step.inputs), (signature.outputs, step.outputs)):
            for spec in specs:
                if spec.name in mapped:
                    dims = tuple(_own(dim, index, spec.name, place) for place, dim in enumerate(spec.shape))
                    uses.setdefault(mapped[spec.name], []).append((f"{title} '{spec.name}'", spec, dims))
    same = _Dims()
    for tensor, found in uses.items():
        known = [use for use in found if use[1].rank_known]
        for use in found:
            _check_same(tensor, found[0], use)
        for use in known[1:]:
            _unite(tensor, known[0], use, same)
    names = _name_dims(uses, same)
    return Signature(
        inputs=tuple(_spec(tensor, uses[tensor], same, names) for tensor in graph.config.inputs),
        outputs=tuple(_spec(tensor, uses[tensor], same, names) for tensor in graph.config.outputs),
    )


def _check_names(title: str, step: StepConfig, signature: Signature) -> None:
    own = [spec.name for spec in signature.inputs]
    for name in step.inputs:
        if name not in own:
            raise UnknownName(f"input of {title}", name, own)
    if missing := [name for name in own if name not in step.inputs]:
        raise InvalidArgument(f"pipeline: {title} is not given its input {_listed(missing)}")
    for name in step.outputs:
        if name not in signature.output_names:
            raise UnknownName(f"output of {title}", name, signature.output_names)


def _own(dim: int | str, index: int, name: str, place: int) -> _Dim:
    """A dimension of one step; what stands for itself only is told apart by its place."""
    if isinstance(dim, int):
        return dim
    return index, f"{dim}/{name}/{place}" if dim.startswith("?") else dim


def _check_same(tensor: str, first: _Use, second: _Use) -> None:
    if first[1].datatype != second[1].datatype:
        raise InvalidArgument(
            f"pipeline: tensor '{tensor}' is {first[1].datatype} for {first[0]}, but {second[1].datatype} "
            f"for {second[0]}"
        )


def _unite(tensor: str, first: _Use, second: _Use, same: _Dims) -> None:
    shapes = first[2], second[2]
    fits = len(shapes[0]) == len(shapes[1])
    for one, other in zip(*shapes, strict=fits):
        fits = fits and same.unite(one, other)
    if not fits:
        raise InvalidArgument(
            f"pipeline: tensor '{tensor}' is {format_shape(first[1].shape)} for {first[0]}, but "
            f"{format_shape(second[1].shape)} for {second[0]}"
        )


def _name_dims(uses: dict[str, list[_Use]], same: _Dims) -> dict[object, str]:
    """A name for each symbolic dimension: the first symbol that stands for it; those of two steps are told apart."""
    names: dict[object, str] = {}
    taken: Counter[str] = Counter()
    for found in uses.values():
        for _, spec, dims in found:
            for symbol, dim in zip(spec.shape, dims, strict=True):
                root = same.find(dim)
                if isinstance(symbol, str) and symbol != ANY_RANK and root not in names:
                    taken[symbol] += 1
                    names[root] = symbol if taken[symbol] == 1 else f"{symbol}_{taken[symbol]}"
    return names


def _spec(tensor: str, found: list[_Use], same: _Dims, names: dict[object, str]) -> TensorSpec:
    _, spec, dims = next((use for use in found if use[1].rank_known), found[0])
    shape: list[int | str] = []
    for dim in dims:
        root = same.find(dim)
        shape.append(root if isinstance(root, int) else names.get(root, ANY_RANK))
    labels = next((use[1].labels for use in found if use[1].labels), ())
    return TensorSpec(name=tensor, datatype=spec.datatype, shape=tuple(shape), labels=labels)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
