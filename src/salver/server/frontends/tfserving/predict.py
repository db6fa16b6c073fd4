"""``PredictRequest`` and ``PredictResponse`` of one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.tensors import Signature
from salver.server.frontends.instances import MAX_STRING_BYTES
from salver.server.frontends.tfserving.signatures import SIGNATURE_NAME, check_signature_name
from salver.server.frontends.tfserving.tensors import PROTOS, to_array, to_bytes
from salver.server.frontends.tfserving.versions import number_of
from salver.wire.elements import check_strings
from salver.wire.protobuf import delimited

MODEL_SPEC: Final = PROTOS.message("tensorflow.serving.ModelSpec")
_OUTPUTS: Final = 1  # of PredictResponse
_MODEL_SPEC: Final = 2
_KEY: Final = 1  # of an entry of its outputs
_VALUE: Final = 2


def model_spec(name: str, version: str, signature_name: str = "") -> Any:
    """A ``ModelSpec`` that says which version answered."""
    spec = MODEL_SPEC(name=name, signature_name=signature_name)
    number = number_of(version)
    if number is not None:
        spec.version.value = number
    return spec


class Decoded:
    """A request, decoded and checked.

    Args:
        inputs, rows: as `Signature.check` accepts and returns them.
        wanted: the outputs to give, in order; None for all of them.
    """

    __slots__ = ("inputs", "rows", "wanted")

    def __init__(self, inputs: dict[str, Array], rows: int, wanted: tuple[str, ...] | None) -> None:
        self.inputs = inputs
        self.rows = rows
        self.wanted = wanted


class PredictCodec:
    """Decodes requests for one version of a model and encodes its answers.

    Args:
        max_bytes: see `to_array`.
        max_string_bytes: of one element of a string tensor.
    """

    def __init__(
        self, name: str, version: str, signature: Signature, max_bytes: int, max_string_bytes: int = MAX_STRING_BYTES
    ) -> None:
        self._signature = signature
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._datatypes = {spec.name: spec.datatype for spec in signature.outputs}
        self._keys = {name: delimited(_KEY, name.encode()) for name in self._datatypes}
        self._spec = delimited(_MODEL_SPEC, model_spec(name, version, SIGNATURE_NAME).SerializeToString())
        self._max_bytes = max_bytes
        self._max_string_bytes = max_string_bytes

    def datatype_of(self, name: str) -> str:
        """The datatype of an input."""
        return self._inputs[name].datatype

    def decode(self, request: Any) -> Decoded:
        """Read a ``PredictRequest``.

        Raises:
            InvalidArgument: it does not fit the signature, or asks for outputs that are not there.
            TooLarge: see `to_array`; or a string is over its limit.
        """
        check_signature_name(request.model_spec.signature_name)
        given = request.inputs
        inputs: dict[str, Array] = {}
        for name, spec in self._inputs.items():
            if name in given:
                array = inputs[name] = to_array(given[name], spec, self._max_bytes)
                if spec.datatype == "BYTES":
                    check_strings(array, self._max_string_bytes, f"input '{name}'", spec.binary)
        if len(inputs) != len(given):
            self._signature.check(dict.fromkeys(given))  # type: ignore[arg-type]  # names alone: it says which are wrong
        rows = self._signature.check(inputs)
        if rows < 1:
            raise InvalidArgument(f"a request needs at least one row, got {rows}")
        return Decoded(inputs, rows, self._wanted(request.output_filter) if request.output_filter else None)

    def _wanted(self, names: Any) -> tuple[str, ...] | None:
        for index, name in enumerate(names):
            self._signature.output(name)
            if name in names[:index]:
                raise InvalidArgument(f"output_filter: output '{name}' is asked for twice")
        wanted = tuple(names)
        return None if wanted == self._signature.output_names else wanted

    def encode(self, outputs: Mapping[str, Array], wanted: tuple[str, ...] | None) -> bytes:
        """Write the answer."""
        parts = []
        for name in self._datatypes if wanted is None else wanted:
            tensor = to_bytes(outputs[name], self._datatypes[name])
            parts.append(delimited(_OUTPUTS, self._keys[name] + delimited(_VALUE, tensor)))
        parts.append(self._spec)
        return b"".join(parts)
