"""What every codec of the Open Inference Protocol asks of a request for one version of a model, whatever its bytes."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.tensors import NUMPY_DTYPES, Signature, TensorSpec
from salver.server.frontends.access import Peer
from salver.server.frontends.oip.messages import (
    DEFAULT_LIMITS,
    CodecLimits,
    Decoded,
    OutputWish,
    Parameters,
    Region,
    Wanted,
)
from salver.server.frontends.shared_memory import SharedMemory
from salver.wire.elements import check_strings, from_bytes

_MAX_OFFSET = 1 << 62


class OutputWishes:
    """How requests may want the outputs of a model."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self.all_binary = tuple(OutputWish(spec.name, True) for spec in signature.outputs)
        """The wishes of a request that wants all outputs as bytes."""

    def read(
        self, wanted: Sequence[Wanted] | None, parameters: Parameters | None, binary: bool
    ) -> tuple[OutputWish, ...] | None:
        """How outputs are wanted; None for all of them, not binary.

        Args:
            wanted: as the request lists them; nothing means all.
            parameters: those of the request.
            binary: what ``binary_data_output`` is where the request does not say.

        Raises:
            InvalidArgument: an output that is unknown or named twice, or a parameter that makes no sense.
        """
        if parameters:
            binary = _flag(parameters, "binary_data_output", binary, "request")
        if not wanted:
            return self.all_binary if binary else None
        wishes: dict[str, OutputWish] = {}
        for output in wanted:
            self._signature.output(output.name)
            where = f"output '{output.name}'"
            if output.name in wishes:
                raise InvalidArgument(f"{where} is asked for twice")
            own = output.parameters or {}
            region = region_of(own, where)
            classes = own.get("classification", 0)
            if type(classes) is not int or classes < 0:
                raise InvalidArgument(f"{where}: classification is {classes!r}, expected a number of classes")
            if region is not None and classes:
                raise InvalidArgument(f"{where}: classification is text, which does not go to shared memory")
            wishes[output.name] = OutputWish(output.name, _flag(own, "binary_data", binary, where), classes, region)
        return tuple(wishes.values())


class OipModel:
    """The rules of one version of a model: which inputs and outputs there are, and how outputs may be wanted.

    Args:
        memory: where shared memory is read and written; off by default.
        limits: bounds of what a request may hold.
    """

    def __init__(
        self, signature: Signature, memory: SharedMemory | None = None, limits: CodecLimits = DEFAULT_LIMITS
    ) -> None:
        self.signature = signature
        self.limits = limits
        self._memory = SharedMemory("") if memory is None else memory
        self._specs = {spec.name: spec for spec in signature.inputs}
        self._outputs = {spec.name: spec for spec in signature.outputs}
        wishes = OutputWishes(signature)
        self.wishes = wishes.read
        """As `OutputWishes.read`."""
        self.all_binary = wishes.all_binary

    def find_input(self, name: str, datatype: str, given: Iterable[str], taken: Container[str]) -> TensorSpec:
        """The spec of an input as a request names it.

        Args:
            given: all names of the request, for the message about those that are unknown or missing.
            taken: names that came before.

        Raises:
            InvalidArgument: it came twice, is unknown, or has another datatype.
        """
        where = f"input '{name}'"
        if name in taken:
            raise InvalidArgument(f"{where} is given twice")
        spec = self._specs.get(name)
        if datatype not in NUMPY_DTYPES:
            raise InvalidArgument(f"{where}: unknown datatype '{datatype}'; valid: {', '.join(NUMPY_DTYPES)}")
        if spec is None:
            self.signature.check({other: np.empty(0) for other in given})
            raise InvalidArgument(f"unknown {where}")
        if datatype != spec.datatype:
            raise InvalidArgument(f"{where}: got datatype {datatype}, expected {spec.datatype}")
        return spec

    def read_region(self, region: Region, spec: TensorSpec, shape: list[int], peer: Peer) -> Array:
        """An input that lies in shared memory.

        Raises:
            SalverError: as `SharedMemory.read` and `from_bytes`.
        """
        data = self._memory.read(region.name, region.offset, region.byte_size, peer)
        return from_bytes(data, 0, len(data), spec.datatype, shape, f"input '{spec.name}'", spec.binary)

    def write_region(self, region: Region, name: str, data: bytes | memoryview, peer: Peer) -> None:
        """Put an output into shared memory.

        Raises:
            InvalidArgument: it is larger than the part of the region that the request gave.
            SalverError: as `SharedMemory.write`.
        """
        if len(data) > region.byte_size:
            raise InvalidArgument(
                f"output '{name}' has {len(data)} bytes, the request gave {region.byte_size} of shared memory region "
                f"'{region.name}'"
            )
        self._memory.write(region.name, region.offset, data, peer)

    def checked(
        self,
        inputs: dict[str, Array],
        wishes: tuple[OutputWish, ...] | None,
        id: str | int | None,
        parameters: Parameters | None,
    ) -> Decoded:
        """The request, if its arrays are what `check` accepts."""
        return Decoded(inputs, self.check(inputs), wishes, id, parameters)

    def check(self, inputs: dict[str, Array]) -> int:
        """The number of rows of inputs.

        Raises:
            InvalidArgument: they do not fit the signature, or there is no row.
            TooLarge: a string is over its limit.
        """
        rows = self.signature.check(inputs)
        if rows < 1:
            raise InvalidArgument(f"a request needs at least one row, got {rows}")
        for name, array in inputs.items():
            if array.dtype.hasobject:
                binary = self.signature.input(name).binary
                check_strings(array, self.limits.max_string_bytes, f"input '{name}'", binary)
        return rows

    def output_names(self, wishes: tuple[OutputWish, ...] | None) -> tuple[str, ...] | None:
        """The outputs to ask the engine for: None for all of them, in order, so that such requests can be merged."""
        if wishes is None or wishes is self.all_binary:
            return None
        names = tuple(wish.name for wish in wishes)
        return None if names == self.signature.output_names else names


def region_of(parameters: Parameters | None, where: str) -> Region | None:
    """Where in shared memory a tensor lies or goes; None for one that does not.

    Raises:
        InvalidArgument: the parameters are of the wrong type, or the size is missing.
    """
    if not parameters or "shared_memory_region" not in parameters:
        return None
    name = parameters["shared_memory_region"]
    if not isinstance(name, str):
        raise InvalidArgument(f"{where}: shared_memory_region is {name!r}, expected a name")
    sizes = []
    for key, default in (("shared_memory_byte_size", None), ("shared_memory_offset", 0)):
        size = parameters.get(key, default)
        if type(size) is not int or not 0 <= size < _MAX_OFFSET:
            raise InvalidArgument(f"{where}: {key} is {size!r}, expected a number of bytes")
        sizes.append(size)
    return Region(name, *sizes)


def answer_parameters(parameters: Parameters | None) -> Parameters:
    """What of a request's parameters its answer repeats: those of a sequence, as Triton's ensembles do."""
    if not parameters or not parameters.get("sequence_id"):
        return {}
    return {
        "sequence_id": parameters["sequence_id"],
        "sequence_start": parameters.get("sequence_start", False),
        "sequence_end": parameters.get("sequence_end", False),
    }


def _flag(parameters: Parameters, name: str, default: bool, where: str) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidArgument(f"{where}: {name} is {value!r}, expected true or false")
    return value
