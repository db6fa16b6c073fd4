"""A peer: the network in Triton's Python backend, batches of requests merged and split."""

from __future__ import annotations

import os
import sys
from typing import Any

sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]  # the stub ignores it

import numpy as np  # noqa: E402  # after the path is set
import peer_session  # noqa: E402
import triton_python_backend_utils as pb  # noqa: E402


class TritonPythonModel:
    """What Triton calls."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer for each request."""
        given = [pb.get_input_tensor_by_name(request, peer_session.INPUT).as_numpy() for request in requests]
        y = peer_session.infer(given[0] if len(given) == 1 else np.concatenate(given))
        ends = np.cumsum([len(x) for x in given])
        parts = [y] if len(given) == 1 else np.split(y, ends[:-1])
        return [pb.InferenceResponse([pb.Tensor(peer_session.OUTPUT, part)]) for part in parts]
