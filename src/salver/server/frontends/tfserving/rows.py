"""Requests and answers of ``:predict`` in JSON: by rows, ``instances`` to ``predictions``, and by columns, ``inputs``
to ``outputs``. Format: https://www.tensorflow.org/tfx/serving/api_rest#predict_api.
KServe's protocol v1 has the rows alone."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition, InvalidArgument, format_shape
from salver.core.tensors import Signature, TensorSpec
from salver.server.frontends.instances import shape_of, to_inputs, to_plain
from salver.server.frontends.oip.messages import DEFAULT_LIMITS, CodecLimits
from salver.server.frontends.tfserving.shortcut import MAX_RANK, UNSURE, Decoded, Shortcut, is_common
from salver.server.frontends.tfserving.signatures import check_signature_name
from salver.wire import jsonio
from salver.wire.elements import check_strings, decode_text, from_json

BYTES_SUFFIX: Final = "_bytes"
"""Outputs of strings with a name that ends so are bytes: they are written as ``{"b64": ...}``."""


class _Plain(msgspec.Struct):
    instances: Any = msgspec.UNSET
    inputs: Any = msgspec.UNSET
    signature_name: str | None = None


class RowCodec:
    """Decodes requests for one model and encodes its answers."""

    def __init__(self, signature: Signature, limits: CodecLimits = DEFAULT_LIMITS) -> None:
        self._signature = signature
        self._limits = limits
        self._specs = {spec.name: spec for spec in signature.inputs}
        self._texts = [spec.name for spec in signature.inputs if spec.datatype == "BYTES"]
        self._only = signature.inputs[0] if len(signature.inputs) == 1 else None
        self._fast = Shortcut(self._only) if self._only is not None and is_common(self._only, signature) else None

    def decode(self, body: bytes) -> Decoded:
        """Read a request.

        Raises:
            InvalidArgument: it is malformed or does not fit the signature; names the input or the instance.
            TooLarge: a string, or the nesting of the JSON, is over its limit.
            FailedPrecondition: by rows, but the model's inputs have no first dimension.
        """
        if self._fast is not None:
            try:
                decoded = self._fast.decode(body)
            except UNSURE:
                decoded = None  # the long way says what is wrong, or knows what the short one does not
            if decoded is not None:
                self._check_strings(decoded.inputs)
                return decoded
        return self._decode_slowly(body)

    def _decode_slowly(self, body: bytes) -> Decoded:
        jsonio.check_depth(body, self._limits.max_json_depth)
        request: _Plain = jsonio.decode(body, _Plain)
        check_signature_name(request.signature_name)
        if request.instances is msgspec.UNSET and request.inputs is msgspec.UNSET:
            raise InvalidArgument("Missing 'inputs' or 'instances' key")
        if request.instances is msgspec.UNSET:
            return self._checked(self._columns(request.inputs), None)
        if request.inputs is not msgspec.UNSET:
            raise InvalidArgument("expected only one of 'inputs' and 'instances', got both")
        instances = request.instances
        if not isinstance(instances, list) or not instances:
            raise InvalidArgument("'instances': expected a list of one row or more")
        rows = unwrap_rows(instances, self._signature)
        return self._checked(to_inputs(rows, self._signature, self._limits.max_string_bytes), len(instances))

    def _columns(self, inputs: Any) -> dict[str, Array]:
        if not isinstance(inputs, dict) or _is_base64(inputs):
            if self._only is None:
                raise InvalidArgument(
                    f"'inputs' is a plain value, expected an object with {', '.join(map(repr, sorted(self._specs)))}"
                )
            return {self._only.name: _column(inputs, self._only)}
        if inputs.keys() != self._specs.keys():
            self._signature.check(inputs)  # says which are unknown and which are missing
        return {name: _column(value, self._specs[name]) for name, value in inputs.items()}

    def _checked(self, inputs: dict[str, Array], instances: int | None) -> Decoded:
        rows = self._signature.check(inputs)
        if rows < 1:
            raise InvalidArgument(f"a request needs at least one row, got {rows}")
        self._check_strings(inputs)
        return Decoded(inputs, rows, instances)

    def _check_strings(self, inputs: Mapping[str, Array]) -> None:
        for name in self._texts:
            binary = self._specs[name].binary
            check_strings(inputs[name], self._limits.max_string_bytes, f"input '{name}'", binary)

    def encode(self, decoded: Decoded, outputs: Mapping[str, Array]) -> bytes:
        """Write the answer: a plain value where the model has one output, an object where it has several.

        Raises:
            FailedPrecondition: by rows, and an output has no row for each instance.
        """
        specs = self._signature.outputs
        count = decoded.instances
        if count is not None:
            for spec in specs:
                _check_rows(spec, outputs[spec.name], count)
        values = {spec.name: _values(outputs[spec.name], spec) for spec in specs}
        if len(specs) == 1:
            answer = next(iter(values.values()))
        elif count is None:
            answer = values
        else:
            answer = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        return b'{"%b":%b}' % (b"outputs" if count is None else b"predictions", jsonio.encode(answer))


def unwrap_rows(rows: list[Any], signature: Signature) -> list[Any]:
    """Rows with ``{"b64": ...}`` undone where the model takes strings.

    Raises:
        InvalidArgument: it is no base64, or not UTF-8.
    """
    texts = {spec.name: spec for spec in signature.inputs if spec.datatype == "BYTES"}
    if not texts:
        return rows
    only = next(iter(texts.values())) if len(signature.inputs) == 1 else None
    found = []
    for index, row in enumerate(rows):
        where = f"instance {index}"
        if not isinstance(row, dict) or _is_base64(row):
            found.append(row if only is None else _unwrap(row, len(only.shape), where, only.binary))
            continue
        named = {
            name: _unwrap(value, len(texts[name].shape), f"{where}, input '{name}'", texts[name].binary)
            if name in texts
            else value
            for name, value in row.items()
        }
        found.append(named)
    return found


def _column(value: Any, spec: TensorSpec) -> Array:
    where = f"input '{spec.name}'"
    if spec.datatype == "BYTES":
        value = _unwrap(value, len(spec.shape) if spec.rank_known else MAX_RANK, where, spec.binary)
    shape = shape_of(value)
    if shape:
        return from_json(value, spec.datatype, shape, where)
    return from_json([value], spec.datatype, [1], where).reshape(())


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _unwrap(value: Any, depth: int, where: str, binary: bool) -> Any:
    """A value with every ``{"b64": ...}`` in it undone, down to ``depth`` lists."""
    if isinstance(value, list) and depth > 0:
        return [_unwrap(item, depth - 1, where, binary) for item in value]
    if not _is_base64(value):
        return value
    try:
        raw = base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument(f"{where}: the text in 'b64' is not base64") from None
    return decode_text(raw, 0, where, binary)


def _check_rows(spec: TensorSpec, array: Array, count: int) -> None:
    if not array.ndim or len(array) != count:
        raise FailedPrecondition(
            f"Tensor name: {spec.name} has inconsistent batch size: its shape is {format_shape(array.shape)}, "
            f"expecting: {count}; send 'inputs' in place of 'instances' to get it as it is"
        )


def _values(array: Array, spec: TensorSpec) -> Any:
    values = to_plain(array, spec)
    if spec.datatype == "BYTES" and spec.name.endswith(BYTES_SUFFIX):
        return _wrap(values)
    return values


def _wrap(value: Any) -> Any:
    if isinstance(value, list):
        return [_wrap(item) for item in value]
    raw = value if isinstance(value, bytes) else value.encode()
    return {"b64": base64.b64encode(raw).decode()}
