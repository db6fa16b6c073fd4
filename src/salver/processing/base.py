"""The port of the `processing` family: one declared step before or after a graph.

Steps work on named arrays: what clients send, what earlier steps made, what the graph takes and gives. A step consumes
some of these names and makes others. Every array has the batch dimension first, and a row's answer depends on no other
row, except where texts are padded to the longest of the batch.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.errors import InvalidArgument, format_shape
from salver.core.tensors import TensorSpec

Read = Callable[[str], bytes]
"""The content of a file that a step names."""

FLOATS = ("FP16", "FP32", "FP64")


class ProcessingStep(abc.ABC):
    """One step. Instances hold no state that a run changes; `run` may be called from several threads at once.

    Construction reads files; it raises `InvalidArgument` where a config makes no sense, and `CorruptArtifact` where a
    file is not what it has to be.

    Args:
        config: an instance of `Config`.
        read: gives the files that the config names.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Any]] = Config
    files: ClassVar[tuple[str, ...]] = ()
    """Fields of the config that name files; an empty field names none."""
    is_even: ClassVar[bool] = True
    """Whether rows of one shape take about as long whatever is in them."""
    takes_files: ClassVar[bool] = False
    """Whether clients send it files, bytes of any kind."""
    runs_code: ClassVar[bool] = False
    """Whether it runs code that came with the model; only for bundles signed by a key that is trusted."""

    @abc.abstractmethod
    def __init__(self, config: Any, read: Read) -> None: ...

    @property
    @abc.abstractmethod
    def consumes(self) -> tuple[str, ...]:
        """Names of the arrays it reads."""

    def raw(self, name: str, batch: int | str) -> TensorSpec:
        """What clients send under a consumed name that nothing before this step makes.

        Args:
            batch: the graph's batch dimension.

        Raises:
            InvalidArgument: the step takes no raw input.
        """
        raise InvalidArgument(f"nothing gives '{name}', which it reads")

    @abc.abstractmethod
    def bind(self, given: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
        """Fit the step to its place; called once, before any run.

        Args:
            given: name -> spec of everything there is before this step.
            wanted: name -> spec of the graph's inputs, for a step before it.

        Returns:
            What it makes.

        Raises:
            InvalidArgument: it cannot be there, and why.
        """

    @abc.abstractmethod
    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run on one batch.

        Raises:
            InvalidArgument: a row that it does not take; names the row.
        """

    def pad_to(self, sizes: Mapping[str, int]) -> None:  # noqa: B027  # most steps have nothing to pad
        """Make arrays of fixed size along the dimensions named, where it makes any of these; for data that has to lie
        in one array."""


def row_name(name: str, row: int, rows: int) -> str:
    """How errors name a row: not at all where there is but one."""
    return f"input '{name}'" if rows == 1 else f"input '{name}', row {row}"


def find(given: Mapping[str, TensorSpec], name: str, datatypes: tuple[str, ...], ranks: tuple[int, ...]) -> TensorSpec:
    """The spec of something a step reads.

    Raises:
        InvalidArgument: of another datatype or rank than it takes.
    """
    spec = given[name]
    if spec.datatype not in datatypes or (spec.rank_known and len(spec.shape) not in ranks):
        dims = " or ".join(str(rank) for rank in ranks)
        raise InvalidArgument(
            f"'{name}' is {spec.datatype} {format_shape(spec.shape)}; it takes {', '.join(datatypes)} of {dims} "
            "dimensions"
        )
    return spec
