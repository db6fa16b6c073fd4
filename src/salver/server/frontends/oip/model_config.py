"""A served model, described as Triton's model configuration (the ``model_configuration`` extension).

The field names are those of ``model_config.proto``; the values are what this server does, not what a ``config.pbtxt``
asked for.
"""

from __future__ import annotations

from typing import Any

from salver.core.tensors import ANY_RANK, TensorSpec
from salver.server.engine.base import ServedModel
from salver.server.engine.config import SequenceConfig


def describe_config(model: ServedModel) -> dict[str, Any]:
    """The configuration as JSON has it; protobuf's `ParseDict` takes it too.

    A model whose inputs and outputs share a batch dimension has ``max_batch_size`` above 0, and its ``dims`` leave that
    dimension out, as Triton's do.
    """
    batched = model.signature.batch_dim is not None
    facts = model.metadata
    described: dict[str, Any] = {
        "name": model.name,
        "platform": model.platform,
        "backend": model.platform.partition("_")[0],
        "version_policy": _version_policy(model),
        "max_batch_size": max(int(facts.get("max_batch", 1)), 1) if batched else 0,
        "input": [_tensor(spec, batched) | {"format": "FORMAT_NONE"} for spec in model.signature.inputs],
        "output": [_tensor(spec, batched) | _labels(spec, model) for spec in model.signature.outputs],
        "instance_group": [{"name": model.name, "kind": "KIND_CPU", "count": int(facts.get("lanes", 1))}],
        "response_cache": {"enable": bool(model.config.response_cache_bytes)},
        "parameters": {name: {"string_value": str(value)} for name, value in facts.items()},
    }
    if model.config.pipeline is not None:
        steps = model.config.pipeline.steps
        described["ensemble_scheduling"] = {
            "step": [
                {
                    "model_name": step.model,
                    "model_version": int(step.version) if step.version.isdecimal() else -1,
                    "input_map": dict(step.inputs),
                    "output_map": dict(step.outputs),
                }
                for step in steps
            ]
        }
    elif model.config.sequence is not None:
        described["sequence_batching"] = _sequence_batching(model.config.sequence)
    elif facts.get("merge"):
        described["dynamic_batching"] = {"max_queue_delay_microseconds": 0}
    return described


def _version_policy(model: ServedModel) -> dict[str, Any]:
    policy = model.config.versions
    if policy is None:
        return {"latest": {"num_versions": 1}}
    if policy.specific:
        return {"specific": {"versions": [int(v) for v in policy.specific if v.isdecimal()]}}
    return {"latest": {"num_versions": policy.latest}} if policy.latest else {"all": {}}


def _tensor(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    dims = [-1] if spec.shape == (ANY_RANK,) else spec.wire_shape
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": dims[1:] if batched else dims}


def _labels(spec: TensorSpec, model: ServedModel) -> dict[str, str]:
    file = model.config.label_files.get(spec.name)
    return {} if file is None else {"label_filename": file}


def _sequence_batching(config: SequenceConfig) -> dict[str, Any]:
    described: dict[str, Any] = {"max_sequence_idle_microseconds": int(config.idle_timeout_s * 1e6)}
    if config.strategy == "direct":
        described["direct"] = {}
    else:
        described["oldest"] = {"max_candidate_sequences": config.max_sequences}
    if config.states:
        described["state"] = [{"input_name": s.input, "output_name": s.output} for s in config.states]
    return described
