"""gRPC server reflection."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2 as pb

from salver.server.frontends import FRONTENDS
from salver.server.frontends.base import Method
from salver.testing.frontends import FrontendConformance, invoke

VERSIONS = ["v1", "v1alpha"]


def ask(frontend, version="v1", **request):
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    call, caught = invoke(frontend, path, pb.ServerReflectionRequest(host="h", **request).SerializeToString())
    assert call.code == "OK"
    response = pb.ServerReflectionResponse.FromString(caught.messages[0])
    assert (response.valid_host, response.original_request.host) == ("h", "h")
    return response


def pool_of(response):
    """A pool of the files of an answer, which must need no others."""
    pool = descriptor_pool.DescriptorPool()
    described = response.file_descriptor_response.file_descriptor_proto
    files = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in described]
    for file in reversed(files):
        pool.Add(file)
    return pool, files[0].name


class TestReflection(FrontendConformance):
    member = "reflection"

    @pytest.fixture(autouse=True)
    def beside_others(self, frontend, services):
        services.frontends = (
            *(FRONTENDS.get(name)(services) for name in ("oip-grpc", "tfserving-grpc", "health")),
            frontend,
        )

    @pytest.mark.parametrize("version", VERSIONS)
    def test_services(self, frontend, version):
        names = [s.name for s in ask(frontend, version, list_services="").list_services_response.service]
        assert names == sorted(
            [
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection",
                "inference.GRPCInferenceService",
                "tensorflow.serving.ModelService",
                "tensorflow.serving.PredictionService",
            ]
        )

    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize(
        "symbol",
        [
            "inference.GRPCInferenceService",
            "inference.GRPCInferenceService.ModelInfer",
            "inference.ModelInferRequest.InferInputTensor.name",
            "inference.ModelConfig",
            "inference.TYPE_FP32",
            "grpc.health.v1.HealthCheckResponse.ServingStatus",
        ],
    )
    def test_a_symbol_comes_with_all_it_needs(self, frontend, version, symbol):
        pool, first = pool_of(ask(frontend, version, file_containing_symbol=symbol))
        assert pool.FindFileContainingSymbol(symbol.removesuffix(".name").removesuffix(".ModelInfer")).name == first
        by_name, again = pool_of(ask(frontend, version, file_by_filename=first))
        assert again == first
        assert by_name.FindFileByName(first)

    def test_every_method_can_be_found(self, frontend, services):
        for method in (m for f in services.frontends for m in f.methods()):
            assert isinstance(method, Method)
            service, _, name = method.path[1:].rpartition("/")
            pool, _ = pool_of(ask(frontend, file_containing_symbol=f"{service}.{name}"))
            described = pool.FindServiceByName(service).methods_by_name[name]
            assert method.streaming == (described.client_streaming or described.server_streaming)

    @pytest.mark.parametrize(
        "request_",
        [
            {"file_containing_symbol": "no.such.Thing"},
            {"file_by_filename": "nothing.proto"},
            {"file_containing_extension": {"containing_type": "inference.ModelConfig", "extension_number": 7}},
            {"all_extension_numbers_of_type": "no.such.Thing"},
        ],
    )
    def test_what_is_not_there(self, frontend, request_):
        response = ask(frontend, **request_)
        assert response.error_response.error_code == 5
        assert response.error_response.error_message.startswith("no ")

    def test_there_are_no_extensions(self, frontend):
        found = ask(frontend, all_extension_numbers_of_type="inference.ModelConfig").all_extension_numbers_response
        assert (found.base_type_name, list(found.extension_number)) == ("inference.ModelConfig", [])

    def test_a_request_for_nothing(self, frontend):
        assert ask(frontend).error_response.error_code == 3
