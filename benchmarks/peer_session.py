"""The network as every peer runs it: one ONNX Runtime session, one thread, no spinning; BENCH_MODEL names the file.

It has one input and one output.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime as ort

_options = ort.SessionOptions()
_options.intra_op_num_threads = _options.inter_op_num_threads = 1
_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
_session = ort.InferenceSession(os.environ["BENCH_MODEL"], _options, providers=["CPUExecutionProvider"])

[_given], [_gives] = _session.get_inputs(), _session.get_outputs()
INPUT, OUTPUT = _given.name, _gives.name
DTYPE = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[_given.type]


def infer(x: np.ndarray) -> np.ndarray:
    """The output of rows `x`."""
    return _session.run(None, {INPUT: x})[0]
