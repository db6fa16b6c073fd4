"""A peer: the network in BentoML, by a route shaped like the Open Inference Protocol's.

BENCH_NAME names the model in that route; BENCH_BATCHING holds the settings of adaptive batching as JSON, or is not set;
BENCH_WORKERS how many processes there are.
What BentoML batches are lists: those of several requests come as one and are split again.
"""

from __future__ import annotations

import json
import os
from typing import Any

import bentoml
import numpy as np
import peer_session

_batching = json.loads(os.environ.get("BENCH_BATCHING", "{}"))
_workers = int(os.environ.get("BENCH_WORKERS", "1"))


@bentoml.service(
    workers=_workers, traffic={"timeout": 60}, logging={"access": {"enabled": False}}, metrics={"enabled": False}
)
class Network:
    """What BentoML calls."""

    @bentoml.api(route=f"/v2/models/{os.environ['BENCH_NAME']}/infer", batchable=bool(_batching), **_batching)
    def infer(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One output for each input, which is of one row each where there are several."""
        given = [np.array(tensor["data"], peer_session.DTYPE).reshape(tensor["shape"]) for tensor in inputs]
        y = peer_session.infer(given[0] if len(given) == 1 else np.concatenate(given))
        parts = np.split(y, np.cumsum([len(x) for x in given])[:-1])
        return [
            {"name": peer_session.OUTPUT, "shape": list(part.shape), "datatype": "FP32", "data": part.ravel().tolist()}
            for part in parts
        ]
