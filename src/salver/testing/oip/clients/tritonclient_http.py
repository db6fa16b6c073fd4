"""``tritonclient.http``; with the argument ``aio``, ``tritonclient.http.aio``."""

from __future__ import annotations

import ssl
import sys
from importlib.metadata import version
from inspect import isawaitable
from typing import Any
from urllib.parse import urlsplit

import gevent.ssl
import harness
import tritonclient.http as sync
import tritonclient.http.aio as aio
from tritonclient.utils import triton_to_np_dtype

ASYNC = sys.argv[1:] == ["aio"]
if ASYNC and tuple(map(int, version("tritonclient").split(".")[:2])) < (2, 60):
    raise ImportError(f"tritonclient {version('tritonclient')}, whose asyncio client cannot compress: wants 2.60")
LIBRARY = aio if ASYNC else sync


async def connect(settings: dict[str, Any]) -> TritonHttp:
    """Made inside the loop: aiohttp wants one."""
    parts = urlsplit(settings["http"])
    options: dict[str, Any] = {}
    if parts.scheme == "https":
        context = (ssl if ASYNC else gevent.ssl).create_default_context(cafile=settings["ca"])
        if settings["cert"]:
            context.load_cert_chain(settings["cert"], settings["key"])
        options = {"ssl": True}
        options |= {"ssl_context": context} if ASYNC else {"ssl_context_factory": lambda *_, **__: context}
    return TritonHttp(LIBRARY.InferenceServerClient(parts.netloc + parts.path, **options), settings["headers"])


class TritonHttp:
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
        return await self._call("get_server_metadata")

    async def model_metadata(self, model: str, version: str = "") -> Any:
        """Inputs, outputs, versions and platform."""
        return await self._call("get_model_metadata", model, version)

    async def model_config(self, model: str) -> Any:
        """Triton's configuration of a model."""
        return await self._call("get_model_config", model)

    async def statistics(self, model: str = "") -> Any:
        """Counters of one model or of all."""
        return await self._call("get_inference_statistics", model)

    async def index(self) -> Any:
        """What the repository holds."""
        return await self._call("get_model_repository_index")

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
        """Ask a model.

        Args:
            encoding: ``binary`` or ``json``; or ``json-binary`` and the like: the request's, then the answer's.
            outputs: those wanted, ``{"name", "class_count"}``; all where None.
            options: handed to the client as they are.
        """
        sent, _, wanted = encoding.partition("-")
        binary = (wanted or sent) == "binary"
        tensors = []
        for given in inputs:
            tensor = LIBRARY.InferInput(given["name"], given["shape"], given["datatype"])
            tensor.set_data_from_numpy(_array(given), binary_data=sent == "binary")
            tensors.append(tensor)
        requested = [
            LIBRARY.InferRequestedOutput(o["name"], binary_data=binary, class_count=o.get("class_count", 0))
            for o in outputs or []
        ]
        if outputs is None and not binary:
            described = await self.model_metadata(model)
            requested = [LIBRARY.InferRequestedOutput(o["name"], binary_data=False) for o in described["outputs"]]
        result = await self._call(
            "infer", model, tensors, model_version=version, outputs=requested or None, **options or {}
        )
        got = result.get_response()
        return {
            "model": got["model_name"],
            "version": got.get("model_version", ""),
            "id": got.get("id", ""),
            "outputs": [
                harness.to_tensor(o["name"], o["datatype"], result.as_numpy(o["name"])) for o in got["outputs"]
            ],
        }


def _array(tensor: dict[str, Any]) -> Any:
    """For BF16 the client wants float32 before its release 26.06 and ml_dtypes' bfloat16 since."""
    array = harness.to_array(tensor)
    return array.astype(triton_to_np_dtype("BF16")) if tensor["datatype"] == "BF16" else array


harness.serve(connect, "tritonclient " + version("tritonclient"))
