"""``tritonclient.grpc`` with its bidirectional stream; with the argument ``aio``, ``tritonclient.grpc.aio``."""

from __future__ import annotations

import queue
import sys
from collections.abc import AsyncIterator
from importlib.metadata import version
from inspect import isawaitable
from typing import Any

import harness
import tritonclient.grpc as sync
import tritonclient.grpc.aio as aio
from tritonclient.utils import triton_to_np_dtype

ASYNC = sys.argv[1:] == ["aio"]
LIBRARY = aio if ASYNC else sync
STREAM_S = 4


async def connect(settings: dict[str, Any]) -> TritonGrpc:
    """Made inside the loop: grpc.aio wants one."""
    options: dict[str, Any] = {}
    if settings["ca"]:
        options = {"ssl": True, "root_certificates": settings["ca"]}
        if settings["cert"]:
            options |= {"certificate_chain": settings["cert"], "private_key": settings["key"]}
    return TritonGrpc(LIBRARY.InferenceServerClient(settings["grpc"], **options), settings["headers"])


class TritonGrpc:
    """The calls of the suite, in the words of the client."""

    def __init__(self, client: Any, headers: dict[str, str]) -> None:
        self._client = client
        self._headers = headers

    async def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        # A copy: the client writes its own headers into the dictionary it is given.
        value = getattr(self._client, name)(*arguments, headers=dict(self._headers), **options)
        return await value if isawaitable(value) else value

    async def live(self) -> Any:
        """Whether the server is up."""
        return await self._call("is_server_live")

    async def ready(self) -> Any:
        """Whether the server takes requests."""
        return await self._call("is_server_ready")

    async def model_ready(self, model: str, version: str = "") -> Any:
        """Whether a model takes requests."""
        return await self._call("is_model_ready", model, version)

    async def server_metadata(self) -> Any:
        """Name, version and extensions."""
        return await self._call("get_server_metadata", as_json=True)

    async def model_metadata(self, model: str, version: str = "") -> Any:
        """Inputs, outputs, versions and platform."""
        return await self._call("get_model_metadata", model, version, as_json=True)

    async def model_config(self, model: str) -> Any:
        """Triton's configuration of a model."""
        return (await self._call("get_model_config", model, as_json=True))["config"]

    async def statistics(self, model: str = "") -> Any:
        """Counters of one model or of all."""
        return await self._call("get_inference_statistics", model, as_json=True)

    async def index(self) -> Any:
        """What the repository holds."""
        return (await self._call("get_model_repository_index", as_json=True)).get("models", [])

    async def load(self, model: str) -> Any:
        """Load a model, or load it again."""
        return await self._call("load_model", model)

    async def unload(self, model: str) -> Any:
        """Unload a model."""
        return await self._call("unload_model", model)

    async def infer(
        self,
        model: str,
        inputs: list[dict[str, Any]],
        encoding: str,
        version: str = "",
        outputs: list[dict[str, Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> Any:
        """Ask a model. This client knows one encoding, ``raw``; ``stream`` sends the same over ModelStreamInfer."""
        if encoding == "stream":
            only = {"model": model, "inputs": inputs, "version": version, "outputs": outputs, "options": options}
            answer = (await self.stream([only]))[0]
            if "error" in answer:
                raise harness.Refused("", answer["error"])
            return answer
        result = await self._call("infer", **_arguments(model, inputs, version, outputs), **options or {})
        return _result(result)

    async def stream(self, requests: list[dict[str, Any]], answers: int = 0) -> Any:
        """Send requests over one stream and take the answers in the order they come.

        Args:
            answers: how many to wait for; as many as requests where 0.
        """
        expected = answers or len(requests)
        if ASYNC:
            return await self._stream_async(requests, expected)
        got: queue.Queue[Any] = queue.Queue()
        self._client.start_stream(
            callback=lambda result, error: got.put((result, error)),
            headers=dict(self._headers),
            stream_timeout=STREAM_S,
        )
        try:
            for request in requests:
                options = request.get("options") or {}
                self._client.async_stream_infer(**_streamed(request), **options)
            pairs = [got.get(timeout=STREAM_S) for _ in range(expected)]
        finally:
            self._client.stop_stream(cancel_requests=True)
        return [{"error": str(error)} if error else _result(result) for result, error in pairs]

    async def _stream_async(self, requests: list[dict[str, Any]], expected: int) -> list[Any]:
        async def feed() -> AsyncIterator[dict[str, Any]]:
            for request in requests:
                yield {**_streamed(request), **(request.get("options") or {})}

        results = []
        responses = self._client.stream_infer(feed(), headers=dict(self._headers), stream_timeout=STREAM_S)
        async for result, error in responses:
            results.append({"error": str(error)} if error else _result(result))
            if len(results) == expected:
                break
        return results


def _arguments(
    model: str, inputs: list[dict[str, Any]], version: str, outputs: list[dict[str, Any]] | None
) -> dict[str, Any]:
    tensors = []
    for given in inputs:
        tensor = LIBRARY.InferInput(given["name"], given["shape"], given["datatype"])
        tensor.set_data_from_numpy(_array(given))
        tensors.append(tensor)
    requested = [LIBRARY.InferRequestedOutput(o["name"], class_count=o.get("class_count", 0)) for o in outputs or []]
    return {"model_name": model, "inputs": tensors, "model_version": version, "outputs": requested or None}


def _streamed(request: dict[str, Any]) -> dict[str, Any]:
    return _arguments(request["model"], request["inputs"], request.get("version", ""), request.get("outputs"))


def _result(result: Any) -> dict[str, Any]:
    got = result.get_response()
    return {
        "model": got.model_name,
        "version": got.model_version,
        "id": got.id,
        "final": got.parameters["triton_final_response"].bool_param
        if "triton_final_response" in got.parameters
        else None,
        "outputs": [harness.to_tensor(o.name, o.datatype, result.as_numpy(o.name)) for o in got.outputs],
    }


def _array(tensor: dict[str, Any]) -> Any:
    """For BF16 the client wants float32 before its release 26.06 and ml_dtypes' bfloat16 since."""
    array = harness.to_array(tensor)
    return array.astype(triton_to_np_dtype("BF16")) if tensor["datatype"] == "BF16" else array


harness.serve(connect, "tritonclient " + version("tritonclient"))
