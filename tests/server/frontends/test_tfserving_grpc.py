"""TensorFlow Serving over gRPC: every method, versions, labels, states, another configuration."""

from __future__ import annotations

import time

import grpc
import msgspec
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from salver.core.errors import Code, FailedPrecondition, NotFound, ResourceExhausted, TooLarge, Unavailable
from salver.server.frontends import FRONTENDS
from salver.server.frontends.tfserving.tensors import PROTOS
from salver.testing.frontends import FrontendConformance, invoke

PREDICTION = "/tensorflow.serving.PredictionService/"
MODELS = "/tensorflow.serving.ModelService/"
X = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


def message(name, **fields):
    return PROTOS.message(f"tensorflow.serving.{name}")(**fields)


def tensor(array=X, dtype=1):
    return {
        "dtype": dtype,
        "tensor_shape": {"dim": [{"size": size} for size in array.shape]},
        "tensor_content": array.tobytes(),
    }


def predict(spec=None, inputs=None, **fields):
    inputs = {"x": tensor()} if inputs is None else inputs
    return message("PredictRequest", model_spec=spec or {"name": "linear"}, inputs=inputs, **fields)


def example(*values, name="x"):
    return {"features": {"feature": {name: {"float_list": {"value": values}}}}}


def examples(*rows):
    return {"example_list": {"examples": [example(*row) for row in rows]}}


def ask(frontend, path, request, answer):
    call, catcher = invoke(frontend, path, request.SerializeToString())
    if catcher.error is not None:
        raise catcher.error
    assert call.code == "OK"
    (data,) = catcher.messages
    return message(answer).FromString(data)


def ask_predict(frontend, *args, **fields):
    return ask(frontend, f"{PREDICTION}Predict", predict(*args, **fields), "PredictResponse")


def values(response, name="scores"):
    held = response.outputs[name]
    return np.array(held.float_val, np.float32).reshape([dim.size for dim in held.tensor_shape.dim])


def expected(models, version, x=X):
    model = next(m for m in models if m.name == "linear" and m.version == version)
    return model.session.run({"x": x})["scores"]


@pytest.fixture
def linear(models):
    """Both versions of ``linear``, put right after the test."""
    versions = [m for m in models if m.name == "linear"]
    yield versions
    for model in versions:
        model.state, model.reason = "READY", ""


class TestTfservingGrpc(FrontendConformance):
    member = "tfserving-grpc"

    def test_all_methods_of_both_services_are_there(self, frontend):
        (protos,) = frontend.protos()
        described = {
            f"/{file.package}.{service.name}/{method.name}"
            for file in protos.files
            for service in file.service
            for method in service.method
        }
        assert {method.path for method in frontend.methods()} == described

    def test_predict(self, frontend, models):
        response = ask_predict(frontend)
        assert np.array_equal(values(response), expected(models, "2"))
        assert response.model_spec.name == "linear"
        assert response.model_spec.version.value == 2
        assert response.model_spec.signature_name == "serving_default"

    def test_the_same_request_again_and_others_between(self, frontend, models):
        """The second is read by template; so is the one after a change of elements, and none is mistaken."""
        for factor in (1, 1, 2, -1):
            x = X * np.float32(factor)
            assert np.array_equal(values(ask_predict(frontend, inputs={"x": tensor(x)})), expected(models, "2", x))
            one = {"name": "linear", "version": {"value": 1}}
            assert np.array_equal(values(ask_predict(frontend, one, {"x": tensor(x)})), expected(models, "1", x))
        assert frontend._templates.match(predict().SerializeToString()) is not None

    def test_a_template_is_not_used_for_another_model_of_the_name(self, frontend, services, models, linear):
        ask_predict(frontend)
        services.engine.find = lambda *_: linear[0]
        assert np.array_equal(values(ask_predict(frontend)), expected(models, "1"))

    def test_versions_and_labels(self, frontend, services, models):
        services.engine.repository.move_label("linear", "canary", "1")
        for spec, version in (
            ({"version": {"value": 1}}, "1"),
            ({"version": {"value": 0}}, "2"),
            ({"version_label": "canary"}, "1"),
            ({}, "2"),
        ):
            response = ask_predict(frontend, {"name": "linear", **spec})
            assert np.array_equal(values(response), expected(models, version))
            assert response.model_spec.version.value == int(version)

    @pytest.mark.parametrize(
        "spec",
        [
            {"name": "none"},
            {"name": "linear", "version": {"value": 9}},
            {"name": "linear", "version": {"value": -1}},
            {"name": "linear", "version_label": "none"},
            {"name": "linear", "version_label": "1"},
        ],
    )
    def test_models_that_do_not_exist(self, frontend, spec):
        with pytest.raises(NotFound):
            ask_predict(frontend, spec)
        with pytest.raises(NotFound):
            ask(
                frontend,
                f"{MODELS}GetModelStatus",
                message("GetModelStatusRequest", model_spec=spec),
                "PredictResponse",
            )

    def test_output_filter(self, frontend):
        pair = {"a": tensor(X), "b": tensor(X)}
        spec = {"name": "pair"}
        everything = ask_predict(frontend, spec, pair)
        assert set(everything.outputs) == {"total", "whole"}
        assert list(everything.outputs["whole"].int64_val) == X.astype(int).ravel().tolist()
        one = ask_predict(frontend, spec, pair, output_filter=["total"])
        assert list(one.outputs) == ["total"]
        assert np.array_equal(values(one, "total"), X + X)

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"spec": {"name": ""}}, "Missing ModelSpec"),
            ({"spec": {"name": "linear", "signature_name": "other"}}, '"other" not found in signature def'),
            ({"inputs": {}}, "missing input 'x'"),
            ({"inputs": {"x": tensor(), "z": tensor()}}, "unknown input 'z'"),
            ({"inputs": {"x": tensor(X[:, :2])}}, r"got shape [2, 2], expected [batch, 4]"),
            ({"inputs": {"x": tensor(X[:0])}}, "at least one row"),
            ({"inputs": {"x": tensor(dtype=2)}}, "got DT_DOUBLE, expected DT_FLOAT"),
            ({"output_filter": ["none"]}, "unknown output 'none'"),
            ({"output_filter": ["scores", "scores"]}, "asked for twice"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, frontend, fields, text):
        call, catcher = invoke(frontend, f"{PREDICTION}Predict", predict(**fields).SerializeToString())
        assert call.code == Code.INVALID_ARGUMENT
        assert text in catcher.error.message

    def test_the_deadline_and_a_cancellation_reach_the_engine(self, frontend, services):
        services.engine.held = []
        until_s = time.monotonic() + 5
        data = predict().SerializeToString()
        call, catcher = invoke(frontend, f"{PREDICTION}Predict", data, deadline_s=until_s)
        ((_, request),) = services.engine.held
        assert request.deadline_s == until_s
        call.cancel()
        assert services.engine.cancelled == [request]
        assert not catcher.ended

    def test_refusals_are_counted_and_answered(self, frontend, services, linear):
        services.engine.refuse_with = ResourceExhausted("queue full")
        with pytest.raises(ResourceExhausted):
            ask_predict(frontend)
        services.engine.refuse_with = None
        invoke(frontend, f"{PREDICTION}Predict", predict(inputs={}).SerializeToString())
        empty = message("ClassificationRequest", model_spec={"name": "linear"})
        invoke(frontend, f"{PREDICTION}Classify", empty.SerializeToString())
        assert services.metrics.statistics(linear[1])["inference_stats"]["fail"]["count"] == 3

    def test_limits_are_counted(self, services):
        services.settings = msgspec.structs.replace(services.settings, max_string_bytes=10, max_decompressed_bytes=1000)
        hit = []
        services.metrics.limit_hit = hit.append
        frontend = FRONTENDS.get("tfserving-grpc")(services)
        text = {"dtype": 7, "tensor_shape": {"dim": [{"size": 1}, {"size": 1}]}, "string_val": [b"x" * 11]}
        many = {"dtype": 1, "tensor_shape": {"dim": [{"size": 1000}, {"size": 4}]}, "float_val": [1]}
        for spec, given in (({"name": "id-bytes"}, text), ({"name": "linear"}, many)):
            with pytest.raises(TooLarge):
                ask_predict(frontend, spec, {"x": given})
        assert hit == ["max_string_bytes", "max_decompressed_bytes"]

    # Classify, regress and both

    def test_classify(self, frontend, models):
        request = message("ClassificationRequest", model_spec={"name": "linear"}, input=examples(*X.tolist()))
        response = ask(frontend, f"{PREDICTION}Classify", request, "ClassificationResponse")
        assert response.model_spec.version.value == 2
        found = [[(c.label, c.score) for c in row.classes] for row in response.result.classifications]
        labels = ("cat", "dog", "bird")
        assert found == [list(zip(labels, row, strict=True)) for row in expected(models, "2").tolist()]

    def test_regress(self, frontend):
        request = message("RegressionRequest", model_spec={"name": "id-fp32"}, input=examples([2.5], [-3]))
        response = ask(frontend, f"{PREDICTION}Regress", request, "RegressionResponse")
        assert [r.value for r in response.result.regressions] == [2.5, -3]
        assert response.model_spec.signature_name == "serving_default"

    def test_a_model_of_another_kind_cannot(self, frontend):
        request = message("RegressionRequest", model_spec={"name": "linear"}, input=examples(*X.tolist()))
        with pytest.raises(FailedPrecondition, match="cannot regress"):
            ask(frontend, f"{PREDICTION}Regress", request, "RegressionResponse")

    def test_several_questions_about_the_same_examples_are_one_run(self, frontend, services):
        tasks = [{"model_spec": {"name": "id-fp32"}, "method_name": method} for method in (CLASSIFY, REGRESS)]
        request = message("MultiInferenceRequest", tasks=tasks, input=examples([2.5]))
        services.engine.held = []
        data = request.SerializeToString()
        _, catcher = invoke(frontend, f"{PREDICTION}MultiInference", data)
        assert len(services.engine.held) == 1
        services.engine.release()
        first, second = message("MultiInferenceResponse").FromString(catcher.messages[0]).results
        assert first.classification_result.classifications[0].classes[0].score == 2.5
        assert second.regression_result.regressions[0].value == 2.5
        assert (first.model_spec.name, second.model_spec.version.value) == ("id-fp32", 1)

    @pytest.mark.parametrize(
        ("tasks", "code", "text"),
        [
            ([], "INVALID_ARGUMENT", "no tasks"),
            ([("linear", "tensorflow/serving/predict")], "UNIMPLEMENTED", "Unsupported signature method_name"),
            ([("linear", CLASSIFY), ("pair", REGRESS)], "INVALID_ARGUMENT", "the same model"),
            ([("linear", CLASSIFY), ("linear", CLASSIFY)], "INVALID_ARGUMENT", "Duplicate evaluation of signature"),
            ([("none", CLASSIFY)], "NOT_FOUND", "none"),
        ],
    )
    def test_questions_that_cannot_be_asked_together(self, frontend, tasks, code, text):
        asked = [{"model_spec": {"name": name}, "method_name": method} for name, method in tasks]
        request = message("MultiInferenceRequest", tasks=asked, input=examples([1, 2, 3, 4]))
        call, catcher = invoke(frontend, f"{PREDICTION}MultiInference", request.SerializeToString())
        assert call.code == code
        assert text in catcher.error.message

    def test_a_signature_that_is_not_there(self, frontend):
        spec = {"name": "linear", "signature_name": "other"}
        request = message("ClassificationRequest", model_spec=spec, input=examples([1, 2, 3, 4]))
        call, _ = invoke(frontend, f"{PREDICTION}Classify", request.SerializeToString())
        assert call.code == Code.INVALID_ARGUMENT

    # Metadata and status

    def test_metadata(self, frontend):
        spec = {"name": "linear", "version": {"value": 1}}
        request = message("GetModelMetadataRequest", model_spec=spec, metadata_field=["signature_def"])
        response = ask(frontend, f"{PREDICTION}GetModelMetadata", request, "GetModelMetadataResponse")
        assert (response.model_spec.name, response.model_spec.version.value) == ("linear", 1)
        held = message("SignatureDefMap")
        packed = response.metadata["signature_def"]
        assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
        held.ParseFromString(packed.value)
        signature = held.signature_def["serving_default"]
        assert signature.inputs["x"].dtype == 1
        assert [dim.size for dim in signature.inputs["x"].tensor_shape.dim] == [-1, 4]
        assert signature.outputs["scores"].name == "scores:0"
        assert signature.method_name == "tensorflow/serving/predict"

    @pytest.mark.parametrize(("fields", "text"), [([], "at least one metadata_field"), (["other"], "is not supported")])
    def test_metadata_that_is_not_there(self, frontend, fields, text):
        request = message("GetModelMetadataRequest", model_spec={"name": "linear"}, metadata_field=fields)
        call, catcher = invoke(frontend, f"{PREDICTION}GetModelMetadata", request.SerializeToString())
        assert call.code == Code.INVALID_ARGUMENT
        assert text in catcher.error.message

    def test_status(self, frontend, linear):
        linear[0].state, linear[0].reason = "UNAVAILABLE", "golden requests failed"
        request = message("GetModelStatusRequest", model_spec={"name": "linear"})
        found = ask(frontend, f"{MODELS}GetModelStatus", request, "GetModelStatusResponse").model_version_status
        assert [(s.version, s.state) for s in found] == [(1, 50), (2, 30)]
        assert found[0].status.error_code == 14
        assert "the repository index says why" in found[0].status.error_message
        assert found[1].status.error_code == 0
        linear[1].state = "LOADING"
        request.model_spec.version.value = 2
        (only,) = ask(frontend, f"{MODELS}GetModelStatus", request, "GetModelStatusResponse").model_version_status
        assert only.state == 20
        with pytest.raises(Unavailable):
            ask_predict(frontend)

    # Another configuration

    def configure(self, frontend, *configs):
        given = {"model_config_list": {"config": list(configs)}}
        request = message("ReloadConfigRequest", config=given)
        return ask(frontend, f"{MODELS}HandleReloadConfigRequest", request, "ReloadConfigResponse")

    def all_of(self, services, *configs):
        named = {config["name"] for config in configs}
        rest = {model.name for model in services.engine.models()} - named
        return [*configs, *({"name": name} for name in sorted(rest))]

    def test_labels_and_policies_are_set_as_the_configuration_says(self, frontend, services):
        repository = services.engine.repository
        repository.move_label("linear", "old", "1")
        linear = {
            "name": "linear",
            "base_path": "/models/linear",
            "model_platform": "tensorflow",
            "model_version_policy": {"specific": {"versions": [1, 2]}},
            "version_labels": {"stable": 1, "canary": 2},
        }
        pair = {"name": "pair", "model_version_policy": {"latest": {"num_versions": 2}}}
        every = {"name": "id-fp32", "model_version_policy": {"all": {}}}
        answer = self.configure(frontend, *self.all_of(services, linear, pair, every))
        assert answer.status.error_code == 0
        assert repository.labels("linear") == {"stable": "1", "canary": "2"}
        configs = {name: config for name, config, _ in repository.loads}
        assert configs["linear"] == {"version_policy": {"specific": {"versions": [1, 2]}}}
        assert configs["pair"] == {"version_policy": {"latest": {"num_versions": 2}}}
        assert configs["id-fp32"] == {"version_policy": {"all": {}}}
        assert configs["id-bool"] is None

    def test_models_left_out_go_out_of_service(self, frontend, services, models):
        try:
            self.configure(frontend, {"name": "linear"})
            assert {m.name for m in models if m.state == "READY"} == {"linear"}
        finally:
            for model in models:
                model.state, model.reason = "READY", ""

    @pytest.mark.parametrize(
        ("configs", "code", "text"),
        [
            ([], "INVALID_ARGUMENT", "names no model"),
            ([{"name": "linear"}, {"name": "linear"}], "INVALID_ARGUMENT", "configured twice"),
            ([{"name": "new", "base_path": "/x"}], "NOT_FOUND", "cannot be added by its base_path ('/x')"),
            ([{"name": "linear", "model_platform": "other"}], "UNIMPLEMENTED", "platform 'other'"),
            ([{"name": "linear", "model_version_policy": {"specific": {}}}], "INVALID_ARGUMENT", "names no version"),
        ],
    )
    def test_a_configuration_that_cannot_be_changes_nothing(self, frontend, services, configs, code, text):
        request = message("ReloadConfigRequest", config={"model_config_list": {"config": configs}})
        call, catcher = invoke(frontend, f"{MODELS}HandleReloadConfigRequest", request.SerializeToString())
        assert call.code == code
        assert text in catcher.error.message
        assert services.engine.repository.loads == []

    def test_a_configuration_of_another_kind(self, frontend):
        call, _ = invoke(frontend, f"{MODELS}HandleReloadConfigRequest", b"")
        assert call.code == Code.UNIMPLEMENTED

    def test_a_label_for_a_version_that_is_not_there_is_the_answer(self, frontend, services, models):
        with pytest.raises(NotFound):
            self.configure(frontend, *self.all_of(services, {"name": "linear", "version_labels": {"stable": 9}}))
        assert all(model.state == "READY" for model in models)

    def test_a_model_that_does_not_load_is_the_answer(self, frontend, services, models, monkeypatch):
        repository = services.engine.repository
        moved, waiting = [], []

        def load(name, done, **_):
            if name == "pair":
                raise FailedPrecondition("broken at once")
            waiting.append(done)

        monkeypatch.setattr(repository, "load", load)
        monkeypatch.setattr(repository, "move_label", lambda *args: moved.append(args))
        configs = [{"name": "linear", "version_labels": {"stable": 1}}, {"name": "pair"}]
        request = message("ReloadConfigRequest", config={"model_config_list": {"config": configs}})
        call, catcher = invoke(frontend, f"{MODELS}HandleReloadConfigRequest", request.SerializeToString())
        assert not catcher.ended
        waiting[0](None)
        assert (call.code, catcher.error.message, moved) == ("FAILED_PRECONDITION", "broken at once", [])

    def test_a_model_that_must_stay_is_the_answer(self, frontend, services, monkeypatch):
        def unload(name, done, **_):
            raise FailedPrecondition(f"a pipeline needs {name}")

        monkeypatch.setattr(services.engine.repository, "unload", unload)
        with pytest.raises(FailedPrecondition, match="a pipeline needs"):
            self.configure(frontend, {"name": "linear"})


class TestOverASocket:
    """grpcio, as a client that has the protocol's messages."""

    @pytest.fixture
    def channel(self, start):
        with start(grpc="127.0.0.1:0") as server, grpc.insecure_channel(server.grpc_address) as channel:
            yield channel

    def ask(self, channel, path, request, answer, **options):
        call = channel.unary_unary(
            path, type(request).SerializeToString, PROTOS.message(f"tensorflow.serving.{answer}").FromString
        )
        return call(request, timeout=10, **options)

    def test_all_methods(self, channel, models):
        for _ in range(3):
            for compression in (None, grpc.Compression.Gzip):
                answer = self.ask(
                    channel, f"{PREDICTION}Predict", predict(), "PredictResponse", compression=compression
                )
                assert np.array_equal(values(answer), expected(models, "2"))
        given = {"model_spec": {"name": "id-fp32"}, "input": examples([2.5])}
        request = message("ClassificationRequest", **given)
        answer = self.ask(channel, f"{PREDICTION}Classify", request, "ClassificationResponse")
        assert answer.result.classifications[0].classes[0].score == 2.5
        answer = self.ask(channel, f"{PREDICTION}Regress", message("RegressionRequest", **given), "RegressionResponse")
        assert answer.result.regressions[0].value == 2.5
        request = message("GetModelStatusRequest", model_spec={"name": "linear"})
        answer = self.ask(channel, f"{MODELS}GetModelStatus", request, "GetModelStatusResponse")
        assert [status.state for status in answer.model_version_status] == [30, 30]

    @pytest.mark.parametrize(
        ("method", "request_", "status"),
        [
            ("Predict", predict({"name": "none"}), grpc.StatusCode.NOT_FOUND),
            ("Predict", predict(inputs={}), grpc.StatusCode.INVALID_ARGUMENT),
            ("PredictStreamed", predict(), grpc.StatusCode.UNIMPLEMENTED),
        ],
    )
    def test_errors(self, channel, method, request_, status):
        with pytest.raises(grpc.RpcError) as failed:
            self.ask(channel, f"{PREDICTION}{method}", request_, "PredictResponse")
        assert failed.value.code() is status

    def test_the_services_are_described(self, channel, models):
        """By reflection alone a client learns enough to ask."""
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"} <= set(
            database.get_services()
        )
        pool = DescriptorPool(database)
        learned = GetMessageClass(pool.FindMessageTypeByName("tensorflow.serving.PredictRequest"))
        request = learned.FromString(predict().SerializeToString())
        answer = self.ask(channel, f"{PREDICTION}Predict", request, "PredictResponse")
        assert np.array_equal(values(answer), expected(models, "2"))
