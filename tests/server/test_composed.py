"""Sequences, pipelines and the response cache from a folder to real clients: tritonclient over REST and gRPC."""

from __future__ import annotations

import importlib.metadata
import queue
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from salver.backends import find_backend, open_session
from salver.core.model import Blob, Model
from salver.server.app import Server
from salver.server.settings import ServeSettings
from tests.server.engine.speech import make_speech

VAD = """
[sequence]
idle_timeout_s = 30
states = [{input = "state", output = "stateN"}]
"""
VAD_OF_TRITON = """
platform: "onnxruntime_onnx"
max_batch_size: 0
sequence_batching {
  max_sequence_idle_microseconds: 30000000
  direct { }
  state [ {
    input_name: "state" output_name: "stateN" data_type: TYPE_FP32 dims: [ 2, 1, 128 ]
    initial_state: { data_type: TYPE_FP32 dims: [ 2, 1, 128 ] zero_data: true name: "zero" }
  } ]
}
"""
DOUBLED = """
[pipeline]
inputs = ["x"]
outputs = ["y"]
steps = [
  {model = "double", inputs = {x = "x"}, outputs = {y = "twice"}},
  {model = "double", inputs = {x = "twice"}, outputs = {y = "y"}},
]
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input [ { name: "x", data_type: TYPE_FP32, dims: [ 2 ] } ]
output [ { name: "y", data_type: TYPE_FP32, dims: [ 2 ] } ]
ensemble_scheduling { step [
  { model_name: "double" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } }
] }
"""
WIDTH = 576


def silero(name: str) -> Path:
    return Path(str(importlib.metadata.distribution("silero-vad").locate_file(f"silero_vad/data/{name}.onnx")))


def place(root: Path, name: str, source: Path | None, toml: str, file: str = "model.toml") -> None:
    folder = root / name
    (folder / "1").mkdir(parents=True)
    if source is not None:
        shutil.copy(source, folder / "1" / "model.onnx")
    (folder / file).write_text(toml)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    double = tmp_path_factory.mktemp("double") / "double.onnx"
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", rows[:1], rows[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), double)
    place(root, "vad", silero("silero_vad_half"), VAD)
    place(root, "vad_rate", silero("silero_vad"), VAD_OF_TRITON, "config.pbtxt")
    place(root, "double", double, "response_cache_bytes = 1000000\n")
    place(root, "quadruple", None, DOUBLED)
    place(root, "ensemble", None, ENSEMBLE, "config.pbtxt")
    settings = ServeSettings(sources=(str(root),), http="127.0.0.1:0", grpc="127.0.0.1:0")
    with Server(settings) as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[Any]:
    with triton_http.InferenceServerClient(server.url.removeprefix("http://"), concurrency=4) as client:
        yield client


def frames(seed: int) -> np.ndarray:
    audio = np.concatenate([np.zeros(64, np.float32), make_speech(seed, 1.0)])
    return np.stack([audio[i : i + WIDTH] for i in range(0, len(audio) - WIDTH + 1, 512)])


def by_hand(seed: int, name: str) -> np.ndarray:
    blob = Blob.of(silero(name))
    state = np.zeros((2, 1, 128), np.float32)
    found = []
    with open_session(Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob,))) as session:
        rate = {"sr": np.asarray(16_000, np.int64)} if name == "silero_vad" else {}
        for frame in frames(seed):
            outputs = session.run({"input": frame[None], "state": state, **rate})
            state = outputs["stateN"]
            found.append(outputs["output"])
    return np.concatenate(found)


def tensors(module: Any, frame: np.ndarray, rate: bool) -> list[Any]:
    made = [module.InferInput("input", [1, WIDTH], "FP32")]
    made[0].set_data_from_numpy(frame[None])
    if rate:
        made.append(module.InferInput("sr", [], "INT64"))
        made[1].set_data_from_numpy(np.asarray(16_000, np.int64))
    return made


@pytest.mark.parametrize(("model", "network"), [("vad", "silero_vad_half"), ("vad_rate", "silero_vad")])
def test_streams_over_rest_give_what_a_loop_gives(server: Server, model: str, network: str) -> None:
    def stream(seed: int) -> np.ndarray:
        every = frames(seed)
        found = []
        with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
            for i, frame in enumerate(every):
                answer = client.infer(
                    model,
                    tensors(triton_http, frame, model == "vad_rate"),
                    sequence_id=seed + 1,
                    sequence_start=i == 0,
                    sequence_end=i == len(every) - 1,
                )
                assert [output["name"] for output in answer.get_response()["outputs"]] == ["output"]
                found.append(answer.as_numpy("output"))
        return np.concatenate(found)

    with ThreadPoolExecutor(4) as pool:
        streamed = list(pool.map(stream, range(4)))
    for seed, got in enumerate(streamed):
        np.testing.assert_array_equal(got, by_hand(seed, network))
    assert f'salver_sequences{{model="{model}",version="1"}} 0.0' in read(server, "/metrics")


def test_a_stream_over_grpc_need_not_wait_for_its_answers(server: Server) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    every = frames(7)
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for i, frame in enumerate(every):
            client.async_stream_infer(
                "vad",
                tensors(triton_grpc, frame, False),
                sequence_id="caller-7",
                sequence_start=i == 0,
                sequence_end=i == len(every) - 1,
            )
        got = [answers.get(timeout=30) for _ in every]
        client.stop_stream()
    np.testing.assert_array_equal(
        np.concatenate([one.as_numpy("output") for one in got]), by_hand(7, "silero_vad_half")
    )


def test_a_request_outside_of_a_sequence_is_told_what_it_lacks(http: Any) -> None:
    frame = frames(0)[0]
    with pytest.raises(InferenceServerException, match="'sequence_id'"):
        http.infer("vad", tensors(triton_http, frame, False))
    with pytest.raises(InferenceServerException, match="sequence 99 is not alive"):
        http.infer("vad", tensors(triton_http, frame, False), sequence_id=99)


def test_metadata_shows_no_state(http: Any) -> None:
    metadata = http.get_model_metadata("vad")
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["input"]
    assert [tensor["name"] for tensor in metadata["outputs"]] == ["output"]


@pytest.mark.parametrize(("model", "factor"), [("quadruple", 4), ("ensemble", 2)])
def test_a_pipeline_is_a_model_like_others(http: Any, model: str, factor: int) -> None:
    assert http.is_model_ready(model)
    metadata = http.get_model_metadata(model)
    assert metadata["platform"] == "ensemble"
    assert [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in metadata["inputs"]] == [
        ("x", "FP32", [-1, 2])
    ]
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    given = triton_http.InferInput("x", [3, 2], "FP32")
    given.set_data_from_numpy(rows)
    before = http.get_inference_statistics(model)["model_stats"][0]["inference_count"]
    np.testing.assert_array_equal(http.infer(model, [given]).as_numpy("y"), factor * rows)
    assert http.get_inference_statistics(model)["model_stats"][0]["inference_count"] == before + 3


def test_statistics_count_what_the_cache_answered(http: Any) -> None:
    def counts() -> tuple[int, int]:
        stats = http.get_inference_statistics("double")["model_stats"][0]["inference_stats"]
        return stats["cache_hit"]["count"], stats["cache_miss"]["count"]

    given = triton_http.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(np.array([[np.nan, 1234.5]], np.float32))
    hits, misses = counts()
    first, second = (http.infer("double", [given]).as_numpy("y") for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert counts() == (hits + 1, misses + 1)


def read(server: Server, path: str) -> str:
    with urllib.request.urlopen(server.url + path, timeout=30) as answer:
        return str(answer.read().decode())
