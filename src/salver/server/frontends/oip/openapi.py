"""OpenAPI 3.1 descriptions of the OIP v2 REST paths, made from the signatures of the models served."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from salver.core.tensors import TensorSpec
from salver.server.engine.base import ServedModel
from salver.server.frontends.instances import example_element

ERRORS: Final[dict[str, Any]] = {
    "default": {
        "description": "An error: what was given, what was expected, what to do.",
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
            }
        },
    }
}

_SHOWN: Final = 64
_OBJECT: Final[dict[str, Any]] = {"type": "object"}
_LABEL: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["label", "version"],
    "properties": {"label": {"type": "string"}, "version": {"type": ["string", "integer", "null"]}},
}


def operation(summary: str, tag: str, request: Any = None, response: Any = None) -> dict[str, Any]:
    """One operation; ``request`` and ``response`` are ``(schema, example)`` of JSON bodies."""
    described: dict[str, Any] = {
        "summary": summary,
        "tags": [tag],
        "responses": {"200": {"description": "OK"}, **ERRORS},
    }
    if request is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": _media(*request)}}
    if response is not None:
        described["responses"]["200"]["content"] = {"application/json": _media(*response)}
    return described


def _media(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    return {"schema": schema} if example is None else {"schema": schema, "example": example}


def describe_server() -> dict[str, Any]:
    """The paths that concern no single model."""
    flag = {"type": "object", "properties": {"live": {"type": "boolean"}, "ready": {"type": "boolean"}}}
    return {
        "/v2": {"get": operation("Name, version and extensions of the server", "server")},
        "/v2/health/live": {"get": operation("Whether the process lives", "server", None, (flag, {"live": True}))},
        "/v2/health/ready": {"get": operation("Whether every model is ready", "server", None, (flag, {"ready": True}))},
        "/v2/models/stats": {"get": operation("Statistics of all models", "server")},
        "/v2/repository/index": {"post": operation("Models, versions and their states", "server")},
        "/v2/logging": {
            "get": operation("Settings of the log", "server"),
            "post": operation("Change the level of the log", "server", (_OBJECT, {"log_verbose_level": 1})),
        },
        "/v2/trace/setting": {"get": operation("Settings of tracing, which is off", "server")},
        **_describe_shared_memory(),
    }


def _describe_shared_memory() -> dict[str, Any]:
    base, tag = "/v2/systemsharedmemory", "shared memory"
    one = f"{base}/region/{{region}}"
    region = [{"name": "region", "in": "path", "required": True, "schema": {"type": "string"}}]
    place = {
        "type": "object",
        "required": ["key", "byte_size"],
        "properties": {
            "key": {"type": "string"},
            "offset": {"type": "integer", "minimum": 0},
            "byte_size": {"type": "integer", "minimum": 1},
        },
    }
    register = operation("Register a region, from a Unix socket", tag, (place, None))
    return {
        f"{base}/status": {"get": operation("All regions", tag)},
        f"{base}/unregister": {"post": operation("Forget all regions", tag)},
        f"{one}/status": {"get": operation("One region", tag) | {"parameters": region}},
        f"{one}/unregister": {"post": operation("Forget a region", tag) | {"parameters": region}},
        f"{one}/register": {"post": register | {"parameters": region}},
    }


def describe_model(model: ServedModel) -> dict[str, Any]:
    """The paths of one model, its default version's."""
    base = f"/v2/models/{quote(model.name, safe='')}"
    infer = operation(
        "Run the model (JSON; the binary tensor extension is understood too)",
        model.name,
        (_request_schema(model), example_request(model)),
        (_response_schema(model), None),
    )
    flat = (_OBJECT, _flat_example(model))
    stream = operation("Run the model on a flat object, answers as events", model.name, flat)
    stream["responses"]["200"]["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    repository = f"/v2/repository/models/{quote(model.name, safe='')}"
    label = (_LABEL, {"label": "stable", "version": model.version})
    return {
        base: {"get": operation("Inputs, outputs and how it was tested", model.name)},
        f"{base}/ready": {"get": operation("Whether it is ready", model.name)},
        f"{base}/stats": {"get": operation("Statistics", model.name)},
        f"{base}/config": {"get": operation("Configuration, as Triton describes it", model.name)},
        f"{base}/infer": {"post": infer},
        f"{base}/generate": {"post": operation("Run the model on a flat object", model.name, flat, (_OBJECT, None))},
        f"{base}/generate_stream": {"post": stream},
        f"{base}/labels": {
            "get": operation("Labels and the versions they name", model.name),
            "post": operation("Let a label name a version, or none", model.name, label),
        },
        f"{repository}/load": {"post": operation("Load, or load again what changed", model.name, (_OBJECT, {}))},
        f"{repository}/unload": {"post": operation("Take out of service", model.name, (_OBJECT, {}))},
    }


def _flat_example(model: ServedModel) -> dict[str, Any] | None:
    whole = example_request(model)
    if whole is None:
        return None
    return {t["name"]: t["data"] if len(t["data"]) != 1 else t["data"][0] for t in whole["inputs"]}


def example_request(model: ServedModel) -> dict[str, Any] | None:
    """A request that fits the signature; None where it would be longer than a person reads."""
    inputs = []
    for spec in model.signature.inputs:
        shape = [d if isinstance(d, int) else 1 for d in spec.shape] if spec.rank_known else [1]
        count = 1
        for size in shape:
            count *= size
        if count > _SHOWN * _SHOWN:
            return None
        inputs.append(
            {"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": [example_element(spec)] * count}
        )
    return {"inputs": inputs}


def _tensor_schema(spec: TensorSpec) -> dict[str, Any]:
    shape: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    if spec.rank_known:
        shape |= {"minItems": len(spec.shape), "maxItems": len(spec.shape)}
    return {
        "type": "object",
        "description": f"shape [{', '.join(map(str, spec.shape))}]",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"const": spec.name},
            "shape": shape,
            "datatype": {"const": spec.datatype},
            "data": {"type": "array", "description": "flat, row-major, or nested", "items": {}},
        },
    }


def _request_schema(model: ServedModel) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {
                "type": "object",
                "properties": {
                    "timeout": {"type": "integer", "description": "microseconds"},
                    "priority": {"type": "integer", "description": "smaller is sooner"},
                    "binary_data_output": {"type": "boolean"},
                    "sequence_id": {"type": ["integer", "string"]},
                    "sequence_start": {"type": "boolean"},
                    "sequence_end": {"type": "boolean"},
                },
            },
            "inputs": _list_of([_tensor_schema(s) for s in model.signature.inputs]),
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"enum": list(model.signature.output_names)},
                        "parameters": {"type": "object"},
                    },
                },
            },
        },
    }


def _response_schema(model: ServedModel) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"const": model.name},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": _list_of([_tensor_schema(s) for s in model.signature.outputs]),
        },
    }


def _list_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    items = schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
    return {"type": "array", "minItems": 1, "maxItems": len(schemas), "items": items}
