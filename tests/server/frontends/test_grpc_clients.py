"""The clients people have, over a real socket: tritonclient, plain stubs, health checking and reflection."""

from __future__ import annotations

import asyncio
import queue
import time

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from salver.core.tensors import NUMPY_DTYPES

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def server(start):
    with start(grpc="127.0.0.1:0", max_streams=50) as running:
        yield running


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.grpc_address) as client:
        yield client


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel


def tensor(x=X, name="x", datatype="FP32"):
    given = triton.InferInput(name, list(x.shape), datatype)
    given.set_data_from_numpy(x)
    return given


def ignore(result, error):
    """Nothing is done with an answer."""


def scores(models, x=X, version="2"):
    model = next(m for m in models if m.name == "linear" and m.version == version)
    return model.session.run({"x": x})["scores"]


class TestTritonclient:
    def test_all_but_inference(self, client):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("linear", "1")
        assert not client.is_model_ready("none")
        assert client.get_server_metadata(as_json=True)["name"] == "salver"
        assert client.get_model_metadata("linear", as_json=True)["versions"] == ["1", "2"]
        assert client.get_model_config("linear", as_json=True)["config"]["name"] == "linear"
        assert client.get_inference_statistics("linear", as_json=True)["model_stats"]
        assert len(client.get_model_repository_index().models) > 2
        client.unload_model("pair")
        assert not client.is_model_ready("pair")
        client.load_model("pair", config='{"max_batch_size": 2}')
        assert client.is_model_ready("pair")
        assert client.get_log_settings().settings["log_error"].bool_param
        assert list(client.get_trace_settings().settings["trace_level"].value) == ["OFF"]
        assert not client.get_cuda_shared_memory_status().regions
        with pytest.raises(InferenceServerException, match="shared memory is off"):
            client.get_system_shared_memory_status()

    @pytest.mark.parametrize("datatype", [name for name in NUMPY_DTYPES if name != "BF16"])
    def test_every_datatype(self, client, datatype):
        """But BF16, which versions of the client want as different arrays: `TestStub` sends its bytes."""
        rng = np.random.default_rng(5)
        if datatype == "BYTES":
            x = np.array([["é", ""], ["a" * 300, "\0"]], object)
        else:
            x = rng.integers(0, 2, (2, 2)).astype(NUMPY_DTYPES[datatype])
        got = client.infer(f"id-{datatype.lower()}", [tensor(x, datatype=datatype)]).as_numpy("y")
        if datatype == "BYTES":
            got = np.array([value.decode() for value in got.ravel()], object).reshape(got.shape)
        assert got.dtype == x.dtype
        assert np.array_equal(got, x)

    def test_options_of_a_request(self, client, models):
        for version in ("1", "2"):
            for id in ("", "7", "9"):
                result = client.infer("linear", [tensor()], model_version=version, request_id=id, timeout=5_000_000)
                assert result.get_response().id == id
                assert np.array_equal(result.as_numpy("scores"), scores(models, version=version))
        result = client.infer("linear", [tensor()], outputs=[triton.InferRequestedOutput("scores", class_count=1)])
        best = scores(models).argmax()
        assert result.as_numpy("scores")[0, 0].decode().endswith(f":{best}:{('cat', 'dog', 'bird')[best]}")

    @pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
    def test_compressed(self, client, models, algorithm):
        x = np.ones((500, 4), np.float32)
        result = client.infer("linear", [tensor(x)], compression_algorithm=algorithm)
        assert np.array_equal(result.as_numpy("scores"), scores(models, x))

    def test_a_large_batch(self, client, models):
        x = np.random.default_rng(1).normal(size=(100_000, 4)).astype(np.float32)
        assert np.array_equal(client.infer("linear", [tensor(x)]).as_numpy("scores"), scores(models, x))

    def test_errors_say_what_is_wrong(self, client):
        with pytest.raises(InferenceServerException, match=r"got shape \[1, 2\]") as failed:
            client.infer("linear", [tensor(X[:, :2])])
        assert failed.value.status() == "StatusCode.INVALID_ARGUMENT"
        with pytest.raises(InferenceServerException, match="none") as failed:
            client.infer("none", [tensor()])
        assert failed.value.status() == "StatusCode.NOT_FOUND"

    def test_a_deadline_that_passes(self, client, engine, server):
        server.call(lambda: setattr(engine, "held", []))
        with pytest.raises(InferenceServerException) as failed:
            client.infer("linear", [tensor()], client_timeout=0.1)
        assert failed.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        until = time.monotonic() + 5
        while not engine.cancelled and time.monotonic() < until:
            time.sleep(0.01)
        assert len(engine.cancelled) == 1

    def test_async_calls(self, client, models):
        answers = queue.Queue()
        for _ in range(20):
            client.async_infer("linear", [tensor()], lambda result, error: answers.put((result, error)))
        for _ in range(20):
            result, error = answers.get(timeout=10)
            assert error is None
            assert np.array_equal(result.as_numpy("scores"), scores(models))

    def test_streaming(self, client, models):
        """More requests than may be in flight, since each is answered at once; an error is one answer among others."""
        answers = queue.Queue()
        client.start_stream(lambda result, error: answers.put((result, error)))
        for index in range(60):
            client.async_stream_infer("none" if index == 30 else "linear", [tensor(X * index)], request_id=str(index))
        for index in range(60):
            result, error = answers.get(timeout=10)
            if index == 30:
                assert "none" in error.message()
                continue
            assert result.get_response().id == str(index)
            assert result.get_response().parameters["triton_final_response"].bool_param
            assert np.array_equal(result.as_numpy("scores"), scores(models, X * index))
        client.stop_stream()

    def test_a_stream_that_is_cut_cancels_what_runs(self, client, engine, server):
        server.call(lambda: setattr(engine, "held", []))
        client.start_stream(ignore)
        client.async_stream_infer("linear", [tensor()])
        until = time.monotonic() + 5
        while not engine.held and time.monotonic() < until:
            time.sleep(0.01)
        client.stop_stream(cancel_requests=True)
        while not engine.cancelled and time.monotonic() < until:
            time.sleep(0.01)
        assert len(engine.cancelled) == 1

    def test_asyncio(self, server, models):
        async def scenario():
            async with triton_aio.InferenceServerClient(server.grpc_address) as client:
                assert await client.is_server_ready()
                given = [tensor_for(triton_aio)]
                results = await asyncio.gather(*(client.infer("linear", given, request_id=str(i)) for i in range(30)))
                assert [r.get_response().id for r in results] == [str(i) for i in range(30)]

                async def requests():
                    for index in range(3):
                        yield {"model_name": "linear", "inputs": given, "request_id": str(index)}

                found = [result async for result, error in client.stream_infer(requests()) if error is None]
                assert [r.get_response().id for r in found] == ["0", "1", "2"]
                assert all(np.array_equal(r.as_numpy("scores"), scores(models)) for r in (*results, *found))

        def tensor_for(module):
            given = module.InferInput("x", [1, 4], "FP32")
            given.set_data_from_numpy(X)
            return given

        asyncio.run(scenario())


class TestStub:
    """grpcio with code that was generated elsewhere."""

    def test_typed_contents(self, channel, models):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="linear")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, 4])
        for compression in (None, grpc.Compression.Gzip):
            answer = stub.ModelInfer(request, compression=compression, timeout=10)
            assert list(answer.outputs[0].contents.fp32_contents) == scores(models)[0].tolist()

    def test_bf16(self, channel):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        x = np.arange(6, dtype=np.uint16) * 10_000
        request = service_pb2.ModelInferRequest(model_name="id-bf16", raw_input_contents=[x.tobytes()])
        request.inputs.add(name="x", datatype="BF16", shape=[2, 3])
        assert list(stub.ModelInfer(request, timeout=10).raw_output_contents) == [x.tobytes()]

    def test_bytes_that_are_no_message(self, channel):
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as failed:
            call(b"\xff\xff", timeout=10)
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "not a valid ModelInferRequest" in failed.value.details()

    def test_health(self, channel, engine, server):
        stub = health_pb2_grpc.HealthStub(channel)
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", "linear", "inference.GRPCInferenceService"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == serving
        with pytest.raises(grpc.RpcError) as failed:
            stub.Check(health_pb2.HealthCheckRequest(service="none"), timeout=10)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == serving
        server.call(lambda: setattr(engine, "is_ready", False))
        assert next(watch).status == not_serving
        watch.cancel()

    def test_reflection(self, channel):
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        pool = descriptor_pool.DescriptorPool(database)
        for name in database.get_services():
            assert pool.FindServiceByName(name).methods
        ours = pool.FindMessageTypeByName("inference.ModelInferRequest")
        theirs = service_pb2.ModelInferRequest.DESCRIPTOR
        assert [(f.name, f.number) for f in ours.fields] == [(f.name, f.number) for f in theirs.fields]
