"""``kserve.InferenceRESTClient``, protocol v2; its protocol v1 for ``predict_v1`` and ``model_ready_v1``."""

from __future__ import annotations

import ssl
from importlib.metadata import version
from typing import Any

import harness
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def connect(settings: dict[str, Any]) -> KserveHttp:
    """Made inside the loop: httpx wants one."""
    verify: Any = True
    if settings["ca"]:
        verify = ssl.create_default_context(cafile=settings["ca"])
        if settings["cert"]:
            verify.load_cert_chain(settings["cert"], settings["key"])
    return KserveHttp(settings, verify)


class KserveHttp:
    """The calls of the suite, in the words of the client."""

    def __init__(self, settings: dict[str, Any], verify: Any) -> None:
        self._url = settings["http"]
        self._headers = settings["headers"]
        self._v2 = InferenceRESTClient(RESTConfig(protocol="v2", verify=verify, timeout=10))
        self._v1 = InferenceRESTClient(RESTConfig(protocol="v1", verify=verify, timeout=10))

    async def live(self) -> Any:
        """Whether the server is up: reads ``live`` of a JSON body."""
        return await self._v2.is_server_live(self._url, headers=self._headers)

    async def ready(self) -> Any:
        """Whether the server takes requests: reads ``ready`` of a JSON body."""
        return await self._v2.is_server_ready(self._url, headers=self._headers)

    async def model_ready(self, model: str, version: str = "") -> Any:
        """Whether a model takes requests."""
        return await self._v2.is_model_ready(self._url, model, headers=self._headers)

    async def infer(
        self,
        model: str,
        inputs: list[dict[str, Any]],
        encoding: str,
        version: str = "",
        outputs: list[dict[str, Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> Any:
        """Ask a model, with ``binary`` or ``json`` tensors both ways."""
        binary = encoding == "binary"
        given = options or {}
        request = InferRequest(
            model,
            [_input(tensor, binary) for tensor in inputs],
            request_id=given.get("request_id"),
            parameters={**given.get("parameters", {}), **({"binary_data_output": True} if binary else {})},
            request_outputs=[RequestedOutput(o["name"]) for o in outputs] if outputs else None,
        )
        headers = dict(self._headers)
        return _result(await self._v2.infer(self._url, request, model_name=model, headers=headers))

    async def predict_v1(self, model: str, instances: list[Any]) -> Any:
        """Ask by KServe's protocol v1."""
        return await self._v1.infer(self._url, {"instances": instances}, model_name=model, headers=dict(self._headers))

    async def model_ready_v1(self, model: str) -> Any:
        """Whether a model takes requests, by protocol v1."""
        return await self._v1.is_model_ready(self._url, model, headers=self._headers)


def _input(tensor: dict[str, Any], binary: bool) -> Any:
    made = InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
    made.set_data_from_numpy(harness.to_array(tensor), binary_data=binary)
    return made


def _result(got: Any) -> dict[str, Any]:
    return {
        "model": got.model_name,
        "version": got.model_version or "",
        "id": got.id or "",
        "outputs": [harness.to_tensor(o.name, o.datatype, o.as_numpy()) for o in got.outputs],
    }


harness.serve(connect, "kserve " + version("kserve"))
