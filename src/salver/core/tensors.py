"""Tensors as they travel: datatypes of the Open Inference Protocol, specs and signatures.

In flight a tensor is a numpy array. Two datatypes have no numpy type of their own: BF16 travels as ``uint16`` bit
patterns, and BYTES as an ``object`` array whose elements are ``str`` (ONNX string tensors are UTF-8, so bytes that came
over a wire are decoded, strictly, before they are queued).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from salver.core.errors import InvalidArgument, UnknownName, format_shape

ANY_RANK: Final = "..."
"""The only dimension of a shape whose rank is not known before the model has run."""

NUMPY_DTYPES: Final[dict[str, np.dtype]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
"""Open Inference Protocol datatype -> the numpy dtype in which Salver carries it."""

_OIP_NAMES: Final = {dtype: name for name, dtype in NUMPY_DTYPES.items() if name != "BF16"}


def to_datatype(dtype: np.dtype) -> str:
    """Name the Open Inference Protocol datatype of a numpy dtype.

    Strings of any kind are BYTES; ``uint16`` is UINT16, never BF16.

    Raises:
        InvalidArgument: the dtype has no datatype (complex, datetime, structured).
    """
    if dtype.kind in "OUS":
        return "BYTES"
    try:
        return _OIP_NAMES[dtype.newbyteorder("=")]
    except KeyError:
        raise InvalidArgument(
            f"numpy dtype '{dtype}' has no tensor datatype; valid: {', '.join(NUMPY_DTYPES)}"
        ) from None


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Name, datatype and shape of one input or output.

    Args:
        name: the tensor's name in the graph.
        datatype: an Open Inference Protocol datatype, a key of `NUMPY_DTYPES`.
        shape: one entry per dimension: a size, or the name of a symbolic dimension. Dimensions of the same name in one
            signature have the same size; a name that starts with ``?`` stands for itself only. ``("...",)`` means that
            the rank is not known.
        labels: for an output of classes, the name of each class, in the order of the last dimension.
        binary: for BYTES, whether elements are bytes of any kind (an image file) and no text. In flight such an element
            is a ``str`` of one character per byte (Latin-1), or base64.
    """

    name: str
    datatype: str
    shape: tuple[int | str, ...]
    labels: tuple[str, ...] = ()
    binary: bool = False

    def __post_init__(self) -> None:
        if self.datatype not in NUMPY_DTYPES:
            raise UnknownName("datatype", self.datatype, NUMPY_DTYPES)

    @property
    def dtype(self) -> np.dtype:
        """The numpy dtype in which this tensor is carried."""
        return NUMPY_DTYPES[self.datatype]

    @property
    def wire_shape(self) -> list[int]:
        """The shape with -1 for every dimension that is not fixed, as wire protocols write it."""
        return [d if isinstance(d, int) else -1 for d in self.shape]

    @property
    def rank_known(self) -> bool:
        """Whether the number of dimensions is known."""
        return self.shape != (ANY_RANK,)


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """A model's inputs and outputs."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batch_dim(self) -> str | None:
        """The symbolic first dimension that all inputs and all outputs share, or None when there is no such dimension.

        Only a model that has one can be given several examples at once.
        """
        first = {spec.shape[0] if spec.shape else None for spec in (*self.inputs, *self.outputs)}
        if len(first) != 1:
            return None
        (dim,) = first
        return dim if isinstance(dim, str) and dim != ANY_RANK else None

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all outputs, in order."""
        return tuple(spec.name for spec in self.outputs)

    def input(self, name: str) -> TensorSpec:
        """The input of that name.

        Raises:
            UnknownName: there is none.
        """
        return _named(self.inputs, "input", name)

    def output(self, name: str) -> TensorSpec:
        """The output of that name.

        Raises:
            UnknownName: there is none.
        """
        return _named(self.outputs, "output", name)

    def check(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Check arrays against the inputs: names, dtypes, ranks, fixed sizes, and that equal symbols have equal sizes.

        Returns:
            The number of rows: the size of the batch dimension, or 1 when there is none.

        Raises:
            InvalidArgument: naming the input, what was given and what is expected.
        """
        if len(inputs) != len(self.inputs) or any(spec.name not in inputs for spec in self.inputs):
            self._refuse_names(inputs)
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            array = inputs[spec.name]
            if array.dtype != spec.dtype:
                raise InvalidArgument(
                    f"input '{spec.name}': got datatype {to_datatype(array.dtype)}, expected {spec.datatype}"
                )
            if not _fits(array.shape, spec.shape, sizes):
                raise InvalidArgument(self._shape_message(spec, array.shape, sizes))
        batch = self.batch_dim
        return sizes.get(batch, 1) if batch else 1

    def _refuse_names(self, given: Mapping[str, object]) -> None:
        expected = ", ".join(f"'{s.name}'" for s in self.inputs)
        unknown = [n for n in given if all(n != s.name for s in self.inputs)]
        missing = [s.name for s in self.inputs if s.name not in given]
        parts = []
        if unknown:
            parts.append("unknown input " + ", ".join(f"'{n}'" for n in unknown))
        if missing:
            parts.append("missing input " + ", ".join(f"'{n}'" for n in missing))
        raise InvalidArgument(f"{'; '.join(parts)}; the model's inputs are {expected}")

    def _shape_message(self, spec: TensorSpec, got: Sequence[int], sizes: Mapping[str, int]) -> str:
        bound = {d: sizes[d] for d in spec.shape if isinstance(d, str) and d in sizes}
        where = f" (with {', '.join(f'{k}={v}' for k, v in bound.items())} from the other inputs)" if bound else ""
        return f"input '{spec.name}': got shape {format_shape(got)}, expected {format_shape(spec.shape)}{where}"


def _fits(got: tuple[int, ...], expected: tuple[int | str, ...], sizes: dict[str, int]) -> bool:
    """Whether a shape fits; binds the symbols it meets, only if it does."""
    if expected == (ANY_RANK,):
        return True
    if len(got) != len(expected):
        return False
    bound: dict[str, int] = {}
    for size, dim in zip(got, expected, strict=True):
        if isinstance(dim, int):
            if size != dim:
                return False
        elif not dim.startswith("?") and sizes.get(dim, bound.setdefault(dim, size)) != size:
            return False
    sizes.update(bound)
    return True


def _named(specs: tuple[TensorSpec, ...], kind: str, name: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise UnknownName(kind, name, [s.name for s in specs])
