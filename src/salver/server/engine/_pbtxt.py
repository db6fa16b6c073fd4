"""Triton's model configuration, as far as it has meaning here; the only file of the engine that imports protobuf.

The format is https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto, in protobuf's
text form in a folder, in JSON over the wire. What would change answers and cannot be done is refused; what only tunes
another server is ignored, and listed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from google.protobuf import json_format, text_format

from salver.core.errors import InvalidArgument, Unimplemented
from salver.server.engine.config import (
    ControlConfig,
    ModelConfig,
    PipelineConfig,
    SequenceConfig,
    StateConfig,
    StepConfig,
    TensorConfig,
    VersionPolicy,
    WarmUp,
)
from salver.wire.protos import Message, ProtoSet

CACHE_BYTES: Final = 64 << 20
"""Of a response cache that is turned on by ``response_cache``, which names no size."""

_PLATFORMS: Final = ("", "onnxruntime_onnx", "ensemble")
_BACKENDS: Final = ("", "onnxruntime")
_CONTROLS: Final = ("start", "ready", "end", "corrid")
_UNDERSTOOD: Final[dict[str, frozenset[str]]] = {
    place: frozenset(fields.split())
    for place, fields in {
        "": "name platform backend version_policy max_batch_size input output dynamic_batching sequence_batching "
        "ensemble_scheduling instance_group model_warmup response_cache",
        "input": "name data_type dims",
        "output": "name data_type dims label_filename",
        "dynamic_batching": "default_queue_policy",
        "dynamic_batching.default_queue_policy": "default_timeout_microseconds max_queue_size",
        "instance_group": "name count kind",
        "model_warmup": "name batch_size count",
        "sequence_batching": "direct oldest max_sequence_idle_microseconds control_input state",
        "sequence_batching.direct": "",
        "sequence_batching.oldest": "max_candidate_sequences",
        "ensemble_scheduling": "step",
        "ensemble_scheduling.step": "model_name model_version input_map output_map",
    }.items()
}
"""Message -> fields that have a meaning here; messages that are not listed are understood as a whole."""


def read_text(text: str, path: str, name: str) -> ModelConfig:
    """Read a ``config.pbtxt``.

    Args:
        path: of the file, for messages.
        name: of the model.

    Raises:
        InvalidArgument: it cannot be parsed, or contradicts itself.
        Unimplemented: it asks for what cannot be done here.
    """
    message = _message()()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise InvalidArgument(f"'{path}': {error}") from None
    return _convert(message, name)


def read_json(data: Mapping[str, Any], name: str) -> ModelConfig:
    """Read a configuration that came with a load request. Errors are those of `read_text`."""
    message = _message()()
    try:
        json_format.ParseDict(dict(data), message)
    except (json_format.ParseError, OverflowError) as error:  # infinity, where a whole number is expected
        reason = str(error).partition("\n")[0]  # what follows is all fields there are
        raise InvalidArgument(f"the configuration of model '{name}': {reason}") from None
    return _convert(message, name)


@functools.cache
def _message() -> Message:
    return ProtoSet("oip").message("inference.ModelConfig")


def _convert(given: Any, name: str) -> ModelConfig:
    _check(given, name)
    batched = given.max_batch_size > 0
    queue = given.dynamic_batching.default_queue_policy
    lanes = sum(max(group.count, 1) for group in given.instance_group)
    return ModelConfig(
        versions=_versions(given.version_policy),
        max_batch=given.max_batch_size or None,
        lanes=lanes or None,
        max_queue=queue.max_queue_size or None,
        default_timeout_s=queue.default_timeout_microseconds / 1e6 or None,
        response_cache_bytes=CACHE_BYTES if given.response_cache.enable else None,
        sequence=_sequence(given.sequence_batching) if given.HasField("sequence_batching") else None,
        pipeline=_pipeline(given) if given.HasField("ensemble_scheduling") else None,
        warm_up=tuple(WarmUp(rows=max(w.batch_size, 1), count=max(w.count, 1)) for w in given.model_warmup),
        label_files={output.name: output.label_filename for output in given.output if output.label_filename},
        inputs=tuple(_tensor(tensor, batched) for tensor in given.input),
        outputs=tuple(_tensor(tensor, batched) for tensor in given.output),
        ignored=tuple(dict.fromkeys(_ignored(given))),
    )


def _check(given: Any, name: str) -> None:
    if given.name and given.name != name:
        raise InvalidArgument(f"the configuration says that its model is '{given.name}'; it is served as '{name}'")
    for field, valid in (("platform", _PLATFORMS), ("backend", _BACKENDS)):
        value = getattr(given, field)
        if value not in valid:
            raise Unimplemented(
                f"model '{name}': {field} '{value}' cannot be run here; Salver runs {', '.join(filter(None, valid))}"
            )
    if given.sequence_batching.iterative_sequence:
        raise Unimplemented(f"model '{name}': sequence_batching.iterative_sequence is not supported")
    for tensor in (*given.input, *given.output):
        if tensor.HasField("reshape"):
            raise Unimplemented(
                f"model '{name}': reshape of '{tensor.name}' is not supported; clients send the model's own shape"
            )


def _versions(given: Any) -> VersionPolicy | None:
    match given.WhichOneof("policy_choice"):
        case "latest":
            return VersionPolicy(latest=max(given.latest.num_versions, 1))
        case "all":
            return VersionPolicy(latest=0)
        case "specific":
            return VersionPolicy(specific=tuple(map(str, given.specific.versions)))
    return None


def _tensor(given: Any, batched: bool) -> TensorConfig:
    known = _message().DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    if given.data_type not in known:
        raise InvalidArgument(f"tensor '{given.name}': there is no data_type {given.data_type}")
    kind = known[given.data_type].name
    datatype = {"TYPE_INVALID": "", "TYPE_STRING": "BYTES"}.get(kind, kind.removeprefix("TYPE_"))
    shape = (-1, *given.dims) if batched else tuple(given.dims)
    return TensorConfig(name=given.name, datatype=datatype, shape=shape if given.dims else None)


def _sequence(given: Any) -> SequenceConfig:
    oldest = given.oldest.max_candidate_sequences
    idle_s = given.max_sequence_idle_microseconds / 1e6
    default = SequenceConfig()
    return SequenceConfig(
        strategy="oldest" if given.WhichOneof("strategy_choice") == "oldest" else "direct",
        max_sequences=oldest or default.max_sequences,
        idle_timeout_s=idle_s or default.idle_timeout_s,
        states=tuple(map(_state, given.state)),
        controls=tuple(_control(tensor.name, control) for tensor in given.control_input for control in tensor.control),
    )


def _state(given: Any) -> StateConfig:
    if any(initial.WhichOneof("state_data") == "data_file" for initial in given.initial_state):
        raise Unimplemented(f"state '{given.input_name}': an initial value from a file is not supported; zero is")
    return StateConfig(input=given.input_name, output=given.output_name)


def _control(tensor: str, given: Any) -> ControlConfig:
    if not 0 <= given.kind < len(_CONTROLS):
        raise InvalidArgument(f"control input '{tensor}': there is no kind {given.kind}")
    kind = _CONTROLS[given.kind]
    for values in (given.int32_false_true, given.fp32_false_true, given.bool_false_true):
        if len(values) == 2:
            return ControlConfig(input=tensor, kind=kind, off=float(values[0]), on=float(values[1]))  # type: ignore[arg-type]  # one of _CONTROLS
    if kind != "corrid":
        raise InvalidArgument(f"control input '{tensor}': expected two values, for false and true")
    return ControlConfig(input=tensor, kind="corrid")


def _pipeline(given: Any) -> PipelineConfig:
    return PipelineConfig(
        inputs=tuple(tensor.name for tensor in given.input),
        outputs=tuple(tensor.name for tensor in given.output),
        steps=tuple(
            StepConfig(
                model=step.model_name,
                version=str(step.model_version) if step.model_version > 0 else "",
                inputs=dict(step.input_map),
                outputs=dict(step.output_map),
            )
            for step in given.ensemble_scheduling.step
        ),
    )


def _ignored(given: Any, place: str = "") -> Iterator[str]:
    """Dotted names of the fields that were set and have no meaning here."""
    for field, value in given.ListFields():
        title = f"{place}.{field.name}" if place else field.name
        if field.name not in _UNDERSTOOD[place]:
            yield title
        elif title in _UNDERSTOOD:
            for item in value if isinstance(value, Sequence) else (value,):
                yield from _ignored(item, title)
