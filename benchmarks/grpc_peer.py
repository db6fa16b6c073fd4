"""A peer: a handler on grpcio's asyncio server with uvloop, without validation, batching or metrics.

BENCH_MODEL=mlp.onnx python benchmarks/grpc_peer.py PORT
"""

from __future__ import annotations

import sys
from typing import Any

import grpc
import numpy as np
import peer_session
import uvloop

from salver.wire.protos import ProtoSet

protos = ProtoSet("oip")
Request, Response = (protos.message(f"inference.ModelInfer{name}") for name in ("Request", "Response"))


async def infer(request: Any, _context: Any) -> Any:
    """ModelInfer, as far as the benchmark's one request needs it."""
    x = np.frombuffer(request.raw_input_contents[0], peer_session.DTYPE).reshape(request.inputs[0].shape)
    y = peer_session.infer(x)
    answer = Response(model_name=request.model_name, raw_output_contents=[y.tobytes()])
    answer.outputs.add(name=peer_session.OUTPUT, datatype="FP32", shape=y.shape)
    return answer


async def serve(port: str) -> None:
    """Until the process is ended."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(infer, Request.FromString, Response.SerializeToString)
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler})
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
