"""The network as every peer runs it: one ONNX Runtime session, one thread, no spinning; BENCH_MODEL names the file."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime as ort

_options = ort.SessionOptions()
_options.intra_op_num_threads = 1
_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
_session = ort.InferenceSession(os.environ["BENCH_MODEL"], _options, providers=["CPUExecutionProvider"])


def infer(x: np.ndarray) -> np.ndarray:
    """`y` of rows `x`."""
    return _session.run(None, {"x": x})[0]
