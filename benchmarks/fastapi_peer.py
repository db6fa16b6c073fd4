"""A peer: FastAPI tuned by hand, without validation, batching or metrics.

Served by ``uvicorn --loop uvloop --http httptools``. It speaks the Open Inference Protocol as far as one tensor each
way needs it, as JSON and with the extension for binary data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import peer_session
from fastapi import FastAPI, Request, Response
from peer_session import DTYPE

_HEAD_LENGTH = "inference-header-content-length"

app = FastAPI()


@app.post("/v2/models/{name}/infer")
async def infer(name: str, request: Request) -> Response:
    """One tensor to another."""
    body = await request.body()
    length = request.headers.get(_HEAD_LENGTH)
    end = int(length) if length else len(body)
    tensor: dict[str, Any] = orjson.loads(body[:end])["inputs"][0]
    given = np.frombuffer(body[end:], DTYPE) if length else np.array(tensor["data"], DTYPE)
    y = peer_session.infer(given.reshape(tensor["shape"]))
    output = {"name": peer_session.OUTPUT, "shape": y.shape, "datatype": "FP32"}
    if length:
        output["parameters"] = {"binary_data_size": y.nbytes}
        head = orjson.dumps({"model_name": name, "outputs": [output]})
        fields = {_HEAD_LENGTH: str(len(head))}
        return Response(head + y.tobytes(), headers=fields, media_type="application/octet-stream")
    output["data"] = y.ravel()
    answer = orjson.dumps({"model_name": name, "outputs": [output]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(answer, media_type="application/json")
