"""What a gRPC inference request costs between the transport and the engine: CPU per request of decoding and encoding.

    python benchmarks/grpc_codec_cost.py [--rounds 15] [--requests 4000]

Three ways to do the same for a small network (64 floats in, 10 out, one row): protobuf's own messages without any check
(what a handler under grpcio's server would do), ours without templates, and ours. Rounds alternate, so that the
machine's own drift cancels; read the ratios, not the microseconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from salver.core.tensors import Signature, TensorSpec
from salver.server.frontends.oip.grpc_codec import GrpcCodec
from salver.server.frontends.oip.grpc_shortcut import Templates
from salver.server.frontends.oip.protos import OIP, parser

IN, OUT = 64, 10
X = np.random.default_rng(1).random((1, IN), dtype=np.float32)
Y = np.random.default_rng(2).random((1, OUT), dtype=np.float32)
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=("batch", IN)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch", OUT)),),
)
CODEC = GrpcCodec("mlp", "1", SIGNATURE)
PARSE = parser("ModelInferRequest")
Request = OIP.message("inference.ModelInferRequest")
Response = OIP.message("inference.ModelInferResponse")


def request(id: str) -> bytes:
    message = Request(model_name="mlp", id=id, raw_input_contents=[X.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=X.shape)
    data: bytes = message.SerializeToString()
    return data


def bare(message: bytes) -> bytes:
    asked = Request.FromString(message)
    np.frombuffer(asked.raw_input_contents[0], np.float32).reshape(asked.inputs[0].shape)
    answer = Response(model_name="mlp", model_version="1", id=asked.id, raw_output_contents=[Y.tobytes()])
    answer.outputs.add(name="y", datatype="FP32", shape=Y.shape)
    data: bytes = answer.SerializeToString()
    return data


def long_way(message: bytes) -> bytes:
    asked = PARSE(message)
    _, plan = CODEC.decode(asked)
    return CODEC.encode(plan, asked.id, {"y": Y})


class Served:
    """Stands for the model that a template belongs to."""


def make_quick_way(message: bytes) -> Callable[[bytes], bytes]:
    templates, served = Templates(), Served()
    inputs, plan = CODEC.decode(PARSE(message))
    templates.learn(message, ("mlp", ""), inputs, plan, CODEC, served)  # type: ignore[arg-type]  # only its identity counts

    def quick_way(message: bytes) -> bytes:
        match = templates.match(message)
        assert match is not None
        template, id, shift = match
        assert template.model() is served
        template.fill(message, shift)
        return CODEC.encode(template.plan, id, {"y": Y})

    return quick_way


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--requests", type=int, default=4000)
    options = arguments.parse_args()
    ways: dict[str, Callable[[bytes], bytes]] = {
        "protobuf, no checks": bare,
        "ours, parsed": long_way,
        "ours": make_quick_way(request("first")),
    }
    print(f"{'CPU µs a request (best of rounds)':34}" + "".join(f"{name:>22}" for name in ways))
    for title, message in {"without an id": request(""), "with an id": request("4711")}.items():
        answers = {Response.FromString(way(message)).SerializeToString(deterministic=True) for way in ways.values()}
        if len(answers) != 1:
            raise SystemExit("the ways do not agree")
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(options.rounds):
            for name, way in ways.items():
                best[name] = min(best[name], measure(way, message, options.requests))
        print(f"{title:34}" + "".join(f"{value:22.2f}" for value in best.values()))


def measure(way: Callable[[Any], Any], message: bytes, count: int) -> float:
    """CPU microseconds a call."""
    start = time.process_time()
    for _ in range(count):
        way(message)
    return (time.process_time() - start) / count * 1e6


if __name__ == "__main__":
    main()
