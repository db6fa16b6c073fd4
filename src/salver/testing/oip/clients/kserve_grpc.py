"""``kserve.InferenceGRPCClient``, with raw and with typed contents."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

import harness
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput

logging.disable(logging.CRITICAL)  # it logs every refusal with its traceback


async def connect(settings: dict[str, Any]) -> KserveGrpc:
    """Made inside the loop: grpc.aio wants one."""
    options: dict[str, Any] = {}
    if settings["ca"]:
        options = {"use_ssl": True, "root_certificates": settings["ca"]}
        if settings["cert"]:
            options |= {"certificate_chain": settings["cert"], "private_key": settings["key"]}
    client = InferenceGRPCClient(settings["grpc"], timeout=20, **options)
    return KserveGrpc(client, tuple(settings["headers"].items()))


class KserveGrpc:
    """The calls of the suite, in the words of the client."""

    def __init__(self, client: Any, headers: tuple[tuple[str, str], ...]) -> None:
        self._client = client
        self._headers = headers

    async def live(self) -> Any:
        """Whether the server is up."""
        return await self._client.is_server_live(headers=self._headers)

    async def ready(self) -> Any:
        """Whether the server takes requests."""
        return await self._client.is_server_ready(headers=self._headers)

    async def model_ready(self, model: str, version: str = "") -> Any:
        """Whether a model takes requests."""
        return await self._client.is_model_ready(model, headers=self._headers)

    async def infer(
        self,
        model: str,
        inputs: list[dict[str, Any]],
        encoding: str,
        version: str = "",
        outputs: list[dict[str, Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> Any:
        """Ask a model, with ``raw`` or ``typed`` contents."""
        request = InferRequest(
            model,
            [_input(tensor, encoding) for tensor in inputs],
            request_id=(options or {}).get("request_id"),
            request_outputs=[RequestedOutput(o["name"]) for o in outputs] if outputs else None,
            model_version=version or None,
        )
        return _result(await self._client.infer(request, headers=self._headers))


def _input(tensor: dict[str, Any], encoding: str) -> Any:
    array = harness.to_array(tensor)
    if encoding == "typed":
        return InferInput(tensor["name"], tensor["shape"], tensor["datatype"], data=array.ravel().tolist())
    made = InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
    made.set_data_from_numpy(array)
    return made


def _result(got: Any) -> dict[str, Any]:
    return {
        "model": got.model_name,
        "version": got.model_version or "",
        "id": got.id or "",
        "outputs": [harness.to_tensor(o.name, o.datatype, o.as_numpy()) for o in got.outputs],
    }


harness.serve(connect, "kserve " + version("kserve"))
