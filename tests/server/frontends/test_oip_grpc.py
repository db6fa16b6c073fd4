"""Open Inference Protocol over gRPC: methods, metadata, streams and errors. The codec has tests of its own."""

from __future__ import annotations

import gc
import json
import logging
import os
import time
import weakref

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from salver.core.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from salver.server.frontends import FRONTENDS
from salver.server.frontends.access import Peer
from salver.server.frontends.grpc.call import Call
from salver.server.frontends.oip.protos import PREFIX
from salver.server.frontends.shared_memory import SharedMemory
from salver.testing.frontends import CallCatcher, FrontendConformance, invoke

GOOD = np.array([[1, 2, 3, 4]], np.float32)


def request(model="linear", x=GOOD, version="", id="", **parameters):
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
    message.inputs.add(name="x", datatype="FP32", shape=x.shape)
    message.raw_input_contents.append(x.tobytes())
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    return message


def ask(frontend, method, message, **more):
    """The answer to a unary call, as tritonclient's own messages."""
    call, caught = invoke(frontend, PREFIX + method, message.SerializeToString(), **more)
    assert caught.ended, "not answered"
    if caught.error is not None:
        raise caught.error
    assert call.code == "OK"
    return getattr(pb, f"{method}Response").FromString(caught.messages[0])


def refused(frontend, method, message, **more):
    call, caught = invoke(frontend, PREFIX + method, message.SerializeToString(), **more)
    assert not caught.messages
    return call.code, caught.error.message


def expected(models, version, x=GOOD):
    model = next(m for m in models if m.name == "linear" and m.version == version)
    return model.session.run({"x": x})["scores"]


class Stream:
    """A streaming call past any socket."""

    def __init__(self, frontend):
        self.caught = CallCatcher()
        method = next(m for m in frontend.methods() if m.path == f"{PREFIX}ModelStreamInfer")
        self.call = Call(self.caught, method.path.encode(), {}, None, time.perf_counter(), self.caught.peer)
        self.call.attempt(method.handle, self.call)

    def send(self, message):
        data = message if isinstance(message, bytes) else message.SerializeToString()
        self.call.attempt(self.call.on_message, data)

    def answers(self):
        return [pb.ModelStreamInferResponse.FromString(m) for m in self.caught.messages]


class TestOipGrpc(FrontendConformance):
    member = "oip-grpc"

    def test_every_method_of_triton_is_there(self, frontend):
        ours = {method.path.rpartition("/")[2] for method in frontend.methods()}
        assert ours == set(pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name)

    def test_health(self, frontend, services):
        assert ask(frontend, "ServerLive", pb.ServerLiveRequest()).live
        assert ask(frontend, "ServerReady", pb.ServerReadyRequest()).ready
        services.engine.is_ready = False
        assert not ask(frontend, "ServerReady", pb.ServerReadyRequest()).ready
        assert ask(frontend, "ServerLive", pb.ServerLiveRequest()).live

    def test_a_model_that_is_not_there_is_not_ready(self, frontend, services):
        for name, version, ready in (("linear", "", 1), ("linear", "2", 1), ("linear", "9", 0), ("none", "", 0)):
            assert ask(frontend, "ModelReady", pb.ModelReadyRequest(name=name, version=version)).ready == bool(ready)

    def test_metadata(self, frontend):
        server = ask(frontend, "ServerMetadata", pb.ServerMetadataRequest())
        assert server.name == "salver"
        assert "model_repository" in server.extensions
        model = ask(frontend, "ModelMetadata", pb.ModelMetadataRequest(name="linear"))
        assert (list(model.versions), model.platform) == (["1", "2"], "onnx_onnxv1")
        assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [("x", "FP32", [-1, 4])]
        assert [t.name for t in model.outputs] == ["scores"]
        assert refused(frontend, "ModelMetadata", pb.ModelMetadataRequest(name="none"))[0] == "NOT_FOUND"

    def test_configuration_is_that_of_rest(self, frontend):
        config = ask(frontend, "ModelConfig", pb.ModelConfigRequest(name="linear")).config
        assert (config.name, config.platform) == ("linear", "onnx_onnxv1")
        assert config.max_batch_size >= 1
        assert [(t.name, list(t.dims)) for t in config.input] == [("x", [4])]
        for name in ("id-bf16", "id-bytes", "pair"):
            assert ask(frontend, "ModelConfig", pb.ModelConfigRequest(name=name)).config.name == name

    def test_statistics(self, frontend):
        ask(frontend, "ModelInfer", request())
        [one, two] = ask(frontend, "ModelStatistics", pb.ModelStatisticsRequest(name="linear")).model_stats
        assert (one.version, two.version) == ("1", "2")
        assert two.inference_stats.success.count == 1
        assert len(ask(frontend, "ModelStatistics", pb.ModelStatisticsRequest()).model_stats) > 2
        assert refused(frontend, "ModelStatistics", pb.ModelStatisticsRequest(name="none"))[0] == "NOT_FOUND"

    def test_versions_answer_for_themselves(self, frontend, models):
        for version in ("1", "2"):
            answer = ask(frontend, "ModelInfer", request(version=version, id="7"))
            assert (answer.model_name, answer.model_version, answer.id) == ("linear", version, "7")
            assert answer.raw_output_contents[0] == expected(models, version).tobytes()
        assert ask(frontend, "ModelInfer", request()).model_version == "2"

    def test_the_same_message_again_and_with_other_elements(self, frontend, models):
        for x in (GOOD, GOOD, -GOOD, GOOD.repeat(3, axis=0), GOOD):
            answer = ask(frontend, "ModelInfer", request(x=x))
            assert answer.raw_output_contents[0] == expected(models, "2", x).tobytes()
            assert list(answer.outputs[0].shape) == [len(x), 3]

    def test_a_message_seen_before_finds_what_serves_now(self, frontend, services):
        version = services.engine.models()[1]
        assert ask(frontend, "ModelInfer", request()).model_version == "2"
        assert ask(frontend, "ModelInfer", request()).model_version == "2"
        version.state, version.reason = "UNAVAILABLE", "broken"
        try:
            code, message = refused(frontend, "ModelInfer", request())
            assert (code, "broken" in message) == ("UNAVAILABLE", True)
        finally:
            version.state, version.reason = "READY", ""
        assert ask(frontend, "ModelInfer", request()).model_version == "2"
        services.engine.repository.move_label("linear", "stable", "1")
        assert ask(frontend, "ModelInfer", request(version="stable")).model_version == "1"
        services.engine.repository.move_label("linear", "stable", "2")
        assert ask(frontend, "ModelInfer", request(version="stable")).model_version == "2"

    def test_typed_contents_are_answered_typed(self, frontend, models):
        message = pb.ModelInferRequest(model_name="linear")
        message.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, 4])
        answer = ask(frontend, "ModelInfer", message)
        assert not answer.raw_output_contents
        assert np.array_equal(answer.outputs[0].contents.fp32_contents, expected(models, "2")[0])

    def test_timeout_priority_and_deadline_reach_the_engine(self, frontend, services):
        services.engine.held = []
        path = f"{PREFIX}ModelInfer"
        now = time.monotonic()
        for message, deadline_s in (
            (request(timeout=2_000_000, priority=3), None),
            (request(timeout=2_000_000, priority=3), now + 1),
            (request(), now + 5),
            (request(), None),
        ):
            invoke(frontend, path, message.SerializeToString(), deadline_s=deadline_s)
        asked, sooner, call_only, none = (held for _, held in services.engine.held)
        assert 1 < asked.deadline_s - now <= 3
        assert (asked.priority, sooner.deadline_s, call_only.deadline_s, none.deadline_s) == (3, now + 1, now + 5, None)

    @pytest.mark.parametrize(
        "parameters",
        [
            {"timeout": -1},
            {"timeout": "1"},
            {"priority": 1.5},
            {"priority": True},
            {"triton_enable_empty_final_response": 1},
        ],
    )
    def test_parameters_of_the_wrong_type_are_refused(self, frontend, parameters):
        for _ in range(2):
            code, message = refused(frontend, "ModelInfer", request(**parameters))
            assert code == "INVALID_ARGUMENT"
            assert next(iter(parameters)) in message

    @pytest.mark.parametrize(
        "error", [ResourceExhausted("queue full"), Unavailable("draining"), DeadlineExceeded("too late")]
    )
    def test_refusals_of_the_engine(self, frontend, services, error):
        services.engine.refuse_with = error
        assert refused(frontend, "ModelInfer", request()) == (error.code.value, error.message)

    def test_what_cannot_be_decoded_is_counted(self, frontend, services):
        refused(frontend, "ModelInfer", request(x=GOOD[:, :2]))
        model = services.engine.models()[1]
        assert services.metrics.statistics(model)["inference_stats"]["fail"]["count"] == 1

    def test_elements_are_checked_in_messages_seen_before(self, frontend, services):
        message = pb.ModelInferRequest(model_name="id-bool", raw_input_contents=[b"\0\1"])
        message.inputs.add(name="x", datatype="BOOL", shape=[1, 2])
        for _ in range(2):
            assert ask(frontend, "ModelInfer", message).raw_output_contents[0] == b"\0\1"
        message.raw_input_contents[0] = b"\0\2"
        code, text = refused(frontend, "ModelInfer", message)
        assert (code, text) == ("INVALID_ARGUMENT", "input 'x': element 1 is byte 2, BOOL is 0 or 1")
        model = next(m for m in services.engine.models() if m.name == "id-bool")
        assert services.metrics.statistics(model)["inference_stats"]["fail"]["count"] == 1

    def test_a_message_that_is_none_is_said_to_be(self, frontend):
        call, caught = invoke(frontend, f"{PREFIX}ModelInfer", request().SerializeToString()[:-1])
        assert call.code == "INVALID_ARGUMENT"
        assert "not a valid ModelInferRequest" in caught.error.message

    def test_cancellation_reaches_the_engine(self, frontend, services):
        services.engine.held = []
        call, caught = invoke(frontend, f"{PREFIX}ModelInfer", request().SerializeToString())
        [(_, held)] = services.engine.held
        call.cancel()
        assert services.engine.cancelled == [held]
        assert not caught.ended

    def test_a_defect_is_internal_without_its_text(self, frontend, services, caplog, monkeypatch):
        def broken(*args):
            raise ZeroDivisionError("secret")

        monkeypatch.setattr(services.engine, "find", broken)
        code, message = refused(frontend, "ModelInfer", request())
        assert (code, "secret" in message) == ("INTERNAL", False)
        assert "secret" in caplog.text

    # Streams

    def test_a_stream_answers_in_order_and_goes_on_after_an_error(self, frontend, services, models):
        services.engine.held = []
        stream = Stream(frontend)
        stream.send(request(id="a"))
        stream.send(request(model="none", id="b"))
        stream.send(b"\xff")
        stream.send(request(id="c", x=-GOOD))
        stream.call.on_end()
        services.engine.release(1)
        assert stream.answers() == []
        services.engine.release(0)
        first, unknown, garbage, last = stream.answers()
        assert stream.caught.ended
        assert stream.call.code == "OK"
        assert first.infer_response.raw_output_contents[0] == expected(models, "2").tobytes()
        assert last.infer_response.raw_output_contents[0] == expected(models, "2", -GOOD).tobytes()
        assert [a.infer_response.id for a in (first, unknown, garbage, last)] == ["a", "b", "", "c"]
        assert "none" in unknown.error_message
        assert unknown.infer_response.model_name == "none"
        assert "not a valid ModelInferRequest" in garbage.error_message
        assert (first.error_message, last.error_message) == ("", "")
        assert all(a.infer_response.parameters["triton_final_response"].bool_param for a in stream.answers())

    def test_a_stream_may_ask_for_the_empty_final_answer(self, frontend):
        """Models answer each request once, so that their answer is the final one and no empty one follows."""
        stream = Stream(frontend)
        stream.send(request(triton_enable_empty_final_response=True))
        [answer] = stream.answers()
        assert answer.infer_response.parameters["triton_final_response"].bool_param
        assert answer.infer_response.outputs

    def test_an_error_of_the_run_is_answered_with_its_id(self, frontend, services):
        services.engine.held = []
        stream = Stream(frontend)
        stream.send(request(id="a"))
        services.engine.held[0][1].done(Unavailable("went away"), None)
        [answer] = stream.answers()
        assert (answer.error_message, answer.infer_response.id) == ("went away", "a")
        assert not stream.caught.ended

    def test_a_stream_that_is_cancelled_cancels_all_its_requests(self, frontend, services):
        services.engine.held = []
        stream = Stream(frontend)
        for _ in range(3):
            stream.send(request())
        stream.call.cancel()
        assert len(services.engine.cancelled) == 3
        assert services.engine.held == []

    def test_what_a_cancelled_stream_asked_is_freed_at_once(self, frontend, services):
        """Not when Python next looks for reference cycles: tensors may be large, and that may be long after."""
        services.engine.held = []
        stream = Stream(frontend)
        stream.send(request())
        data = weakref.ref(services.engine.held[0][1].arrays()["x"])
        gc.disable()
        try:
            stream.call.cancel()
            services.engine.cancelled.clear()
            assert data() is None
        finally:
            gc.enable()

    def test_a_defect_ends_the_stream_and_cancels_the_rest(self, frontend, services, monkeypatch):
        services.engine.held = []
        stream = Stream(frontend)
        stream.send(request())
        monkeypatch.setattr(services.engine, "find", None)
        stream.send(request())
        assert stream.call.code == "INTERNAL"
        assert len(services.engine.cancelled) == 1
        stream.send(request())
        assert services.engine.held == []

    # Repository

    def test_index(self, frontend, services):
        entries = ask(frontend, "RepositoryIndex", pb.RepositoryIndexRequest()).models
        assert ("linear", "1", "READY", "") in [(e.name, e.version, e.state, e.reason) for e in entries]
        services.engine.models()[0].state = "UNAVAILABLE"
        try:
            assert (
                len(ask(frontend, "RepositoryIndex", pb.RepositoryIndexRequest(ready=True)).models) == len(entries) - 1
            )
        finally:
            services.engine.models()[0].state = "READY"

    def test_load_takes_configuration_and_files(self, frontend, services):
        message = pb.RepositoryModelLoadRequest(model_name="linear")
        message.parameters["config"].string_param = json.dumps({"max_batch_size": 4})
        message.parameters["file:1/model.onnx"].bytes_param = b"\x08\x07"
        ask(frontend, "RepositoryModelLoad", message)
        assert services.engine.repository.loads == [("linear", {"max_batch_size": 4}, {"1/model.onnx": b"\x08\x07"})]

    def test_unload_and_load_again(self, frontend, services):
        message = pb.RepositoryModelUnloadRequest(model_name="pair")
        message.parameters["unload_dependents"].bool_param = True
        ask(frontend, "RepositoryModelUnload", message)
        assert not ask(frontend, "ModelReady", pb.ModelReadyRequest(name="pair")).ready
        ask(frontend, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="pair"))
        assert ask(frontend, "ModelReady", pb.ModelReadyRequest(name="pair")).ready

    @pytest.mark.parametrize(
        ("name", "kind", "value", "said"),
        [
            ("config", "string_param", "{", "parameter 'config': not valid JSON"),
            ("config", "bytes_param", b"{}", "parameter 'config' is bytes, expected a text"),
            ("file:1/model.onnx", "string_param", "x", "is str, expected bytes"),
            ("colour", "string_param", "x", "unknown parameter of load 'colour'"),
        ],
    )
    def test_load_parameters_that_make_no_sense(self, frontend, name, kind, value, said):
        message = pb.RepositoryModelLoadRequest(model_name="linear")
        setattr(message.parameters[name], kind, value)
        code, text = refused(frontend, "RepositoryModelLoad", message)
        assert (code, said in text) == ("INVALID_ARGUMENT", True)

    def test_unknown_models_cannot_be_loaded_or_unloaded(self, frontend):
        assert refused(frontend, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="n"))[0] == "NOT_FOUND"
        message = pb.RepositoryModelUnloadRequest(model_name="n")
        assert refused(frontend, "RepositoryModelUnload", message)[0] == "NOT_FOUND"
        message.parameters["unload_dependents"].int64_param = 1
        assert refused(frontend, "RepositoryModelUnload", message)[0] == "INVALID_ARGUMENT"

    # Shared memory and settings

    def test_shared_memory_is_off(self, frontend):
        for method, message in (
            ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
            ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="r", key="/r", byte_size=8)),
            ("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest()),
        ):
            assert refused(frontend, method, message)[0] == "FAILED_PRECONDITION"

    def test_shared_memory_from_register_to_unregister(self, services, models, tmp_path):
        services.shared_memory = SharedMemory("/mine-", folder=tmp_path)
        frontend = FRONTENDS.get("oip-grpc")(services)
        own = {"peer": Peer(uid=os.geteuid())}
        (tmp_path / "mine-x").write_bytes(GOOD.tobytes() + b"\0" * 12)
        given = {"name": "r", "key": "/mine-x", "offset": 0, "byte_size": 28}
        ask(frontend, "SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(**given), **own)
        code, _ = refused(frontend, "SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(**given), **own)
        assert code == "ALREADY_EXISTS"
        [region] = ask(
            frontend, "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(), **own
        ).regions.items()
        assert region == ("r", pb.SystemSharedMemoryStatusResponse.RegionStatus(**given))
        message = pb.ModelInferRequest(model_name="linear")
        message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        message.outputs.add(name="scores")
        for target, offset, size in ((message.inputs[0], 0, 16), (message.outputs[0], 16, 12)):
            target.parameters["shared_memory_region"].string_param = "r"
            target.parameters["shared_memory_offset"].int64_param = offset
            target.parameters["shared_memory_byte_size"].int64_param = size
        for _ in range(2):
            ask(frontend, "ModelInfer", message, **own)
        assert (tmp_path / "mine-x").read_bytes()[16:] == expected(models, "2").tobytes()
        assert refused(frontend, "ModelInfer", message)[0] == "PERMISSION_DENIED"
        ask(frontend, "SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name="r"), **own)
        assert not ask(frontend, "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(), **own).regions

    def test_who_asks_another_process_is_told_why_it_does_not_answer(self, services, tmp_path, monkeypatch):
        gone = Unavailable("the supervisor is gone")
        services.shared_memory = SharedMemory("/mine-", folder=tmp_path)
        frontend = FRONTENDS.get("oip-grpc")(services)
        monkeypatch.setattr(services.shared_memory, "unregister", lambda *given: given[-1](gone))
        monkeypatch.setattr(services.metrics, "collect", lambda shown: shown(gone))
        for method in ("SystemSharedMemoryUnregister", "ModelStatistics"):
            code, message = refused(frontend, method, getattr(pb, f"{method}Request")(), peer=Peer(uid=os.geteuid()))
            assert (code, message) == ("UNAVAILABLE", "the supervisor is gone")

    def test_there_is_no_cuda_shared_memory(self, frontend):
        assert not ask(frontend, "CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()).regions
        ask(frontend, "CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest())
        assert refused(frontend, "CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name="r"))[0] == "NOT_FOUND"
        message = pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=b"x", byte_size=8)
        assert refused(frontend, "CudaSharedMemoryRegister", message)[0] == "UNIMPLEMENTED"

    def test_log_settings(self, frontend):
        logger = logging.getLogger("salver")
        logger.setLevel(logging.INFO)
        shown = ask(frontend, "LogSettings", pb.LogSettingsRequest()).settings
        assert (shown["log_info"].bool_param, shown["log_verbose_level"].uint32_param) == (True, 0)
        message = pb.LogSettingsRequest()
        message.settings["log_verbose_level"].uint32_param = 1
        changed = ask(frontend, "LogSettings", message).settings
        assert (changed["log_verbose_level"].uint32_param, logger.level) == (1, logging.DEBUG)
        message.settings["log_verbose_level"].string_param = "1"
        assert refused(frontend, "LogSettings", message)[0] == "INVALID_ARGUMENT"
        message.settings["log_verbose_level"].SetInParent()
        message.settings["log_verbose_level"].ClearField("string_param")
        assert refused(frontend, "LogSettings", message)[0] == "INVALID_ARGUMENT"

    def test_traces_are_off_and_stay_off(self, frontend):
        shown = ask(frontend, "TraceSetting", pb.TraceSettingRequest()).settings
        assert list(shown["trace_level"].value) == ["OFF"]
        same = pb.TraceSettingRequest(model_name="linear")
        for name in shown:
            same.settings[name].value.extend(shown[name].value)
        assert ask(frontend, "TraceSetting", same).settings == shown
        same.settings["trace_level"].value[:] = ["TIMESTAMPS"]
        assert refused(frontend, "TraceSetting", same)[0] == "UNIMPLEMENTED"
        assert refused(frontend, "TraceSetting", pb.TraceSettingRequest(model_name="none"))[0] == "NOT_FOUND"
