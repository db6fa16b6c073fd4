"""A peer of `peers.py`: FastAPI tuned by hand, without validation, batching or metrics.

Served by ``uvicorn --loop uvloop --http httptools``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import peer_session
from fastapi import FastAPI, Request, Response

app = FastAPI()


@app.post("/v2/models/mlp/infer")
async def infer(request: Request) -> Response:
    """The Open Inference Protocol, as far as the benchmark's one request needs it."""
    tensor: dict[str, Any] = orjson.loads(await request.body())["inputs"][0]
    y = peer_session.infer(np.array(tensor["data"], np.float32).reshape(tensor["shape"]))
    output = {"name": "y", "shape": y.shape, "datatype": "FP32", "data": y.ravel()}
    body = orjson.dumps({"model_name": "mlp", "outputs": [output]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")
