"""The peer of `serve_overhead.py`: FastAPI tuned by hand, without validation, batching or metrics.

Served by ``uvicorn --loop uvloop --http httptools``; the model file is named by the variable BENCH_MODEL.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
from fastapi import FastAPI, Request, Response

options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(os.environ["BENCH_MODEL"], options)
app = FastAPI()


@app.post("/v2/models/mlp/infer")
async def infer(request: Request) -> Response:
    """The Open Inference Protocol, as far as the benchmark's one request needs it."""
    tensor: dict[str, Any] = orjson.loads(await request.body())["inputs"][0]
    x = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
    y = session.run(None, {"x": x})[0]
    output = {"name": "y", "shape": y.shape, "datatype": "FP32", "data": y.ravel()}
    body = orjson.dumps({"model_name": "mlp", "outputs": [output]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")
