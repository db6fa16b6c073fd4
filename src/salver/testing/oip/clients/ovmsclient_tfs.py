"""``ovmsclient``: TensorFlow Serving's API, over gRPC; with the argument ``http``, over REST.

The client has no typed answer: it gives numpy arrays, whose datatype over REST is what JSON numbers make. The caller
says which datatype it expects, and the array is cast to it.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import harness
import numpy as np
import ovmsclient

HTTP = sys.argv[1:] == ["http"]


def connect(settings: dict[str, Any]) -> Ovms:
    """The REST client cannot speak TLS: its URLs all begin with ``http://``."""
    if HTTP:
        return Ovms(ovmsclient.make_http_client(urlsplit(settings["http"]).netloc))
    tls = None
    if settings["ca"]:
        tls = {"server_cert_path": settings["ca"]}
        if settings["cert"]:
            tls |= {"client_cert_path": settings["cert"], "client_key_path": settings["key"]}
    return Ovms(ovmsclient.make_grpc_client(settings["grpc"], tls))


class Ovms:
    """The calls of the suite, in the words of the client."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def predict(self, model: str, inputs: list[dict[str, Any]], expected: dict[str, str], version: int = 0) -> Any:
        """Ask a model.

        Args:
            expected: datatype by output.
        """
        arrays = {tensor["name"]: _given(tensor) for tensor in inputs}
        got = self._client.predict(arrays, model, version)
        named = got if isinstance(got, dict) else {next(iter(expected)): got}
        return {"outputs": [_cast(name, expected[name], array) for name, array in named.items()]}

    def status(self, model: str, version: int = 0) -> Any:
        """State of a model's versions."""
        return {str(v): s for v, s in self._client.get_model_status(model, version).items()}

    def metadata(self, model: str, version: int = 0) -> Any:
        """Inputs and outputs of a model."""
        return self._client.get_model_metadata(model, version)


def _given(tensor: dict[str, Any]) -> Any:
    array = harness.to_array(tensor)
    if tensor["datatype"] != "BYTES":
        return array
    # REST sends strings as text, gRPC takes numpy's fixed-width bytes, which drop trailing NULs.
    return array.astype(np.str_) if HTTP else array.astype(np.bytes_)


def _cast(name: str, datatype: str, array: Any) -> Any:
    if datatype != "BYTES":
        return harness.to_tensor(name, datatype, np.asarray(array).astype(harness.DTYPES[datatype]))
    return harness.to_tensor(name, datatype, np.asarray(array, dtype=object))


harness.serve(connect, "ovmsclient " + version("ovmsclient"))
