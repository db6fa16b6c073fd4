"""What the client scripts share: tensors as bytes, calls in and answers out as lines of JSON.

A tensor travels as ``{"name", "datatype", "shape", "data"}``, its data being base64 of the little-endian row-major
bytes, strings with a four-byte length each: what is compared is bits, not numbers that were printed and read again.
BF16 is handed to clients as float32, which holds every BF16 value exactly.
"""

from __future__ import annotations

import base64
import inspect
import json
import os
import sys
from asyncio import new_event_loop
from collections.abc import Callable
from typing import Any

import numpy as np

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


class Refused(Exception):
    """What the server answered, where a client gives it no exception of its own.

    Args:
        status: the HTTP status or the name of the gRPC code.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


def to_array(tensor: dict[str, Any]) -> Any:
    """The numpy array of a tensor."""
    data, shape, datatype = base64.b64decode(tensor["data"]), tensor["shape"], tensor["datatype"]
    if datatype == "BYTES":
        elements, start = [], 0
        while start < len(data):
            size = int.from_bytes(data[start : start + 4], "little")
            elements.append(data[start + 4 : start + 4 + size])
            start += 4 + size
        array = np.empty(len(elements), dtype=object)
        array[:] = elements
        return array.reshape(shape)
    if datatype == "BF16":
        wide = np.frombuffer(data, dtype=np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    return np.frombuffer(data, dtype=DTYPES[datatype]).reshape(shape)


def to_tensor(name: str, datatype: str, array: Any) -> dict[str, Any]:
    """The tensor of a numpy array."""
    array = np.asarray(array)
    if datatype == "BYTES":
        elements = [v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist()]
        data = b"".join(len(e).to_bytes(4, "little") + e for e in elements)
    elif datatype == "BF16" and array.dtype.itemsize == 4:
        data = (np.ascontiguousarray(array, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    else:
        data = np.ascontiguousarray(array).tobytes()
    return raw_tensor(name, datatype, array.shape, data)


def raw_tensor(name: str, datatype: str, shape: Any, data: bytes) -> dict[str, Any]:
    """The tensor of bytes that came as they are."""
    text = base64.b64encode(data).decode("ascii")
    return {"name": name, "datatype": datatype, "shape": [int(n) for n in shape], "data": text}


def serve(connect: Callable[[dict[str, Any]], Any], version: str) -> None:
    """Answer calls until standard input ends.

    Args:
        connect: makes the client of the settings in the first line; its public methods are what may be called. It and
            they may be coroutine functions.
        version: what is driven, with its version.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    loop = new_event_loop()

    def finish(value: Any) -> Any:
        return loop.run_until_complete(value) if inspect.isawaitable(value) else value

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    client = finish(connect(json.loads(sys.stdin.readline())))
    say({"version": version})
    for line in sys.stdin:
        call = json.loads(line)
        try:
            say({"value": finish(getattr(client, call["op"])(**call["arguments"]))})
        except Exception as error:  # noqa: BLE001  # whatever a client raises is its answer
            say({"error": type(error).__name__, "status": status_of(error), "message": str(error)[:2000]})


def status_of(error: BaseException) -> str:
    """The HTTP status or the name of the gRPC code that an exception carries; empty where it has none."""
    response = getattr(error, "response", None)
    if response is not None:
        return str(response.status_code)
    for name in ("status", "code"):
        value = getattr(error, name, None)
        value = value() if callable(value) else value
        if value is not None:
            return str(getattr(value, "name", value)).removeprefix("StatusCode.")
    return ""
